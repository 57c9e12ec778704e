"""What every launch of a Triton kernel needs."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..applied import Applied
from ..catalogue import Keep, formulas
from .epilogue import Epilogue
from .plan.chips import machine, precision
from .plan.configs import Config
from .vocabulary import device_function


def epilogue_of(
    applied: Applied,
    bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    stride: int = 0,
    signs: Tensor | None = None,
) -> Epilogue:
    """The record that kernels take. stride: the distance of the rows of z, kept or to be kept; signs: in its place, packed bits."""
    params = tuple(v.resolve_neg().contiguous() if isinstance(v, Tensor) else v for v in applied.values)
    return Epilogue(bias, up_bias, params, applied.dropout and applied.dropout.argument(), stride, signs)


def forward_functions(applied: Applied, dtype: torch.dtype) -> dict[str, Any]:
    """The forward kernels' compile-time arguments for this activation."""
    act = applied.act.gate or applied.act
    return {
        "value": device_function(act.value, dtype),
        "GATED": act.arity == 1,
        "PARAM_STRIDES": _param_strides(applied.values),
    }


def gradient_functions(applied: Applied, dtype: torch.dtype, keep: Keep) -> dict[str, Any]:
    """The derivative kernels' compile-time arguments for this activation and what was kept."""
    found = formulas(applied.act, applied.values, keep)
    functions = {name: formula and device_function(formula, dtype) for name, formula in found.items()}
    return {**functions, "PARAM_STRIDES": _param_strides(applied.values)}


def _param_strides(values: tuple) -> tuple[int | None, ...]:
    """The stride of each parameter along the columns, 0 of one element; None of a number."""
    return tuple((0 if v.numel() == 1 else 1) if isinstance(v, Tensor) else None for v in values)


def on_device(x: Tensor) -> Any:
    """Triton launches on the current device; make it that of x."""
    return torch.cuda.device_of(x)


def tiles(m: int, n: int, config: Config) -> int:
    return triton.cdiv(m, config.BLOCK_M) * triton.cdiv(n, config.BLOCK_N)


def descriptor(matrix: Tensor | None, block: tuple[int, int]) -> TensorDescriptor | None:
    return None if matrix is None else TensorDescriptor.from_tensor(matrix, list(block))


def tile_arguments(
    block: tuple[int, int] | None, *matrices: Tensor | None
) -> Sequence[Tensor | TensorDescriptor | None]:
    """The matrices as an epilogue takes them: as descriptors of blocks of that size, or as they are."""
    return matrices if block is None else [descriptor(matrix, block) for matrix in matrices]


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
