"""The pointwise kernels, beside products that cuBLAS computes: y = act(z) forward, dz = dy ⊙ act'(z) backward.

A single layer's backward always uses them: as a prologue of dx = dz W and dW = dzᵀ x, the derivative would be computed once per tile. The
other products use them where their fused kernel would be slower (dispatch.py).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..applied import Applied, Needs
from ..catalogue import Keep
from ..operands import halves
from .dropout import drawn, dropped
from .epilogue import (
    Sums,
    activate,
    added_each,
    finish,
    load_params,
    load_saved,
    load_tile,
    param_gradients,
    store_tile,
    up_gradient,
    widened,
    z_gradient,
    zeros_for_arrays,
)
from .operands import count_of_arrays, epilogue_of, forward_functions, gradient_functions, on_device
from .plan.chips import machine
from .plan.configs import POINTWISE


@triton.jit(do_not_specialize=["M"])
def act_fwd_kernel(
    z_ptr, up_ptr, y_ptr, epilogue, M, N, stride_zm,
    value: tl.constexpr, GATED: tl.constexpr, PARAM_STRIDES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y [M, N] = finish(z), or finish(z, up) in a gated layer. y may be z."""
    row, col = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    rows = row + tl.arange(0, BLOCK_M)
    z = load_tile(z_ptr, stride_zm, rows, col, M, N, BLOCK_N).to(tl.float32)
    up = None
    if up_ptr is not None:
        up = load_tile(up_ptr, stride_zm, rows, col, M, N, BLOCK_N).to(tl.float32)
    y = finish(z, up, None, None, epilogue, row, col, M, N, value, GATED, PARAM_STRIDES, False)
    store_tile(y_ptr, N, y, rows, col, M, N)


@triton.jit(do_not_specialize=["M", "rows_per_program"])
def act_bwd_kernel(
    dy_ptr, saved_ptr, up_ptr, dz_ptr, dup_ptr, h_ptr, epilogue, sums, M, N, stride_dym, stride_dyn, rows_per_program,
    value: tl.constexpr, grad: tl.constexpr, grad_up: tl.constexpr, grad_params: tl.constexpr,
    PARAM_STRIDES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write dz [M, N] = dropout(dy) ⊙ act'(saved), h [M, N] = dropout(act(saved)) unless None, and each program's float32 column sums of
    dz and of the learnable parameters' gradients. dz may be dy.

    With `up`, also write dup and its sums. Sums go to row program_id(0) of [programs, N] arrays, so that no atomics are needed.
    """
    col = tl.program_id(1) * BLOCK_N
    cols = col + tl.arange(0, BLOCK_N)
    cols64 = cols.to(tl.int64)[None, :]
    col_mask = cols < N
    values = load_params(epilogue.params, cols, N, PARAM_STRIDES)
    sum_z = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    sum_up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    sum_params = ()
    if sums.dparam is not None:
        sum_params = zeros_for_arrays(PARAM_STRIDES, BLOCK_M, BLOCK_N)
    first = tl.program_id(0) * rows_per_program
    for row in range(first, min(first + rows_per_program, M), BLOCK_M):
        rows = row + tl.arange(0, BLOCK_M)
        rows64 = rows.to(tl.int64)[:, None]
        mask = (rows < M)[:, None] & col_mask[None, :]
        dy = tl.load(dy_ptr + rows64 * stride_dym + cols64 * stride_dyn, mask=mask, other=0.0).to(tl.float32)
        if epilogue.dropout is not None:
            stays = drawn(epilogue.dropout, rows, col, BLOCK_N)
            dy = dropped(dy, stays, epilogue.dropout)
        kept = load_saved(saved_ptr, up_ptr, epilogue, rows, col, M, N, BLOCK_N)
        saved = widened(kept[0])
        up = None
        if up_ptr is not None:
            up = widened(kept[1])
            dup = up_gradient(dy, saved, up, values, value, grad_up)
        dz = z_gradient(dy, saved, up, values, grad, grad_up)
        if sums.dparam is not None:
            dparams = param_gradients(dy, saved, up, values, grad_params, grad_up is None)
            sum_params = added_each(sum_params, dparams, rows, M)
        if h_ptr is not None:
            h = activate(saved, up, values, value, grad_up is None)
            if epilogue.dropout is not None:
                h = dropped(h, stays, epilogue.dropout)
            store_tile(h_ptr, N, h, rows, col, M, N)
        if dup_ptr is not None:
            store_tile(dup_ptr, sums.stride, dup, rows, col, M, N)
        if sums.dup_bias is not None:
            sum_up += tl.where(mask, dup, 0.0)
        if dz_ptr is not None:
            store_tile(dz_ptr, sums.stride, dz, rows, col, M, N)
        if sums.dbias is not None:
            sum_z += tl.where(mask, dz, 0.0)
    out = tl.program_id(0).to(tl.int64)
    if sums.dbias is not None:
        tl.store(sums.dbias + out * sums.stride + cols, tl.sum(sum_z, 0), mask=col_mask)
    if sums.dup_bias is not None:
        tl.store(sums.dup_bias + out * sums.stride + cols, tl.sum(sum_up, 0), mask=col_mask)
    if sums.dparam is not None:
        for p in tl.static_range(len(sum_params)):
            row_of_sums = sums.dparam + (out * len(sum_params) + p) * N
            tl.store(row_of_sums + cols, tl.sum(sum_params[p], 0), mask=col_mask)


def act_fwd(z: Tensor, y: Tensor, signs: Tensor | None, applied: Applied) -> None:
    """Write dropout(act(z)) to y [M, N], which may be z, and act(z) > 0 to signs [M, ⌈N/8⌉]. z is [M, N], gated gate|up [M, 2N]."""
    m, n = y.shape
    if not y.numel():
        return
    grid = triton.cdiv(m, POINTWISE["BLOCK_M"]), triton.cdiv(n, POINTWISE["BLOCK_N"])
    with on_device(y):
        act_fwd_kernel[grid](
            *halves(z, n, applied.gated), y, epilogue_of(applied, signs=signs), m, n, z.stride(0),
            **forward_functions(applied, y.dtype), **POINTWISE,
        )  # fmt: skip


def act_bwd(
    dy: Tensor, saved: Tensor, keep: Keep, applied: Applied, needs: Needs, dz: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """(dz, h, dbias float32, dparam float32) for dy [M, N] and saved z ("input"), y ("output") or signs ("sign").

    Where gated, saved and dz are gate|up [M, 2N], and dbias is [2N]. dparam [P, N] has the learnable tensors' gradients, by column. dz is
    written to the argument dz where it is given, which may be dy.
    """
    (m, n), gated = dy.shape, applied.gated
    saved = saved.contiguous()  # a user's hooks may give back another layout
    width = 2 * n if gated else n
    programs, rows_per_program = _row_programs(m, n, machine(dy).processors)
    if dz is None and needs.dz:
        dz = dy.new_empty(m, width)
    h = dy.new_empty(m, n) if needs.h else None
    dbias = dy.new_empty(programs, width, dtype=torch.float32) if needs.dbias else None
    dparam = dy.new_empty(programs, count_of_arrays(applied), n, dtype=torch.float32) if needs.dparam else None
    if dy.numel():
        matrix, signs = (None, saved) if keep == "sign" else (saved, None)
        epilogue = epilogue_of(applied, stride=0 if matrix is None else matrix.stride(0), signs=signs)
        sums = Sums(*halves(dbias, n, gated), width, dparam)
        with on_device(dy):
            act_bwd_kernel[(programs, triton.cdiv(n, POINTWISE["BLOCK_N"]))](
                dy, *halves(matrix, n, gated), *halves(dz, n, gated), h, epilogue, sums, m, n, *dy.stride(), rows_per_program,
                **gradient_functions(applied, dy.dtype, keep), **POINTWISE,
            )  # fmt: skip
    return dz, h, None if dbias is None else dbias.sum(0), None if dparam is None else dparam.sum(0)


def _row_programs(m: int, n: int, processors: int) -> tuple[int, int]:
    """(programs along the rows, rows of each): enough programs to fill the chip, few enough that their partial sums stay small."""
    blocks = triton.cdiv(m, POINTWISE["BLOCK_M"])
    most = max(1, 8 * processors // triton.cdiv(n, POINTWISE["BLOCK_N"]) if n else 1)
    rows = triton.cdiv(blocks, min(blocks, most)) * POINTWISE["BLOCK_M"] if blocks else POINTWISE["BLOCK_M"]
    return triton.cdiv(m, rows), rows
