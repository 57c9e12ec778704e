"""The arguments that launches of the Triton kernels share."""

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
from .vocabulary import device_function, device_functions


def epilogue_of(
    applied: Applied,
    bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    stride: int = 0,
    signs: Tensor | None = None,
) -> Epilogue:
    """The record that kernels take. stride: the row stride of z, kept or to be kept. signs: packed bits, kept in place of z."""
    params = tuple(v.resolve_neg().contiguous() if isinstance(v, Tensor) else v for v in applied.values)
    return Epilogue(bias, up_bias, params, applied.dropout.argument() if applied.dropout else None, stride, signs)


def forward_functions(applied: Applied, dtype: torch.dtype) -> dict[str, Any]:
    """The forward kernels' compile-time arguments for this activation."""
    act = applied.act.base
    return {
        "value": device_function(act.value, dtype),
        "GATED": act.arity == 1,
        "PARAM_STRIDES": _param_strides(applied.values),
    }


def gradient_functions(applied: Applied, dtype: torch.dtype, keep: Keep) -> dict[str, Any]:
    """The derivative kernels' compile-time arguments for this activation and `keep`."""
    found = formulas(applied.act, applied.values, keep)
    functions = {
        name: device_function(found[name], dtype) if found[name] else None for name in ("value", "grad", "grad_up")
    }
    grad_params = device_functions(found["grad_params"], dtype) if found["grad_params"] else None
    return {**functions, "grad_params": grad_params, "PARAM_STRIDES": _param_strides(applied.values)}


def count_of_arrays(applied: Applied) -> int:
    """The number of the activation's parameters that are tensors."""
    return sum(isinstance(value, Tensor) for value in applied.values)


def _param_strides(values: tuple) -> tuple[int | None, ...]:
    """The stride of each parameter along the columns: 0 for a tensor of one element, else 1; None for a number."""
    return tuple((0 if v.numel() == 1 else 1) if isinstance(v, Tensor) else None for v in values)


def on_device(x: Tensor) -> Any:
    """Make x's device the current one, on which Triton launches."""
    return torch.cuda.device_of(x)


def tiles(m: int, n: int, config: Config) -> int:
    return triton.cdiv(m, config.BLOCK_M) * triton.cdiv(n, config.BLOCK_N)


def descriptor(matrix: Tensor | None, block: tuple[int, int]) -> TensorDescriptor | None:
    return None if matrix is None else TensorDescriptor.from_tensor(matrix, list(block))


def descriptor_of_weights(weight: Tensor, up: Tensor | None, block: tuple[int, int]) -> TensorDescriptor:
    """The weights as boxes [1 or 2, *block]. A gated layer's two need not lie in one tensor: the first axis steps from the one at the lower
    address to the other."""
    first, *second = [weight] if up is None else sorted((weight, up), key=Tensor.data_ptr)
    apart = (second[0].data_ptr() - first.data_ptr()) // first.element_size() if second else weight.stride(0)
    strides = [apart, *first.stride()]
    return TensorDescriptor(first, [1 + len(second), *first.shape], strides, [1 + len(second), *block])


def descriptor_serves_both(weight: Tensor, up: Tensor) -> bool:
    """True if one descriptor serves a gated layer's two weights: they are of one layout, and less than 2⁴⁰ bytes apart."""
    apart = abs(up.data_ptr() - weight.data_ptr())
    return up.shape == weight.shape and up.stride() == weight.stride() and apart % 16 == 0 and 0 < apart < 1 << 40


def tile_arguments(
    block: tuple[int, int] | None, *matrices: Tensor | None
) -> Sequence[Tensor | TensorDescriptor | None]:
    """The matrices as an epilogue takes them: as descriptors of blocks of that size, or unchanged where block is None."""
    return matrices if block is None else [descriptor(matrix, block) for matrix in matrices]


def descriptors_serve(*matrices: Tensor) -> bool:
    """True if the descriptor kernels serve these matrices, on the chip and in the precision of the first.

    Tensor descriptors need unit column strides, rows that do not overlap, bases and row strides of a multiple of 16 bytes, and no empty
    axis.
    """
    first = matrices[0]
    if not machine(first).descriptors or precision(first.dtype) == "ieee":
        return False
    return all(
        t.shape[1] > 0
        and t.stride(1) == 1
        and t.stride(0) >= t.shape[1]
        and t.stride(0) * t.element_size() % 16 == 0
        and t.data_ptr() % 16 == 0
        for t in matrices
    )
