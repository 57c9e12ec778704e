"""`fuse` and `unfuse`: an existing model's blocks run the fused operations, in place, and are as before again."""

import fnmatch
import functools
import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from .plain import is_linear, parameters_of, without_global_hooks
from .reading import Found
from .recognition import recognised
from .remade import Method, Plan, is_remade, plan_of, remade_from, remake, restore
from .roles import Roles
from .sites import runs_at
from .trees import text
from .trial import TOLERANCE, difference

LOG = logging.getLogger("epilogue")


class Row(NamedTuple):
    """A module that was fused, or looked as if it could be: where it is, as what, its activation, and why it was refused."""

    path: str
    pattern: str
    activation: str
    reason: str = ""


@dataclass
class Report:
    """What `fuse` found; prints as a table, in which rows whose paths differ in numbers alone are one: layers.0…31.mlp, and how many
    those are. As a context manager it takes back at its end what that call fused."""

    fused: list[Row] = field(default_factory=list)
    refused: list[Row] = field(default_factory=list)
    before: int = 0  # modules that an earlier call fused
    undo: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def __str__(self) -> str:
        lines = [
            ("module", "count", "pattern", "activation", "reason" * bool(self.refused)),
            *_grouped(self.fused),
            *_grouped(self.refused),
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        before = f", {self.before} fused before" if self.before else ""
        return "\n".join([f"{len(self.fused)} fused, {len(self.refused)} refused{before}", *table])

    def __enter__(self) -> "Report":  # noqa: PYI034  typing.Self is of Python 3.11
        return self

    def __exit__(self, *exception: object) -> None:
        for undo in reversed(self.undo):
            undo()


def _grouped(rows: list[Row]) -> list[tuple[str, ...]]:
    """(path, count, pattern, activation, reason), one for all rows whose paths differ in numbers alone."""
    groups: dict[tuple[Any, ...], list[list[str]]] = {}
    for path, *rest in rows:
        names = path.split(".")
        key = tuple("0" if name.isdecimal() else name for name in names)
        groups.setdefault((key, *rest), []).append(names)
    return [(_joined(paths) or "(the model)", str(len(paths)), *rest) for (_, *rest), paths in groups.items()]


def _joined(paths: list[list[str]]) -> str:
    """[["layers", "0", "mlp"], ["layers", "1", "mlp"]] -> "layers.0…1.mlp"."""
    columns = [sorted(set(column), key=lambda name: (len(name), name)) for column in zip(*paths, strict=True)]
    return ".".join(names[0] if len(names) == 1 else f"{names[0]}…{names[-1]}" for names in columns)


def fuse(
    model: nn.Module,
    *,
    verify: bool = True,
    dry_run: bool = False,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> Report:
    """Let the model's blocks run the fused operations, in place; `unfuse` takes it back.

    Found in the source of each class's forward, and of the methods that it calls: `act(linear(e))`, `act(gate(e)) * up(e)` and
    `down(dropout(…))` of either, gate and up in layers of their own or the halves of one, nested or through local names, the activation a
    child, a function, a method or spelled out. These expressions alone are replaced; every other statement is the same code. In an
    nn.Sequential children are looked at one by one. What has no source (exec, C, torch.jit.script), generators and scopes within a forward
    (lambdas, comprehensions, inner functions) are left alone.

    The modules stay the same objects, of a class of the same name that is derived from their own (so isinstance holds, and `type(m) is`
    does not); they hold nothing of ours: parameters, state_dict keys, hooks, training mode and signatures stay, and copies are fused too.

    Every call looks at what is there by then. A layer that is more than a plain nn.Linear (or transformers' Conv1D), an activation or
    dropout that does more than it says (LoRA, hooks, quantised, sharded, patched) sends the call to the original expression.

    verify: try each expression on small layers in float64, in training and evaluation, and refuse it where the results differ.
    dry_run: report alone. include, exclude: shell patterns of modules' paths, like "*.mlp"; a module is fused where it matches one of the
    former (default: all) and none of the latter.

    Returns a Report with the rows `fused` and `refused`; it prints as a table, and `with fuse(model):` fuses for a while. Each row is also
    logged (logger "epilogue"). Whatever is raised half way, the model is as before; nothing is raised for what a model holds.

    TypeError for what is no nn.Module, ValueError for a pattern in include that matches nothing.
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
            if not _matches(path, wanted) or _matches(path, unwanted):
                continue
            if remade_from(type(module)):
                report.before += 1
                continue
            with (
                _disable_current_modes(),
                torch.device("cpu"),
                without_global_hooks(),
            ):  # whatever the caller's calls are watched by
                rows, plan = _found(path, module, verify)
            for row in rows:
                (report.refused if row.reason else report.fused).append(row)
            if plan is not None and not dry_run:
                try:
                    remake(module, plan)
                except Exception as error:  # a class that will have no subclass, a module whose class cannot be set
                    row = Row(path, rows[0].pattern, rows[0].activation, f"its class cannot be changed: {error}")
                    report.fused, report.refused = report.fused[: -len(rows)], [*report.refused, row]
                else:
                    report.undo.append(functools.partial(_restored, module))
    except BaseException:
        report.__exit__()
        raise
    for row in report.fused:
        LOG.info("fused %s: %s, %s", row.path or "(the model)", *row[1:3])
    for row in report.refused:
        LOG.info("refused %s: %s, %s: %s", row.path or "(the model)", *row[1:])
    return report


def unfuse(model: nn.Module) -> list[str]:
    """Take back what `fuse` did; the paths of the modules that were fused.

    ValueError, before anything is changed, where a class has since been derived from a fused one (fully_shard, a parametrization).
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


def _restored(module: nn.Module) -> None:
    if is_remade(module):  # else taken back already
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


def _found(path: str, module: nn.Module, verify: bool) -> tuple[list[Row], Plan | None]:
    """What this module is fused as, or why it is not; nothing where it does not look like an MLP."""
    try:
        return _rows(path, module, verify)
    except Exception as error:  # whatever a user's objects raise when they are looked at
        return [Row(path, "mlp", "", f"it cannot be looked at: {type(error).__name__}: {error}")], None


def _rows(path: str, module: nn.Module, verify: bool) -> tuple[list[Row], Plan | None]:
    stacks = [parameter.shape for parameter in module.parameters(recurse=False) if parameter.ndim == 3]
    if len(stacks) > 1 and min(stacks[0]) > 1 and stacks[0][0] == stacks[1][0]:
        return [Row(path, "experts", "", "its experts are parameters of three axes, whose products are grouped")], None
    if not module._modules or _is_ours(module) or isinstance(module, torch.jit.ScriptModule):
        return [], None
    plan = plan_of(module)
    rows: list[Row] = []
    for method in plan.methods:
        if method.home is nn.Sequential:
            rows += _sequential(path, module)
        for found in method.found:
            if not _has_layers(module, method, found):
                continue
            row = Row(path, found.site.pattern, _named(method, found, module))
            if verify and row.activation not in found.tried:
                found.tried[row.activation] = difference(method, found, module)
            error = found.tried[row.activation] if verify else 0.0
            if error > TOLERANCE or _runs(method, found, module):
                off = f"it computes something else, differing by {error:.1e}"
                rows.append(row if error <= TOLERANCE else row._replace(reason=off))
    if rows and "forward" in vars(module):
        return [
            row._replace(reason="a forward of the instance's own is called in place of its class's") for row in rows
        ], None
    if rows:
        fused = not any(row.reason for row in rows)
        return rows if fused else [row for row in rows if row.reason], plan if fused else None
    reason = _why_not(module, plan)
    return ([Row(path, "mlp", ", ".join(_activations(module)), reason)] if reason else []), None


def _why_not(module: nn.Module, plan: Plan) -> str:
    """Why a module that looks like an MLP is none, as far as one can say; "" where it need not be one."""
    notes: dict[str, list[str]] = defaultdict(list)
    for kind, texts in (item for method in plan.methods for item in method.notes.items()):
        notes[kind] += texts
    if notes["used"]:
        return f"`{notes['used'][0]}` needs what is used elsewhere, too"
    if not _like_an_mlp(module):
        return ""
    if isinstance(module, nn.Sequential):
        children = list(module._modules.values())
        behind = [type(b).__name__ for a, b in itertools.pairwise(children) if is_linear(a) and not is_linear(b)]
        return f"between its layers stands {behind[0]}" if behind else ""
    for kind in ("source", "scope"):
        if notes[kind]:
            return notes[kind][0]
    for method in plan.methods:
        for found in method.found:
            test = Roles(method.inner, module).holds(found.musts)
            if test is not None:
                return f"it does more, as `{text(test)}` holds"
    if notes["unknown"]:
        one = "one slope for all in a PReLU; one of your own is one block, see epilogue.activation"
        return f"`{notes['unknown'][0]}` is no activation of the catalogue ({one})"
    activated = notes["activated"] or _activations(module)
    if notes["between"] and activated:
        return f"between its layers stands `{notes['between'][0]}`"
    return "its forward has none of the expressions that are fused" if plan.methods and activated else ""


def _is_ours(module: nn.Module) -> bool:
    return type(module).__module__.startswith("epilogue.nn.")


def _sequential(path: str, module: nn.Module) -> list[Row]:
    """One row, with the activations of all its runs."""
    children, at, acts = list(module._modules.values()), 0, []
    while at < len(children):
        runs = [(slots[0], behind) for _, slots, behind in runs_at(children, at) if recognised(slots[0])]
        if runs:
            act, at = runs[0]
            acts.append(recognised(act)[0].name)  # type: ignore[index]
        else:
            at += 1
    return [Row(path, "sequential", ", ".join(dict.fromkeys(acts)))] if acts else []


def _has_layers(module: nn.Module, method: Method, found: Found) -> bool:
    """Whether the site's layers are linear ones, as far as can be said before the call: those of a list may be."""
    roles = Roles(method.inner, module)
    if any(roles(found.slots[name]) == "linear" for name in ("up", "gate", "down") if name in found.slots):
        return True
    listed = [child for child in module.children() if isinstance(child, (nn.ModuleList, nn.ModuleDict, nn.Sequential))]
    return any(is_linear(inner) for child in (module, *listed) for inner in child.children())


def _runs(method: Method, found: Found, module: nn.Module) -> bool:
    """Whether the site is the one that calls of this module come to, rather than one that it is a part of."""
    roles, outer = Roles(method.inner, module), found.within
    while outer is not None:
        if roles.holds(outer.musts) is None:
            return False
        outer = outer.within
    return roles.holds(found.musts) is None


def _named(method: Method, found: Found, module: nn.Module) -> str:
    if found.site.entry is not None:
        return found.site.entry.name
    known = recognised(Roles(method.inner, module).activation(found.slots["act"]))
    return "" if known is None else known[0].name


def _activations(module: nn.Module) -> list[str]:
    """The names of the activations among a module's children and attributes."""
    held = [value for name, value in vars(module).items() if not name.startswith("_")]
    known = [recognised(value) for value in (*held, *module._modules.values()) if callable(value)]
    return [entry[0].name for entry in known if entry is not None]


def _like_an_mlp(module: nn.Module) -> bool:
    read = [parameters_of(child) for child in module.children()]
    sizes = [tuple(layer[0].shape) for layer in read if layer is not None]
    return any(
        up[0] in (down[1], 2 * down[1]) and up[1] == down[0] != up[0]
        for up in sizes
        for down in sizes
        if up is not down
    )
