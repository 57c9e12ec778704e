"""The MLP's backward: dz = (dy W₂) ⊙ act'(z), with the derivative in the epilogue of the product.

The epilogue computes h = act(z) again, so that forward need not keep it for dW₂ = dyᵀ h, and sums dz over a tile's rows for the bias's
gradient. As in linear.py there are two kernels, and no kernel argument may be called `params`.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..applied import Applied, Needs
from ..catalogue import Keep
from ..operands import halves
from ..unfused import unfused_dact
from .epilogue import Sums, dot, finish_backward, tile_position
from .operands import (
    count_of_arrays,
    descriptor,
    descriptors_serve,
    epilogue_of,
    gradient_functions,
    on_device,
    tiles,
)
from .plan.chips import machine, precision
from .plan.configs import Choice, Config
from .plan.dispatch import choose
from .plan.problem import Problem, backward_problem
from .pointwise import act_bwd


@triton.jit(do_not_specialize=["M"])
def linear_dact_kernel(
    dy_ptr, weight_ptr, saved_ptr, up_ptr, dz_ptr, dup_ptr, h_ptr, epilogue, sums, M, N, K, stride_dym, stride_dyk, stride_wk, stride_wn,
    value: tl.constexpr, grad: tl.constexpr, grad_up: tl.constexpr, grad_params: tl.constexpr,
    PARAM_STRIDES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Write the results of finish_backward for dh [M, N] = dy [M, K] weight [K, N], one tile per program."""
    tile_m, tile_n = tile_position(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    row_mask, col_mask = (rows < M)[:, None], (cols < N)[None, :]
    rows64, cols64, ks64 = rows.to(tl.int64)[:, None], cols.to(tl.int64)[None, :], ks.to(tl.int64)
    dy_ptrs = dy_ptr + rows64 * stride_dym + ks64[None, :] * stride_dyk
    w_ptrs = weight_ptr + ks64[:, None] * stride_wk + cols64 * stride_wn
    step = tl.full((), BLOCK_K, tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        k_mask = ks < K - k
        dy = tl.load(dy_ptrs, mask=row_mask & k_mask[None, :], other=0.0)
        acc = dot(dy, tl.load(w_ptrs, mask=col_mask & k_mask[:, None], other=0.0), acc, PRECISION)
        dy_ptrs += step * stride_dyk
        w_ptrs += step * stride_wk
    finish_backward(
        acc, saved_ptr, up_ptr, dz_ptr, dup_ptr, h_ptr, epilogue, sums, tile_m, tile_m * BLOCK_M, tile_n * BLOCK_N, M, N,
        value, grad, grad_up, grad_params, PARAM_STRIDES, PIECES,
    )  # fmt: skip


@triton.jit(do_not_specialize=["M"])
def linear_dact_tma_kernel(
    dy_desc, weight_desc, saved_ptr, up_ptr, dz_ptr, dup_ptr, h_ptr, epilogue, sums, M, N, K,
    value: tl.constexpr, grad: tl.constexpr, grad_up: tl.constexpr, grad_params: tl.constexpr,
    PARAM_STRIDES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """linear_dact_kernel by tensor descriptors, persistent as linear_fwd_tma_kernel is."""
    tl.assume(K > 0)  # else the loops are compiled twice, with and without a product
    count = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), count, tl.num_programs(0), flatten=True):
        tile_m, tile_n = tile_position(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        row, first = tile_m * BLOCK_M, tile_n * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            acc = dot(dy_desc.load([row, k]), weight_desc.load([k, first]), acc, PRECISION)
        finish_backward(
            acc, saved_ptr, up_ptr, dz_ptr, dup_ptr, h_ptr, epilogue, sums, tile_m, row, first, M, N,
            value, grad, grad_up, grad_params, PARAM_STRIDES, PIECES,
        )  # fmt: skip


def linear_dact(
    dy: Tensor, weight: Tensor, saved: Tensor, keep: Keep, applied: Applied, needs: Needs, choice: Choice | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """(dz [M, F], h [M, F], dbias float32 [F], dparam float32 [P, F]) for dy [M, N] and the down weight [N, F].

    saved is the tensor that forward kept with the same `keep`: z ("input"), y ("output") or signs ("sign"). Where gated, z and dz are
    gate|up [M, 2F], and dbias is [2F]. dz is always computed. h can be computed from z only.
    """
    saved = saved.contiguous()  # a user's hooks may give back another layout
    if choice is None:
        choice = choose(_problem(dy, weight, applied, needs.h), machine(dy))
    call = dy, weight, saved, keep, applied, needs
    return _fused_dact(*call, choice) if isinstance(choice, Config) else unfused_dact(*call, act_bwd)


def _problem(dy: Tensor, weight: Tensor, applied: Applied, emits: bool) -> Problem:
    (m, k), n = dy.shape, weight.shape[1]
    serve = descriptors_serve(dy, weight)
    dropout = applied.dropout is not None
    return backward_problem(m, n, k, dy.dtype, applied.act, applied.gated, dropout, emits, serve)


def _fused_dact(
    dy: Tensor, weight: Tensor, saved: Tensor, keep: Keep, applied: Applied, needs: Needs, config: Config
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    m, n, gated = dy.shape[0], weight.shape[1], applied.gated
    width = 2 * n if gated else n
    if gated and (needs.dbias or needs.dparam):  # up to three sums beside the five tiles
        config = replace(config, PIECES=2 * config.PIECES)
    dz = dy.new_empty(m, width)
    h = dy.new_empty(m, n) if needs.h else None
    rows_of_tiles = triton.cdiv(m, config.BLOCK_M)
    dbias = dy.new_empty(rows_of_tiles, width, dtype=torch.float32) if needs.dbias else None
    learned = count_of_arrays(applied)
    dparam = dy.new_empty(rows_of_tiles, learned, n, dtype=torch.float32) if needs.dparam else None
    if m and n:
        matrix, signs = (None, saved) if keep == "sign" else (saved, None)
        functions = gradient_functions(applied, dy.dtype, keep)
        constants = {**functions, "PRECISION": precision(dy.dtype), **config.constants}
        matrices = *halves(matrix, n, gated), *halves(dz, n, gated), h
        epilogue = epilogue_of(applied, stride=0 if matrix is None else matrix.stride(0), signs=signs)
        sums = Sums(*halves(dbias, n, gated), dz.stride(0), dparam)
        arguments = *matrices, epilogue, sums, m, n, dy.shape[1]
        with on_device(dy):
            if config.tma:
                loads = (
                    descriptor(dy, (config.BLOCK_M, config.BLOCK_K)),
                    descriptor(weight, (config.BLOCK_K, config.BLOCK_N)),
                )
                programs = min(tiles(m, n, config), machine(dy).processors * config.blocks)
                linear_dact_tma_kernel[(programs,)](*loads, *arguments, **constants)
            else:
                grid = (tiles(m, n, config),)
                linear_dact_kernel[grid](dy, weight, *arguments, *dy.stride(), *weight.stride(), **constants)
    return dz, h, None if dbias is None else dbias.sum(0), None if dparam is None else dparam.sum(0)
