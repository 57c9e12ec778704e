"""`fuse` and `unfuse`: which modules of a model are changed, and how a change is taken back."""

import fnmatch
import functools
import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from ..plain import without_global_hooks
from .candidates import examined
from .remade import is_remade, remade_from, remake, restore
from .report import Report, Row

LOG = logging.getLogger("epilogue")


def fuse(
    model: nn.Module,
    *,
    verify: bool = True,
    dry_run: bool = False,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> Report:
    """Let the model's blocks run the fused operations, in place; `unfuse` takes it back.

    `fuse` reads the source of each class's forward, and of the methods that it calls, and finds there: `act(linear(e))`,
    `act(gate(e)) * up(e)` and `down(dropout(…))` of either. Gate and up are layers of their own or the halves of one; the expressions may
    be nested or go through local names; the activation is a child, a function, a method or spelled out. Only these expressions are
    replaced; every other statement is the same code. In an nn.Sequential the children are looked at one by one. Code without a source
    (exec, C, torch.jit.script), generators, and scopes within a forward (lambdas, comprehensions, inner functions) are left alone.

    The modules stay the same objects. Their class is now one of the same name, derived from their own, so isinstance holds and
    `type(m) is` does not. They hold nothing of ours: parameters, state_dict keys, hooks, training mode and signatures stay, and copies are
    fused too.

    Every call looks at what is there by then. Where a layer is more than a plain nn.Linear (or transformers' Conv1D), or an activation or
    dropout does more than it says (LoRA, hooks, quantised, sharded, patched), the call runs the original expression.

    Args:
        model: the model, or a part of one.
        verify: try each expression on small layers in float64, in training and evaluation, and refuse it where the results differ.
        dry_run: report only, and change nothing.
        include: a shell pattern of modules' paths, like `"*.mlp"`, or several. A module is fused if it matches one; by default all do.
        exclude: a pattern or several, which no fused module may match.

    Returns:
        A `Report` with the rows `fused` and `refused`. It prints as a table, and `with fuse(model):` fuses until the block ends. Each row
        is also logged (logger "epilogue").

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: a pattern in include matches nothing.

    A block that cannot be fused is a row of the report, never an error. After any error the model is as before.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse: model must be a torch.nn.Module, got {type(model).__name__}")
    modules = list(model.named_modules())
    wanted, unwanted = _patterns("include", ["*"] if include is None else include), _patterns("exclude", exclude)
    for pattern in wanted:
        if not any(_matches(path, [pattern]) for path, _ in modules):
            raise ValueError(
                f"fuse: include={pattern!r} matches no module's path; they are like {_some([path for path, _ in modules])}"
            )
    report = Report()
    try:
        for path, module in modules:
            if _matches(path, wanted) and not _matches(path, unwanted):
                _fuse_module(path, module, verify, dry_run, report)
    except BaseException:
        report.__exit__()
        raise
    for row in report.fused:
        LOG.info("fused %s: %s, %s", row.path or "(the model)", *row[1:3])
    for row in report.refused:
        LOG.info("refused %s: %s, %s: %s", row.path or "(the model)", *row[1:])
    return report


def _fuse_module(path: str, module: nn.Module, verify: bool, dry_run: bool, report: Report) -> None:
    """Change the class of one module if there is something to fuse, and add what was found to the report."""
    if remade_from(type(module)):
        report.before += 1
        return
    # Modes and hooks that the caller set for calls of the model do not see ours.
    with _disable_current_modes(), torch.device("cpu"), without_global_hooks():
        rows, plan = examined(path, module, verify)
    for row in rows:
        (report.refused if row.reason else report.fused).append(row)
    if plan is None or dry_run:
        return
    try:
        remake(module, plan)
    except Exception as error:  # a class that allows no subclass, a module whose class cannot be set
        row = Row(path, rows[0].pattern, rows[0].activation, f"its class cannot be changed: {error}")
        report.fused, report.refused = report.fused[: -len(rows)], [*report.refused, row]
    else:
        report.undo.append(functools.partial(_restore_if_remade, module))


def unfuse(model: nn.Module) -> list[str]:
    """Take back what `fuse` did. The model is as before, to the bit.

    Args:
        model: the model, or a part of one.

    Returns:
        The paths of the modules that were fused.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: a class has since been derived from a fused one (fully_shard, a parametrization). Nothing is changed then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"unfuse: model must be a torch.nn.Module, got {type(model).__name__}")
    fused = [(path, module) for path, module in model.named_modules() if remade_from(type(module))]
    for path, module in fused:
        if not is_remade(module):
            raise ValueError(
                f"unfuse: {path or '(the model)'} is by now a {type(module).__name__}, made of a fused class; take that back first"
            )
    for _, module in fused:
        restore(module)
    return [path for path, _ in fused]


def _restore_if_remade(module: nn.Module) -> None:
    if is_remade(module):  # unless `unfuse` was called meanwhile
        restore(module)


def _patterns(name: str, given: Any) -> list[str]:
    if given is None:
        return []
    patterns = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"fuse: {name} must be a shell pattern of module paths, or several; got {given!r}")
    return patterns


def _some(paths: list[str]) -> str:
    return ", ".join(repr(path) for path in paths[1:6]) or "'', the model itself"


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
