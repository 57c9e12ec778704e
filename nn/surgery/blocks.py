"""Modules that are one of our blocks as a whole, so that it may take them over."""

import ast
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from ..activated import Activated
from ..plain import unhooked, without_global_hooks
from .candidates import examined, site_row
from .recognition import Known, activation_of
from .remade import Plan, remade_from
from .roles import Roles
from .sites import Site, runs_at
from .trial import HIDDEN, TOLERANCE, called, relative, small_layer, twin_of


class Block(NamedTuple):
    """down(dropout(act(up(x)))), or the same of act(gate(x)) ⊙ up(x). layers: by the names that our modules give them."""

    layers: dict[str, nn.Linear]
    activation: Known
    dropout: float


class Unfit(Exception):
    """Raised for a module that is no such block; the message says why."""


_NONE = "its forward is not down(dropout(act(up(x)))), nor the same of act(gate(x)) * up(x)"


def block_of(module: nn.Module, gated: bool, make: Callable[[Block], nn.Module]) -> Block:
    """Return the block that the module's forward computes, tried against what `make` makes of it; Unfit if it is none."""
    with _disable_current_modes(), torch.inference_mode(False), torch.device("cpu"), without_global_hooks():
        block = _read(module, gated)
        try:
            evaluation, training = _differences(module, block, gated, make)
        except Exception as error:  # whatever a user's forward raises
            raise Unfit(
                f"its forward cannot be tried with fewer hidden units: {type(error).__name__}: {error}"
            ) from error
    if evaluation > TOLERANCE:
        raise Unfit(f"its forward does more, its results differ by {evaluation:.1e}")
    if training > TOLERANCE:
        raise Unfit("it drops more than hidden units: give a dropout behind its last layer p=0, or leave it to `fuse`")
    return block


def _read(module: nn.Module, gated: bool) -> Block:
    if remade_from(type(module)):
        raise Unfit("`fuse` has changed it; `unfuse` it first")
    if isinstance(module, Activated):
        raise Unfit("it is fused already")
    rows, plan = examined("", module, verify=True)
    if plan is None:
        raise Unfit("".join(row.reason for row in rows[:1]) or _NONE)
    try:
        site, slots = _sequential(module) if plan.methods[0].home is nn.Sequential else _site(module, plan)
    except LookupError as error:
        raise Unfit(f"only a call knows {error}") from error
    if bool(site.gated) != gated:
        raise Unfit(
            "it is gated: FusedGatedMLP takes it over" if site.gated else "it is not gated: FusedMLP takes it over"
        )
    if site.gated not in ("", "pair"):
        raise Unfit("its gate and up are one layer, which two cannot share; leave it to `fuse`")
    layers = {name: slots[name] for name in ("gate", "up", "down") if slots.get(name) is not None}
    for layer in layers.values():
        if not isinstance(layer, nn.Linear):
            raise Unfit(
                f"a {type(layer).__name__}'s weight is [in, out], which no nn.Linear can share; leave it to `fuse`"
            )
    if len({layer.weight.dtype for layer in layers.values()}) > 1:
        raise Unfit("its layers have different dtypes")
    known = Known(site.entry, {}) if site.entry else activation_of(slots["act"])
    if known is None or not unhooked(module):
        raise Unfit(_NONE if known is None else "its hooks would be lost")
    if any(isinstance(inner, nn.Dropout) and inner.training != module.training for inner in module.modules()):
        raise Unfit("its dropout is in another mode than itself: call train() or eval() on the whole")
    taken = {id(tensor) for layer in layers.values() for tensor in layer.parameters()} | {
        *map(id, known.params.values())
    }
    others = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if id(tensor) not in taken]
    if others:
        raise Unfit(f"it does more, with {others[0]}; leave it to `fuse`")
    return Block(layers, known, slots.get("dropout", 0.0))


def _site(module: nn.Module, plan: Plan) -> tuple[Site, dict[str, Any]]:
    """Return the one site that ends with a linear layer and what its call is given; LookupError for what only the call knows."""
    sites = [
        (method, found)
        for method in plan.methods
        for found in method.found
        if found.site.down and site_row("", module, method, found, verify=False)
    ]
    if len(sites) != 1:
        raise Unfit(_NONE)
    method, found = sites[0]
    roles, slots = Roles(method.inner, module), found.slots
    given: dict[str, Any] = {name: roles.value(slots[name]) for name in ("gate", "up", "down") if name in slots}
    given["act"] = None if found.site.entry else roles.activation(slots["act"])
    dropout = slots.get("dropout")
    if dropout is not None:
        given["dropout"] = roles.value(dropout.elts[1]) if isinstance(dropout, ast.Tuple) else roles.value(dropout).p
    return found.site, given


def _sequential(module: nn.Module) -> tuple[Site, dict[str, Any]]:
    """The same for the children of an nn.Sequential, of which there may be more."""
    runs = runs_at(list(module._modules.values()), 0)
    if not runs or not runs[0][0].down:
        raise Unfit(_NONE)
    site, (act, up, _, down, dropout), _ = runs[0]
    return site, {"act": act, "up": up, "down": down, "dropout": 0.0 if dropout is None else dropout.p}


def _differences(
    module: nn.Module, block: Block, gated: bool, make: Callable[[Block], nn.Module]
) -> tuple[float, float]:
    """Return how much the module and what is made of it differ, with layers of few hidden units, in evaluation and training."""
    generator = torch.Generator("cpu").manual_seed(0)
    small: dict[str, nn.Linear] = {}
    for name, layer in block.layers.items():
        sizes = (HIDDEN, layer.out_features) if name == "down" else (layer.in_features, HIDDEN)
        small[name] = small_layer(*sizes, generator)
        if layer.bias is None:
            small[name].bias = None
    twin = twin_of(module, {id(block.layers[name]): layer for name, layer in small.items()})
    for inner in twin.modules():
        if isinstance(inner, nn.Dropout) and inner.p:
            inner.p = 0.5  # so that it is seen to drop something
    made = make(_read(twin, gated))
    x = torch.randn(2, 8, small["up"].in_features, generator=generator, dtype=torch.float64, device="cpu")
    evaluation, training = (
        max(
            max(map(relative, called(made.train(mode), scale * x), called(twin.train(mode), scale * x)))
            for scale in (1.0, 50.0, 1e6)
        )
        for mode in (False, True)
    )
    return evaluation, training
