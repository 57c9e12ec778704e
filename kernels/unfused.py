"""Products that cuBLAS computes through torch, with one pointwise kernel or cuBLASLt's own epilogue.

They run where there is no fused kernel, or where it would be slower.

`act_fwd` and `act_bwd` are the backend's pointwise kernels, as in triton/pointwise.py.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .applied import Applied, Needs
from .catalogue import CUBLASLT, Activation, Keep
from .operands import Layer, observed, rows_of


def unfused_fwd(layer: Layer, applied: Applied, keep: Keep, act_fwd: Callable) -> tuple[Tensor, Tensor | None]:
    """The results of linear_fwd. z is rounded before the activation, as in torch's own layers."""
    x, gated = layer.x, applied.gated
    z = _product(layer, gated)
    m, n = z.shape[0], z.shape[1] // (2 if gated else 1)
    # Where z is not kept, y may take its memory, unless a mode may hold the product's result.
    y = x.new_empty(m, n) if gated or keep == "input" or observed() else z
    signs = x.new_empty(m, (n + 7) // 8, dtype=torch.uint8) if keep == "sign" else None
    act_fwd(z, y, signs, applied)
    return y.view(*x.shape[:-1], n), z if keep == "input" else signs


def _product(layer: Layer, gated: bool) -> Tensor:
    """z [M, N], or gate|up [M, 2N] of a gated layer."""
    if not gated or layer.up_weight is None:
        return F.linear(rows_of(layer.x), layer.weight, layer.bias)
    x, weight, up_weight, bias, up_bias, _ = layer.in_rows(gated)
    n = weight.shape[0]
    z = x.new_empty(x.shape[0], 2 * n)
    for half, matrix, vector in ((z[:, :n], weight, bias), (z[:, n:], up_weight, up_bias)):
        assert matrix is not None
        if vector is None:
            torch.mm(x, matrix.t(), out=half)
        else:
            torch.addmm(vector, x, matrix.t(), out=half)
    return z


def library_fwd(layer: Layer, act: Activation) -> Tensor:
    """act(x Wᵀ + b) by cuBLASLt."""
    assert layer.bias is not None
    x = rows_of(layer.x)
    y = torch._addmm_activation(layer.bias, x, layer.weight.t(), use_gelu=CUBLASLT[act.name] == "GELU")
    return y.view(*layer.x.shape[:-1], y.shape[-1])


def unfused_dact(
    dy: Tensor, weight: Tensor, saved: Tensor, keep: Keep, applied: Applied, needs: Needs, act_bwd: Callable
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """The results of linear_dact. dh = dy W is rounded before the derivative."""
    dh = dy @ weight
    dz, *rest = act_bwd(dh, saved, keep, applied, needs, None if applied.gated or observed() else dh)
    assert dz is not None
    return dz, *rest
