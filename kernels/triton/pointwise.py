"""Backward's pointwise kernel: dz = dy ⊙ act'(z), and the sums over the rows that come with it.

The products dx = dz W and dW = dzᵀ x are cuBLAS's. Fusing this kernel into them as a prologue would compute the derivative once per tile.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..catalogue import Activation
from .configs import BWD_BLOCK, machine
from .operands import gradients, halves, on_device, param_arguments
from .tiles import load_params, param_gradient, rounded, up_gradient, z_gradient


@triton.jit(do_not_specialize=["M", "rows_per_program"])
def linear_bwd_kernel(
    dy_ptr, saved_ptr, up_ptr, dz_ptr, dup_ptr, dbias_ptr, dup_bias_ptr, dparam_ptr, act_params,
    M, N, stride_dym, stride_dyn, stride_sm, stride_dzm, rows_per_program,
    value: tl.constexpr, grad: tl.constexpr, grad_up: tl.constexpr, grad_param: tl.constexpr,
    PARAM_STRIDES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dz [M, N] = dy ⊙ act'(saved), and per program the float32 column sums of dz and of the learnable parameter's gradient.

    With `up`, the gradients of both operands. Sums land in row program_id(0) of [programs, N] arrays of row stride stride_dzm (dparam's:
    N): no atomics.
    """
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols64 = cols.to(tl.int64)[None, :]
    col_mask = cols < N
    values = load_params(act_params, cols, N, PARAM_STRIDES)
    sum_z = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    sum_up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    sum_param = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    first = tl.program_id(0) * rows_per_program
    for start in range(first, min(first + rows_per_program, M), BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        rows64 = rows.to(tl.int64)[:, None]
        mask = (rows < M)[:, None] & col_mask[None, :]
        dy = tl.load(dy_ptr + rows64 * stride_dym + cols64 * stride_dyn, mask=mask, other=0.0).to(tl.float32)
        saved = tl.load(saved_ptr + rows64 * stride_sm + cols64, mask=mask, other=0.0).to(tl.float32)
        up = None
        if up_ptr is not None:
            up = tl.load(up_ptr + rows64 * stride_sm + cols64, mask=mask, other=0.0).to(tl.float32)
            dup = up_gradient(dy, saved, up, values, value, grad_up)
        dz = z_gradient(dy, saved, up, values, grad, grad_up)
        if dparam_ptr is not None:
            dparam = param_gradient(dy, saved, up, values, grad_param, grad_up is None)
            sum_param += tl.where(mask, dparam, 0.0)
        if dup_ptr is not None:
            tl.store(dup_ptr + rows64 * stride_dzm + cols64, rounded(dup, dup_ptr.dtype.element_ty), mask=mask)
        if dup_bias_ptr is not None:
            sum_up += tl.where(mask, dup, 0.0)
        if dz_ptr is not None:
            tl.store(dz_ptr + rows64 * stride_dzm + cols64, rounded(dz, dz_ptr.dtype.element_ty), mask=mask)
        if dbias_ptr is not None:
            sum_z += tl.where(mask, dz, 0.0)
    out = tl.program_id(0).to(tl.int64)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + out * stride_dzm + cols, tl.sum(sum_z, 0), mask=col_mask)
    if dup_bias_ptr is not None:
        tl.store(dup_bias_ptr + out * stride_dzm + cols, tl.sum(sum_up, 0), mask=col_mask)
    if dparam_ptr is not None:
        tl.store(dparam_ptr + out * N + cols, tl.sum(sum_param, 0), mask=col_mask)


def linear_bwd(
    dy: Tensor, saved: Tensor, act: Activation, values: tuple, gated: bool, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dz, dbias float32, dparam float32) for dy [M, N] and saved z or y; gated: saved and dz are gate|up [M, 2N], dbias [2N].

    needs: which of the three to compute. dparam is the learnable tensor's gradient, per column: [N].
    """
    m, n = dy.shape
    saved = saved.contiguous()  # what a user's hooks give back may not be
    width = 2 * n if gated else n
    programs, rows_per_program = _row_programs(m, n, machine(dy).processors)
    dz = dy.new_empty(m, width) if needs[0] else None
    dbias = dy.new_empty(programs, width, dtype=torch.float32) if needs[1] else None
    dparam = dy.new_empty(programs, n, dtype=torch.float32) if needs[2] else None
    if dy.numel():
        (gate, up), (dz_gate, dz_up), (db_gate, db_up) = (halves(t, n, gated) for t in (saved, dz, dbias))
        params, strides = param_arguments(values)
        kept = "input" if gated else act.saves(values)
        with on_device(dy):
            linear_bwd_kernel[(programs, triton.cdiv(n, BWD_BLOCK["BLOCK_N"]))](
                dy, gate, up, dz_gate, dz_up, db_gate, db_up, dparam, params,
                m, n, *dy.stride(), saved.stride(0), width, rows_per_program,
                **gradients(act, values, gated, dy.dtype, kept), PARAM_STRIDES=strides, **BWD_BLOCK,
            )  # fmt: skip
    return dz, None if dbias is None else dbias.sum(0), None if dparam is None else dparam.sum(0)


def _row_programs(m: int, n: int, processors: int) -> tuple[int, int]:
    """(programs along the rows, rows of each): enough to fill the chip, few enough that their partial sums stay small."""
    blocks = triton.cdiv(m, BWD_BLOCK["BLOCK_M"])
    wanted = max(1, 8 * processors // triton.cdiv(n, BWD_BLOCK["BLOCK_N"]) if n else 1)
    rows = triton.cdiv(blocks, min(blocks, wanted)) * BWD_BLOCK["BLOCK_M"] if blocks else BWD_BLOCK["BLOCK_M"]
    return triton.cdiv(m, rows), rows
