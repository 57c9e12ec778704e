"""What a call brings to the launchers, and what every launch needs."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..catalogue import Activation
from .chips import machine, precision
from .configs import Config
from .dropout import Dropout
from .vocabulary import device_function


class Operands(NamedTuple):
    """What the launchers need of a call: x [..., K], one or two weights with their biases, and the activation's parameters.

    `weight` is [N, K], or packed [2N, K] where `gated` says so without an up_weight; `values` are numbers and tensors in the formula's
    order.
    """

    x: Tensor
    weight: Tensor
    up_weight: Tensor | None
    bias: Tensor | None
    up_bias: Tensor | None
    act: Activation
    values: tuple
    gated: bool
    dropout: Dropout | None = None

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


def gradients(act: Activation, values: tuple, gated: bool, dtype: torch.dtype, kept: str) -> dict[str, Any]:
    """The derivative kernels' functions for this activation, written in what was kept: z ("input"), or y ("output", "sign")."""
    base = act.gate or act
    grad: Callable | None
    if base.arity == 2:
        grad, grad_up = base.derivatives["a"], base.derivatives["b"]
    else:
        grad, grad_up = base.derivatives["x"] if kept == "input" else base.output_derivative(values), None
    learned = next((name for name, v in zip(base.params, values, strict=True) if isinstance(v, Tensor)), "")
    formulas = {"value": base.value, "grad": grad, "grad_up": grad_up, "grad_param": base.derivatives.get(learned)}
    return {name: formula and device_function(formula, dtype) for name, formula in formulas.items()}


def halves(matrix: Tensor | None, n: int, gated: bool) -> tuple[Tensor | None, Tensor | None]:
    """gate and up of a gated layer's [M, 2N], else the matrix and None."""
    return (matrix, None) if matrix is None or not gated else (matrix[:, :n], matrix[:, n:])


def rows_of(x: Tensor) -> Tensor:
    """x [..., N] as a matrix [M, N], a view where its strides allow one."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def on_device(x: Tensor) -> Any:
    """Triton launches on the current device; make it that of x."""
    return torch.cuda.device_of(x)


def tiles(m: int, n: int, config: Config) -> int:
    return triton.cdiv(m, config.BLOCK_M) * triton.cdiv(n, config.BLOCK_N)


def descriptor(matrix: Tensor | None, block: tuple[int, int]) -> TensorDescriptor | None:
    return None if matrix is None else TensorDescriptor.from_tensor(matrix, list(block))


def descriptors_serve(*matrices: Tensor | None) -> bool:
    """Whether the descriptor kernels serve these matrices, the first of them on their chip and in its precision.

    Tensor descriptors want unit column strides, rows that do not overlap, bases and row strides of 16 bytes, and no empty axis.
    """
    first = matrices[0]
    assert first is not None
    if not machine(first).descriptors or precision(first.dtype) == "ieee":
        return False
    return all(
        t.shape[1] > 0
        and t.stride(1) == 1
        and t.stride(0) >= t.shape[1]
        and t.stride(0) * t.element_size() % 16 == 0
        and t.data_ptr() % 16 == 0
        for t in matrices
        if t is not None
    )
