"""What the fused modules share: an activation and its parameters."""

from typing import Any

import torch
from torch import nn

from epilogue.lookup import resolve_call


class Activated(nn.Module):
    """A module with an activation. Numbers are plain attributes; an nn.Parameter is the module's own and learns; a tensor is a buffer.

    `Gated = True` in a subclass admits pairs (maxout, bilinear) and the gated variants' names (swiglu).
    """

    Gated = False

    def __init__(self, activation: Any, params: dict[str, Any], bias: bool) -> None:
        super().__init__()
        if not isinstance(bias, bool):
            raise TypeError(
                f"{type(self).__name__}: bias must be True or False, got {bias!r}; an activation goes by keyword, activation=…"
            )
        act, values = resolve_call(type(self).__name__, activation, params, self.Gated)
        self.activation = act
        self._numbers: dict[str, float] = {}
        for name, value in zip(act.params, values, strict=True):
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            elif isinstance(value, torch.Tensor):
                self.register_buffer(name, value)
            else:
                self._numbers[name] = value

    def activation_params(self) -> dict[str, Any]:
        """The activation's keywords for this call."""
        if len(self._numbers) == len(self.activation.params):
            return self._numbers
        return {name: self._numbers.get(name, getattr(self, name, None)) for name in self.activation.params}

    def activation_repr(self) -> str:
        learned = {name: getattr(self, name) for name in self.activation.params if name not in self._numbers}
        shown = [f"{name}={value:g}" for name, value in self._numbers.items()]
        shown += [f"{name}={list(value.shape)}" for name, value in learned.items()]
        return ", ".join([f"activation={self.activation.name!r}", *shown])
