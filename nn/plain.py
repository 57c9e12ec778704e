"""Plain children: those whose parameters may be read instead of calling them, since their call would do nothing more."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _module

from epilogue.eager import is_plain

_LINEARS: dict[type, Any] = {nn.Linear: nn.Linear.forward}
"""The forward of each class of linear layers when it was first seen, since a class may be patched later; None for other classes."""
_CALL = nn.Module.__call__
_FORWARDS = {cls: cls.forward for cls in (nn.Dropout, nn.Identity)}
_GLOBAL_HOOKS = (
    _module._global_forward_hooks,
    _module._global_forward_pre_hooks,
    _module._global_backward_hooks,
    _module._global_backward_pre_hooks,
)


def _is_torchs(call: Any) -> bool:
    """Return whether nn.Module's __call__ was patched by torch, whose tracers do so, rather than by somebody who counts calls."""
    return getattr(call, "__globals__", {}).get("__name__", "").startswith("torch.")


def unhooked(module: nn.Module) -> bool:
    """Return whether a call of the module only calls its class's forward: no hooks, own or global, and no forward in the instance."""
    call = type(module).__call__
    return (call is _CALL or (call is nn.Module.__call__ and _is_torchs(call))) and not (
        "forward" in module.__dict__  # accelerate's hooks replace it
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or any(_GLOBAL_HOOKS)
    )


@contextmanager
def without_global_hooks() -> Iterator[None]:
    """Take global hooks away for a while: whoever set them expects calls of the model, not ours."""
    before = [dict(hooks) for hooks in _GLOBAL_HOOKS]
    for hooks in _GLOBAL_HOOKS:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, known in zip(_GLOBAL_HOOKS, before, strict=True):
            hooks.update(known)


def is_exactly(module: Any, cls: type[nn.Module]) -> bool:
    """Return whether the module is exactly of that class, which is as it was when this package was imported, and does nothing more."""
    return type(module) is cls and _FORWARDS[cls] is cls.forward and unhooked(module)


def parameters_of(layer: Any) -> tuple[Tensor, Tensor | None] | None:
    """Return (weight [out, in], bias) of a linear layer; the weight of a Conv1D as a view.

    None if the module is no linear layer, or does anything that would be skipped by reading them.
    """
    if not is_linear(layer) or not unhooked(layer):
        return None
    own = layer._parameters  # past a lookup that costs more than the rest
    weight, bias = (own["weight"], own.get("bias")) if "weight" in own else (layer.weight, layer.bias)
    if not is_plain(weight) or weight.ndim != 2 or not (bias is None or is_plain(bias)):
        return None
    return (weight if isinstance(layer, nn.Linear) else weight.t()), bias


def is_linear(module: Any) -> bool:
    """Return whether the module is a linear layer and its class is still as it was when first seen.

    Linear layers are nn.Linear itself, transformers' Conv1D, whose weight is stored [in, out], and classes that add nothing to nn.Linear
    but a forward (Falcon's) that computes the same.
    """
    cls = type(module)
    if cls not in _LINEARS:
        if torch.compiler.is_compiling() or not isinstance(module, nn.Module):
            return False
        # By name, since transformers need not be installed.
        conv1d = cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"
        own = {name for name in vars(cls) if not name.startswith("__")} | (vars(cls).keys() & _SPECIAL)
        falcons = cls.__bases__ == (nn.Linear,) and own == {"forward"} and _reads_parameters_alone(cls.forward)
        _LINEARS[cls] = cls.forward if conv1d or (falcons and _computes_linear(module)) else None
    known = _LINEARS[cls]
    return known is not None and known is cls.forward


_SPECIAL = {"__call__", "__getattr__", "__getattribute__"}
"""Methods with which a class does more at a call or a look-up."""


def _reads_parameters_alone(forward: Any) -> bool:
    """Return whether the forward reads nothing that may change between calls."""
    code = getattr(forward, "__code__", None)
    return code is not None and {*code.co_names, *code.co_freevars} <= {
        "weight",
        "bias",
        "T",
        "t",
        "mT",
        "matmul",
        "torch",
        "F",
        "linear",
    }


def _computes_linear(layer: Any) -> bool:
    """Return whether the forward of the layer's class computes what nn.Linear's does, with a bias and without."""
    generator = torch.Generator("cpu").manual_seed(0)  # the user's stays as it is
    x, weight, bias = (
        torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu") for shape in ((2, 3, 5), (4, 5), (4,))
    )
    try:
        for b in (bias, None):
            twin = copy.copy(layer)
            twin.__dict__["_parameters"] = {
                "weight": nn.Parameter(weight),
                "bias": None if b is None else nn.Parameter(b),
            }
            with torch.no_grad():
                if not torch.allclose(type(layer).forward(twin, x), F.linear(x, weight, b), 1e-12, 1e-12):
                    return False
    except Exception:  # whatever a user's class raises
        return False
    return True
