"""Products by cuBLAS through torch, with one pointwise kernel or cuBLASLt's own epilogue: where no fused kernel is, or it would be slower.

`act_fwd` and `act_bwd` are the backend's pointwise kernels, as in triton/pointwise.py.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .catalogue import CUBLASLT, Activation, Keep
from .operands import Dropout, Operands, observed, rows_of


def unfused_fwd(operands: Operands, keep: Keep, act_fwd: Callable) -> tuple[Tensor, Tensor | None]:
    """What linear_fwd returns; z is rounded before the activation, as in torch's own layers."""
    x, act, gated = rows_of(operands.x), operands.act, operands.gated
    z = _product(operands, x)
    m, n = x.shape[0], z.shape[1] // (1 + gated)
    # Where z is not kept, y may take its place, unless somebody holds what the product returned.
    y = x.new_empty(m, n) if gated or keep == "input" or observed() else z
    signs = x.new_empty(m, (n + 7) // 8, dtype=torch.uint8) if keep == "sign" else None
    act_fwd(z, y, signs, act, operands.values, gated, operands.dropout)
    return y.view(*operands.x.shape[:-1], n), z if keep == "input" else signs


def _product(operands: Operands, x: Tensor) -> Tensor:
    """z [M, N], or gate|up [M, 2N] of a gated layer."""
    if not operands.gated or operands.up_weight is None:
        return F.linear(x, operands.weight, operands.bias)
    weight, up_weight, bias, up_bias = operands.halves()
    n = weight.shape[0]
    z = x.new_empty(x.shape[0], 2 * n)
    for half, matrix, vector in ((z[:, :n], weight, bias), (z[:, n:], up_weight, up_bias)):
        assert matrix is not None
        if vector is None:
            torch.mm(x, matrix.t(), out=half)
        else:
            torch.addmm(vector, x, matrix.t(), out=half)
    return z


def library_fwd(operands: Operands) -> Tensor:
    """act(x Wᵀ + b) by cuBLASLt."""
    assert operands.bias is not None
    x = rows_of(operands.x)
    y = torch._addmm_activation(operands.bias, x, operands.weight.t(), use_gelu=CUBLASLT[operands.act.name] == "GELU")
    return y.view(*operands.x.shape[:-1], y.shape[-1])


def unfused_dact(
    dy: Tensor, weight: Tensor, saved: Tensor, kept: Keep, act: Activation, values: tuple, gated: bool,
    dropout: Dropout | None, needs: Sequence[bool], act_bwd: Callable,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """What linear_dact returns; dh = dy W is rounded before the derivative."""
    dh = dy @ weight
    dz, *rest = act_bwd(
        dh, saved, kept, act, values, gated, dropout, (True, *needs), None if gated or observed() else dh
    )
    assert dz is not None
    return dz, *rest
