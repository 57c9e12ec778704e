"""How `fuse` finds what it can fuse: by the sizes of linear layers, and by what an activation computes, never by a name."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epilogue.catalogue import ACTIVATIONS, Activation
from epilogue.lookup import resolve

from .fused import Act, Block, Run, is_fused
from .plain import is_linear, weight_of

_GRID = torch.cat([torch.linspace(-12, 12, 4001, dtype=torch.float64), torch.tensor([-1e3, 1e3], dtype=torch.float64)])


def act_of(name: str, held: Any) -> Act | None:
    """The elementwise activation that an attribute is, or None."""
    if isinstance(held, nn.Module):
        return _act_of_module(name, held)
    if not callable(held) or isinstance(held, type):
        return None
    try:
        entry, params = resolve(held)
    except (TypeError, ValueError):
        return None
    numbers = all(isinstance(value, (int, float)) for value in params.values())
    return Act(entry, name, held, params, {}) if _worth_folding(entry) and numbers else None


def _act_of_module(name: str, module: nn.Module) -> Act | None:
    entry: Activation | None
    try:
        entry, params = resolve(module)
    except (TypeError, ValueError):
        entry, params = _recognised(module), {}
    if entry is None or not _worth_folding(entry):
        return None
    if isinstance(module, nn.PReLU):  # whose channels are the second axis, ours the last
        return Act(entry, name, module, {}, {"slope": "weight"}) if module.num_parameters == 1 else None
    if not all(isinstance(value, (int, float)) for value in params.values()):
        return None
    return Act(entry, name, module, {}, {param: param for param in params})


def _worth_folding(entry: Activation) -> bool:
    return entry.arity == 1 and entry.name != "identity"


def _recognised(module: nn.Module) -> Activation | None:
    """The activation without parameters that the module computes on a grid, in float64: other libraries have classes of their own."""
    if isinstance(module, nn.modules.dropout._DropoutNd) or next(module.children(), None) is not None:
        return None
    if (
        any(True for _ in itertools.chain(module.parameters(), module.buffers()))
        or type(module).forward is nn.Module.forward
    ):
        return None
    try:
        with torch.no_grad():
            y = module.forward(_GRID)  # a call would run a user's hooks
    except Exception:  # it wants something else than a tensor, or another shape
        return None
    if not isinstance(y, Tensor) or y.shape != _GRID.shape or y.dtype != _GRID.dtype:
        return None
    return next((ACTIVATIONS[name] for name, known in _values().items() if torch.allclose(y, known, 1e-9, 1e-9)), None)


@functools.cache
def _values() -> dict[str, Tensor]:
    """What the activations that need no parameters compute on the grid."""
    return {
        name: entry.oracle(F, _GRID, *entry.params.values())
        for name, entry in ACTIVATIONS.items()
        if entry.arity == 1 and all(isinstance(default, float) for default in entry.params.values())
    }


def acts_of(module: nn.Module) -> list[Act]:
    """The activations among a module's children and attributes."""
    held = {**{name: value for name, value in vars(module).items() if not name.startswith("_")}, **module._modules}
    return [act for name, value in held.items() if not is_fused(value) and (act := act_of(name, value)) is not None]


def blocks_of(module: nn.Module) -> tuple[list[Block], str | None]:
    """(what the module may be, why it is none although its linear layers look so). Which it is, if any, a trial says."""
    linears = {name: child for name, child in module._modules.items() if is_linear(child)}
    acts = acts_of(module)
    shaped = list(_by_sizes(linears)) if len(linears) in (2, 3) and acts else []
    classes = {type(child) for child in linears.values()}
    if not shaped or len(classes) > 1:
        return [], None
    known = {*linears, *(act.name for act in acts)}
    rest = {name: child for name, child in module._modules.items() if child is not None and name not in known}
    others = [name for name, child in rest.items() if type(child) not in (nn.Dropout, nn.Identity)]
    if others:
        return [], f"it also holds {others[0]} ({type(rest[others[0]]).__name__})"
    (cls,) = classes
    dropouts = [name for name, child in rest.items() if type(child) is nn.Dropout]
    # Likelier ones first: a lone dropout stands between, a second one behind.
    places = itertools.product([*dropouts, None], [*dropouts[1:], None, *dropouts[:1]])
    return [
        Block(**names, act=act, cls=cls, between=between, after=after)
        for names, act, (between, after) in itertools.product(shaped, acts, places)
    ], None


def _by_sizes(linears: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Which layer may be which, likelier ones first: gate or up before down, gate before up."""
    sizes = {name: tuple(weight_of(layer).shape) for name, layer in linears.items()}  # (out, in)
    for order in itertools.permutations(linears):
        outs_and_ins = [sizes[name] for name in order]
        if len(order) == 3:
            (gate, up, down) = outs_and_ins
            if gate == up and down[1] == up[0]:
                yield {"gate": order[0], "up": order[1], "down": order[2]}
        else:
            up, down = outs_and_ins
            if down[1] == up[0]:
                yield {"up": order[0], "down": order[1]}
            elif 2 * down[1] == up[0]:
                yield {"gate": order[0], "up": order[0], "down": order[1]}
                yield {"gate": order[0], "up": order[0], "down": order[1], "gate_second": True}


def runs_of(sequential: nn.Sequential) -> list[Run]:
    """The runs linear, activation, (dropout,) linear, which need no trial: an nn.Sequential calls one after the other."""
    children = list(sequential._modules.items())
    runs: list[Run] = []
    at = 0
    while at < len(children):
        run = _run_at(children, at)
        if run is not None:
            runs.append(run)
        at = at + 1 if run is None else run.last  # its down may be another's up
    return [run for i, run in enumerate(runs) if i == 0 or run.first > runs[i - 1].last]


def _run_at(children: list[tuple[str, Any]], at: int) -> Run | None:
    (up_name, up), *rest = children[at : at + 4]
    if not is_linear(up) or len(rest) < 2:
        return None
    act = act_of(*rest[0])
    dropped = type(rest[1][1]) is nn.Dropout
    last = rest[2:3] if dropped else rest[1:2]
    if act is None or not last or not is_linear(last[0][1]):
        return None
    down_name, down = last[0]
    if type(down) is not type(up) or weight_of(down).shape[1] != weight_of(up).shape[0]:
        return None
    block = Block(up_name, down_name, act, type(up), between=rest[1][0] if dropped else None)
    return Run(at, [name for name, _ in children[at : at + 3 + dropped]], block)


def lone_layers(owner: nn.Module) -> list[str]:
    """The linear layers whose sizes no other of the owner's has (that is a gated MLP, of which one gate would be the lesser half), if the
    owner is a block of a model rather than the model, which has stacks of blocks."""
    stacks = [module for module in owner.modules() if isinstance(module, nn.ModuleList)]
    if any(next(block.children(), None) is not None for stack in stacks for block in stack):
        return []
    sizes = {name: tuple(weight_of(child).shape) for name, child in owner._modules.items() if is_linear(child)}
    return [name for name in sizes if list(sizes.values()).count(sizes[name]) == 1]
