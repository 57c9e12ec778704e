"""Which children may be read rather than called: what their call would do, and nothing more."""

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
"""Linear layers, and the forward that was looked at: a class may be patched."""
_CALL = nn.Module.__call__
_FORWARDS = {cls: cls.forward for cls in (nn.Dropout, nn.Identity)}


_EVERYBODYS = (
    _module._global_forward_hooks,
    _module._global_forward_pre_hooks,
    _module._global_backward_hooks,
    _module._global_backward_pre_hooks,
)


def _is_a_tracers(call: Any) -> bool:
    """Whether it was torch that patched nn.Module's __call__ for all, as its tracers do, rather than somebody who counts calls."""
    return getattr(call, "__globals__", {}).get("__name__", "").startswith("torch.")


def unhooked(module: nn.Module) -> bool:
    """Whether calling the module is calling its class's forward: no hooks, its own or everybody's, no forward of the instance's own."""
    call = type(module).__call__
    return (call is _CALL or (call is nn.Module.__call__ and _is_a_tracers(call))) and not (
        "forward" in module.__dict__  # accelerate's hooks replace it
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or any(_EVERYBODYS)
    )


@contextmanager
def without_global_hooks() -> Iterator[None]:
    """Hooks on all modules are not called: those who set them expect their own calls."""
    before = [dict(hooks) for hooks in _EVERYBODYS]
    for hooks in _EVERYBODYS:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, known in zip(_EVERYBODYS, before, strict=True):
            hooks.update(known)


def is_exactly(module: Any, cls: type[nn.Module]) -> bool:
    """Whether the module is of that class, as it was when this package was imported, and does nothing more."""
    return type(module) is cls and _FORWARDS[cls] is cls.forward and unhooked(module)


def parameters_of(layer: Any) -> tuple[Tensor, Tensor | None] | None:
    """(weight [out, in], bias) of a linear layer, a view of the weight of Conv1D; None where the layer does anything which reading them
    would skip, or is none."""
    if not is_linear(layer) or not unhooked(layer):
        return None
    own = layer._parameters  # past a lookup that costs more than the rest
    weight, bias = (own["weight"], own.get("bias")) if "weight" in own else (layer.weight, layer.bias)
    if not is_plain(weight) or weight.ndim != 2 or not (bias is None or is_plain(bias)):
        return None
    return (weight if isinstance(layer, nn.Linear) else weight.t()), bias


def is_linear(module: Any) -> bool:
    """Exactly nn.Linear, transformers' Conv1D, whose weight is stored [in, out], or a class that adds to nn.Linear a forward and nothing
    else (Falcon's), if that computes what nn.Linear's does."""
    cls = type(module)
    if cls not in _LINEARS:
        if torch.compiler.is_compiling() or not isinstance(module, nn.Module):
            return False
        conv1d = (
            cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"
        )  # which need not be installed
        own = {name for name in vars(cls) if not name.startswith("__")} | (vars(cls).keys() & _SPECIAL)
        falcons = cls.__bases__ == (nn.Linear,) and own == {"forward"} and _reads_parameters_alone(cls.forward)
        _LINEARS[cls] = cls.forward if conv1d or (falcons and _computes_linear(module)) else None
    known = _LINEARS[cls]
    return known is not None and known is cls.forward


_SPECIAL = {"__call__", "__getattr__", "__getattribute__"}
"""Methods by which a class does more at a call or a look-up."""


def _reads_parameters_alone(forward: Any) -> bool:
    """Whether the forward reads nothing that may be another at another time."""
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
