"""What a call brings to the launchers, and what every launch needs."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..catalogue import Activation


class Operands(NamedTuple):
    """What the launchers need of a call: x [..., K], one or two weights with their biases, and the activation's parameters.

    `weight` is [N, K], or packed [2N, K] where `gated` says so; `values` are numbers and tensors in the formula's order.
    """

    x: Tensor
    weight: Tensor
    up_weight: Tensor | None
    bias: Tensor | None
    up_bias: Tensor | None
    act: Activation
    values: tuple
    gated: bool

    def halves(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """(weight, up weight, bias, up bias), packed ones as views, biases of stride 1."""
        weight, up_weight = self.weight, self.up_weight
        bias, up_bias = (None if b is None else b.contiguous() for b in (self.bias, self.up_bias))
        if self.gated and up_weight is None:
            n = weight.shape[0] // 2
            weight, up_weight = weight[:n], weight[n:]
            bias, up_bias = (None, None) if bias is None else (bias[:n], bias[n:])
        return weight, up_weight, bias, up_bias


def param_arguments(values: tuple) -> tuple[tuple, tuple]:
    """(kernel arguments, PARAM_STRIDES) of an activation's parameters."""
    strides = tuple((0 if v.numel() == 1 else 1) if isinstance(v, Tensor) else None for v in values)
    return tuple(v.contiguous() if isinstance(v, Tensor) else v for v in values), strides


def rows_of(x: Tensor) -> Tensor:
    """x [..., N] as a matrix [M, N], a view where its strides allow one."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def on_device(x: Tensor) -> Any:
    """Triton launches on the current device; make it that of x."""
    return torch.cuda.device_of(x)
