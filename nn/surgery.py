"""`fuse` and `unfuse`: an existing model's blocks run the fused operations, in place, and are as before again."""

import fnmatch
import functools
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import nn

from . import trial
from .fused import (
    KEY,
    Act,
    Block,
    Fold,
    FoldedFunction,
    FoldedMixin,
    FusedLinearMixin,
    FusedMixin,
    FusedSequentialMixin,
    Run,
    derived,
    is_fused,
    original,
)
from .patterns import acts_of, blocks_of, lone_layers, runs_of
from .plain import weight_of
from .trial import TOLERANCE, Trial, Untried

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
    undo: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def __str__(self) -> str:
        lines = [("module", "count", "pattern", "activation", ""), *_grouped(self.fused), *_grouped(self.refused)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        return "\n".join([f"{len(self.fused)} fused, {len(self.refused)} refused", *table])

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

    Found by structure: gated MLPs with separate or packed gate and up, plain MLPs, runs of an nn.Sequential, and a linear layer with the
    activation behind it, in a block that does more. Parameters, state_dict keys, hooks and training mode stay; the modules stay the same
    objects, of a subclass of their own. At every call, children that are more than plain nn.Linear (or transformers' Conv1D) by then (LoRA,
    hooks, quantised, sharded) send the call to the module's own forward. Deepcopy and pickle keep what is fused.

    verify: try each block on a copy in float64, drawn anew, in training and evaluation, and refuse it where the results differ; without
    this, the likeliest reading of its structure is taken. dry_run: report alone. include, exclude: shell patterns of modules' paths, like
    "*.mlp"; a module is fused where it matches one of the former (default: all) and none of the latter.

    Returns a Report with the rows `fused` and `refused`; it prints as a table, and `with fuse(model):` fuses for a while. Each row is also
    logged (logger "epilogue"). Whatever is raised half way, the model is as before.

    TypeError for what is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse: model must be a torch.nn.Module, got {type(model).__name__}")
    wanted, unwanted = _patterns("include", include) or ["*"], _patterns("exclude", exclude)
    report = Report()
    try:
        for path, module in list(model.named_modules()):
            if not _matches(path, wanted) or _matches(path, unwanted) or is_fused(module):
                continue
            for row, change in _found(path, module, verify):
                (report.refused if row.reason else report.fused).append(row)
                if change is not None and not dry_run:
                    report.undo.append(change(module))
    except BaseException:
        report.__exit__()
        raise
    for row in report.fused:
        LOG.info("fused %s: %s, %s", *row[:3])
    for row in report.refused:
        LOG.info("refused %s: %s, %s: %s", *row)
    return report


def unfuse(model: nn.Module) -> list[str]:
    """Take back what `fuse` did; the paths of the modules that were fused.

    ValueError, before anything is changed, where a class has since been derived from a fused one (fully_shard, a parametrization).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"unfuse: model must be a torch.nn.Module, got {type(model).__name__}")
    fused = [(path, module) for path, module in model.named_modules() if KEY in module.__dict__]
    for path, module in fused:
        if not is_fused(module):
            raise ValueError(
                f"unfuse: {path} is by now a {type(module).__name__}, made of a fused class; take that back first"
            )
    _restore(*(module for _, module in fused))
    return [path for path, _ in fused]


def _restore(*modules: Any) -> None:
    for module in modules:
        plan = module.__dict__.pop(KEY, None)
        if plan is None:  # taken back already
            continue
        module.__class__ = original(module)
        if isinstance(plan, Fold):
            if isinstance(getattr(plan.owner, plan.act.name, None), FoldedFunction):
                setattr(plan.owner, plan.act.name, plan.act.held)
            if plan.fast_path is not None:
                plan.owner.activation_relu_or_gelu = plan.fast_path


def _patterns(name: str, given: Any) -> list[str]:
    if given is None:
        return []
    patterns = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"fuse: {name} must be a shell pattern of module paths, or several; got {given!r}")
    return patterns


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


Change = Callable[[nn.Module], Callable[[], None]]


def _found(path: str, module: nn.Module, verify: bool) -> list[tuple[Row, Change | None]]:
    """What this module is fused as, or why it is not; nothing where it does not look like an MLP."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        runs = [run for run in runs_of(module) if not verify or _run_tried(module, run)]
        if runs:
            names = ", ".join(dict.fromkeys(run.block.act.entry.name for run in runs))
            return [
                (Row(path, "sequential", names), functools.partial(_swapped, mixin=FusedSequentialMixin, plan=runs))
            ]
    blocks, reason = blocks_of(module)
    if blocks and not verify:
        return [_block(path, blocks[0])]
    if blocks:
        try:
            block, reason = _tried(module, blocks)
        except Untried as error:
            block, reason = None, str(error)
        if block is not None:
            return [_block(path, block)]
    folds, why = _folds(module)
    if folds:
        return [(Row(path, "linear + activation", act.entry.name), _fold(layer, act)) for layer, act in folds]
    if reason or why:
        return [(Row(path, "mlp", ", ".join(act.entry.name for act in acts_of(module)), why or reason or ""), None)]
    stacks = [parameter.shape for parameter in module.parameters(recurse=False) if parameter.ndim == 3]
    if len(stacks) > 1 and min(stacks[0]) > 1 and stacks[0][0] == stacks[1][0]:
        return [
            (Row(path, "experts", "", "its experts are parameters of three axes, whose products are grouped"), None)
        ]
    return []


def _block(path: str, block: Block) -> tuple[Row, Change]:
    return Row(path, block.pattern, block.act.entry.name), functools.partial(_swapped, mixin=FusedMixin, plan=block)


def _tried(module: nn.Module, blocks: list[Block]) -> tuple[Block | None, str]:
    """The first that computes what the module does, or why none: how far the nearest is off, or that it could not be called."""
    nearest, untried = math.inf, ""
    for small in (True, False):  # a copy as large as the module only where a small one cannot be called
        if math.isfinite(nearest):
            break
        for features in dict.fromkeys(_features(module, block.gate or block.up) for block in blocks):
            try:
                attempt = Trial(module, [features], block=True, small=small)
                for block in blocks:
                    if _features(module, block.gate or block.up) == features:
                        off = attempt.error(functools.partial(_swapped, mixin=FusedMixin, plan=block))
                        if off <= TOLERANCE:
                            return block, ""
                        nearest = min(nearest, off)
            except Untried as error:
                untried = str(error)
    return None, untried if math.isinf(nearest) else f"it computes something else, the nearest differs by {nearest:.1e}"


def _run_tried(sequential: nn.Sequential, run: Run) -> bool:
    alone = nn.Sequential(OrderedDict((name, sequential.get_submodule(name)) for name in run.names))
    change = functools.partial(_swapped, mixin=FusedSequentialMixin, plan=[replace(run, first=0)])
    return Trial(alone, [_features(alone, run.block.up)], block=True, small=True).error(change) <= TOLERANCE


def _folds(module: nn.Module) -> tuple[list[tuple[str, Act]], str]:
    """(the linear layers whose activation they may compute, why one that looks so may not)."""
    layers, acts = lone_layers(module), {act.name: act for act in acts_of(module)}
    if not layers or not acts:
        return [], ""
    widths = [_features(module, layer) for layer in layers]
    widths += [
        tensor.shape[0] for child in module.children() for tensor in child.parameters(recurse=False) if tensor.ndim == 1
    ]
    why = ""
    for stubs in range(
        4
    ):  # where it cannot be called as it is, without its attention, which returns one, two or three things
        call = functools.partial(Trial, module, dict.fromkeys(widths), stubs=stubs)
        try:
            found = trial.calls(call(meta=True), layers, list(acts))
        except Untried as error:
            why = why or str(error)
            continue
        pairs = {act: layer for layer, act in reversed(found)}  # an activation is folded into one layer, the first
        if not pairs:
            return [], ""
        try:
            attempt = call()
            errors = {act: attempt.error(_fold(layer, acts[act])) for act, layer in pairs.items()}
        except Untried as error:
            why = why or str(error)
            continue
        good = [(pairs[act], acts[act]) for act, error in errors.items() if error <= TOLERANCE]
        return good, f"it computes something else, differing by {max(errors.values()):.1e}"
    return [], why if _like_an_mlp(module, layers) else ""


def _features(module: nn.Module, layer: str) -> int:
    return weight_of(module._modules[layer]).shape[1]


def _like_an_mlp(module: nn.Module, layers: list[str]) -> bool:
    sizes = [weight_of(module._modules[layer]).shape for layer in layers]
    return any(up[0] == down[1] and up[1] == down[0] for up in sizes for down in sizes if up[0] != up[1])


def _swapped(module: nn.Module, mixin: type, plan: Any) -> Callable[[], None]:
    """Give the module the mixin's forward and a plan; what takes it back."""
    module.__dict__[KEY] = [run.of(module) for run in plan] if isinstance(plan, list) else plan.of(module)
    module.__class__ = derived(mixin, type(module))
    return functools.partial(_restore, module)


def _fold(layer: str, act: Act) -> Change:
    def change(owner: Any) -> Callable[[], None]:
        fold = Fold(owner, layer, act.of(owner), getattr(owner, "activation_relu_or_gelu", None))
        child, held = getattr(owner, layer), fold.act.held
        child.__dict__[KEY] = fold
        child.__class__ = derived(FusedLinearMixin, type(child))
        if isinstance(held, nn.Module):
            held.__dict__[KEY] = fold
            held.__class__ = derived(FoldedMixin, type(held))
        else:
            setattr(owner, act.name, FoldedFunction(held, fold))
        if fold.fast_path is not None:
            owner.activation_relu_or_gelu = 0
        return functools.partial(_restore, child, *([held] if isinstance(held, nn.Module) else []))

    return change
