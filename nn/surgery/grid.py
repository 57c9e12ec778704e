"""The activation that a function computes, found by its values and gradients on a grid."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from epilogue.catalogue import ACTIVATIONS, Activation

_ELEMENTWISE = {"hardswish", "hardswish_", "log_sigmoid_forward", "_prelu_kernel", "gelu_", "clone", "lift_fresh"}
_ELEMENTWISE |= {"zeros_like", "ones_like", "full_like", "scalar_tensor", "detach"}
"""Torch's elementwise operators that are not tagged so. A function that detaches is found by its gradient."""

_DEVICE = Tensor.device.__get__


def computed(function: Any) -> Activation | None:
    """Return the activation without parameters that a function of one tensor computes on the grid, in float64, with its gradient; or None.

    A grid says nothing of shapes, dtypes and states: the function must be made of elementwise operations alone.
    """
    with _disable_current_modes(), torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        grid, x = _grid().clone(), _near().clone().requires_grad_()  # clones, into which it may write
        try:
            with torch.no_grad(), _Elementwise() as elementwise, _Unasked("cuda", elementwise):
                y = function(grid)
            with torch.enable_grad(), _Elementwise() as elementwise, _Unasked("cpu", elementwise):
                z = function(x.clone())
            (dx,) = torch.autograd.grad(z, x, torch.ones_like(x))
        except Exception:  # it wants something else than a tensor, or another shape
            return None
        if y.shape != _grid().shape or y.dtype != _grid().dtype:
            return None
        for entry in ACTIVATIONS.values():
            if (
                entry.arity == 1
                and entry.name != "identity"
                and all(isinstance(p, float) for p in entry.params.values())
            ):
                values, gradients = _values(entry)
                if torch.allclose(y, values, 1e-9, 1e-9, equal_nan=True) and torch.allclose(dx, gradients, 1e-8, 1e-8):
                    return entry
    return None


class _Elementwise(TorchDispatchMode):
    """Refuses every operator that is not elementwise: views, reductions, random numbers."""

    ran = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True makes torch import its compiler, which takes a second, to keep it away from this method

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.pointwise not in op.tags and op.overloadpacket.__name__ not in _ELEMENTWISE:
            raise TypeError(f"{op} is not elementwise")
        self.ran += 1
        return op(*args, **(kwargs or {}))


class _Unasked(TorchFunctionMode):
    """Refuses every function that asks a tensor for more than its elements (its dtype, its shape, whether it is true), or that would do
    something to another tensor (a cast, a copy to a device). Every tensor says that it is on `device`."""

    def __init__(self, device: str, elementwise: _Elementwise) -> None:
        super().__init__()
        self.device, self.elementwise = torch.device(device), elementwise

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function == _DEVICE:
            return self.device
        before = self.elementwise.ran
        found = function(*args, **(kwargs or {}))
        if not isinstance(found, Tensor) or self.elementwise.ran == before:
            raise TypeError(f"{function} computes nothing")
        return found


@functools.cache
def _near() -> Tensor:
    """The part of the grid on which gradients are compared; it has 0 and 3, where there are kinks."""
    return torch.linspace(-12, 12, 4001, dtype=torch.float64, device="cpu").round(decimals=3)


@functools.cache
def _grid() -> Tensor:
    far = [-torch.inf, -1e30, -1e5, -1e3, 1e3, 1e5, 1e30, torch.inf, torch.nan]
    return torch.cat([_near(), torch.tensor(far, dtype=torch.float64, device="cpu")])


@functools.cache
def _values(entry: Activation) -> tuple[Tensor, Tensor]:
    """Return an activation's values on the grid, with its parameters' defaults, and its gradients on the near part."""
    params = tuple(entry.params.values())
    with torch.enable_grad():
        x = _near().clone().requires_grad_()
        (dx,) = torch.autograd.grad(entry.oracle(F, x, *params).sum(), x)
    return entry.oracle(F, _grid(), *params), dx
