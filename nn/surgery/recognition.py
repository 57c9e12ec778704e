"""Recognising the activation that a module, function or method is at this moment: by what it computes, never by a name."""

import functools
import types
from typing import Any, NamedTuple

import torch
from torch import nn

from epilogue.catalogue import ACTIVATIONS, Activation
from epilogue.lookup import bind_params, resolve

from ..plain import unhooked
from .functions import WIDE, Reads, calls_only_torch, holds_constants, is_fixed, reads_of
from .grid import computed


class Known(NamedTuple):
    """An activation and its parameters. widens: autocast may run what computes it in float32, whose result is then float32."""

    entry: Activation
    params: dict[str, Any]
    widens: bool = False


def activation_of(held: Any) -> Known | None:
    """Return the activation that a call of the object computes, or None if the call does anything else or more."""
    return None if isinstance(held, nn.Module) and not unhooked(held) else recognised(held)


def recognised(held: Any, run: bool = True) -> Known | None:
    """Return the activation that the object itself computes, whatever hooks it has; None if it is none.

    run: a function may be called to see what it computes, even if it calls more than torch's functions.
    """
    if isinstance(held, nn.Module):
        cls = type(held)
        if cls in _TORCH_CLASSES:
            return _known_of_torch(held, *_TORCH_CLASSES[cls])
        if held._modules or held._parameters or held._buffers or isinstance(held, nn.modules.dropout._DropoutNd):
            return None
        return _looked_up(cls.forward, held)
    if isinstance(held, types.MethodType):
        return _looked_up(held.__func__, held.__self__) if isinstance(held.__self__, nn.Module) else None
    if isinstance(held, (functools.partial, types.BuiltinFunctionType, types.FunctionType, Activation)):
        known = _resolved(held)
        if known is None and isinstance(held, types.FunctionType) and (run or calls_only_torch(held)):
            return _looked_up(held, None)
        return known
    return None


def _resolved(held: Any) -> Known | None:
    try:
        entry, params = resolve(held)
    except (TypeError, ValueError):
        return None
    return _bound(entry, params) if entry.name != "identity" else None


def _bound(entry: Activation, params: dict[str, Any]) -> Known | None:
    """Return the activation with these parameters, or None unless they are numbers that ours takes."""
    try:
        bind_params(entry, params)
    except (TypeError, ValueError):
        return None
    numbers = all(type(value) in (int, float) for value in params.values())
    return Known(entry, params, entry.name in WIDE) if numbers else None


def _torch_classes() -> dict[type, tuple[Any, tuple[str, ...], dict[tuple, Known]]]:
    """Return (forward, attributes, known) by class, for torch.nn's activations.

    The attributes are those that are not parameters of ours; known holds the activation by what these hold.
    """
    found: dict[type, Any] = {nn.PReLU: (nn.PReLU.forward, (), {(): Known(ACTIVATIONS["prelu"], {})})}
    arguments: dict[type, list[dict[str, Any]]] = {
        nn.GELU: [{}, {"approximate": "tanh"}],
        nn.Threshold: [{"threshold": 0.5, "value": 0.0}],
    }
    for cls in vars(nn.modules.activation).values():
        if not isinstance(cls, type) or cls.__module__ != nn.modules.activation.__name__ or cls in found:
            continue
        try:
            made = [cls(**given) for given in arguments.get(cls, [{}])]
            known = [_resolved(module) for module in made]
        except TypeError:  # an attention
            continue
        if known[0] is not None:
            plain = ("training", "inplace", *known[0].entry.params)
            others = tuple(name for name in vars(made[0]) if name[0] != "_" and name not in plain)
            by_others = dict(zip([tuple(getattr(each, name) for name in others) for each in made], known, strict=True))
            found[cls] = (cls.forward, others, by_others)  # type: ignore[attr-defined]
    return found


_TORCH_CLASSES = _torch_classes()


def _known_of_torch(held: Any, forward: Any, others: tuple[str, ...], known: dict[tuple, Known]) -> Known | None:
    """Return what a module of torch.nn computes now, given its class's entry in _TORCH_CLASSES."""
    if type(held).forward is not forward:  # patched
        return None
    if isinstance(held, nn.PReLU):  # whose channels are the second axis, ours the last
        return known[()]._replace(params={"slope": held.weight}) if held.weight.numel() == 1 else None
    found = known.get(tuple([getattr(held, name) for name in others])) if others else known[()]
    if found is None or not found.params:
        return found
    return _bound(found.entry, {name: getattr(held, name) for name in found.params})


_TABLE: dict[Any, tuple[Reads | None, dict[tuple, Known | None]]] = {}
"""(what it reads, what it computes by the values of that) for each function that was looked up."""


def _looked_up(function: Any, owner: Any) -> Known | None:
    """Return what a function computes, as a method of `owner` unless that is None: from the table, or tried on a grid."""
    if torch.compiler.is_compiling():
        # A compiled graph would guard all that the table holds, so that it goes by the name of transformers' classes alone.
        if not function.__module__ == type(owner).__module__ == "transformers.activations":
            return None
        known = _resolved(owner)
        return None if known is None else known._replace(widens=not WIDE.isdisjoint(function.__code__.co_names))
    if function not in _TABLE:
        if not isinstance(function, types.FunctionType) or not holds_constants(function):
            return None
        _TABLE[function] = reads_of(function, owner), {}
    reads, known_by_values = _TABLE[function]
    if reads is None:
        return None
    values = [getattr(owner, name, None) for name in reads.attributes]
    values += [function.__globals__.get(name) for name in reads.globals]
    values += [cell.cell_contents for cell in function.__closure__ or ()]
    if not all(map(is_fixed, values)):
        return None
    key = (len(ACTIVATIONS), *((type(value), value) for value in values))  # the catalogue may grow
    if key not in known_by_values:
        if len(known_by_values) > 100:  # a number that every step changes
            known_by_values.clear()
        entry = computed(function if owner is None else functools.partial(function, owner))
        known_by_values[key] = None if entry is None else Known(entry, {}, reads.widens)
    return known_by_values[key]
