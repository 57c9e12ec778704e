"""The base of the fused modules: an activation and its parameters."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.types import Device

from epilogue.lookup import resolve_call
from epilogue.typing import ActivationLike


class Activated(nn.Module):
    """A module with an activation. Numbers are plain attributes; an nn.Parameter is the module's own and learns; a tensor is a buffer.

    `Gated = True` in a subclass admits pairs (maxout, bilinear) and the gated variants' names (swiglu).
    """

    Gated = False
    # Empty until the constructor's end: the resets within it must not write to tensors that the user gave.
    _initial: dict[str, Any] = {}  # noqa: RUF012

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor: ...

    def __init__(
        self, activation: ActivationLike, params: Mapping[str, float | Tensor], bias: bool, *sizes: object
    ) -> None:
        super().__init__()
        for size in sizes:
            if not hasattr(size, "__index__"):  # which traced sizes have, too
                raise TypeError(
                    f"{type(self).__name__}: features must be whole numbers, got {size!r}; an activation goes by keyword, activation=…"
                )
        if not isinstance(bias, bool):
            raise TypeError(
                f"{type(self).__name__}: bias must be True or False, got {bias!r}; an activation goes by keyword, activation=…"
            )
        act, values = resolve_call(type(self), activation, params, self.Gated)
        self.activation = act
        self._numbers: dict[str, float] = {}
        for name, value in zip(act.params, values, strict=True):
            if isinstance(value, nn.Parameter):
                self.register_parameter(_attribute(name), value)
            elif isinstance(value, torch.Tensor):
                self.register_buffer(_attribute(name), value)
            else:
                self._numbers[name] = value

    def _settle(self, activation: ActivationLike, device: Device, dtype: torch.dtype | None) -> None:
        """Note what `reset_activation` restores, and bring tensors to `device` and `dtype`; called at the end of a constructor.

        A tensor on the meta device holds no numbers: nn.PReLU's `init` stands for them, else the formula's default.
        """
        self._initial = {}
        for name in self.activation.params:
            given = getattr(self, _attribute(name), None)
            if name in self._numbers or given is None:
                continue
            if given.is_meta or isinstance(given, FakeTensor):
                default = activation.init if isinstance(activation, nn.PReLU) else self.activation.params[name]
                self._initial[name] = 0.0 if default is inspect.Parameter.empty else default
            else:
                values = given.detach().reshape(-1)
                uniform = values.numel() and (values == values[0]).all()
                self._initial[name] = values[0].item() if uniform else given.detach().cpu().clone()
            there = torch.empty_like(given, device=device, dtype=dtype, requires_grad=False)
            if (there.device, there.dtype) != (given.device, given.dtype):
                parameter = isinstance(given, nn.Parameter)
                setattr(self, _attribute(name), nn.Parameter(there, given.requires_grad) if parameter else there)
                _fill(there, self._initial[name])

    def reset_activation(self) -> None:
        """Set the activation's learnable parameters and buffers to what the constructor was given."""
        for name, initial in self._initial.items():
            _fill(getattr(self, _attribute(name)).detach(), initial)

    def activation_params(self) -> dict[str, Any]:
        """Return the activation's keywords for this call."""
        if len(self._numbers) == len(self.activation.params):
            return self._numbers
        return {name: self._numbers.get(name, getattr(self, _attribute(name), None)) for name in self.activation.params}

    def activation_repr(self) -> str:
        learned = {
            name: getattr(self, _attribute(name)) for name in self.activation.params if name not in self._numbers
        }
        shown = [f"{name}={value:g}" for name, value in self._numbers.items()]
        shown += [f"{name}={list(value.shape)}" for name, value in learned.items()]
        return ", ".join([f"activation={self.activation.name!r}", *shown])


def _attribute(name: str) -> str:
    """The module's attribute for a parameter of the activation, clear of an MLP's children and of nn.Module's methods."""
    taken = name in ("gate", "up", "down") or name.startswith("activation_") or hasattr(Activated, name)
    return f"activation_{name}" if taken else name


def _fill(tensor: torch.Tensor, initial: float | torch.Tensor) -> None:
    """Write a number everywhere (which a sharded tensor takes too), or a tensor."""
    if isinstance(initial, torch.Tensor):
        tensor.copy_(initial)
    else:
        tensor.fill_(initial)
