"""The MLP's backward: dz = (dy W₂) ⊙ act'(z), with the derivative in the epilogue of the product.

The epilogue re-emits h = act(z), so that forward need not keep it for dW₂ = dyᵀ h, and sums dz over a tile's rows for the bias's
gradient. Two kernels and a rule for arguments' names, as in linear.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..catalogue import Activation, Keep
from ..operands import Dropout, halves
from ..unfused import unfused_dact
from .chips import machine, precision
from .configs import Choice, Config
from .dispatch import choose
from .dropout import drawn, dropped
from .operands import descriptor, descriptors_serve, gradients, on_device, param_arguments, tiles
from .pointwise import act_bwd
from .problem import Problem, backward_problem
from .tiles import (
    activate,
    column_pieces,
    dot,
    load_params,
    load_signs,
    param_gradient,
    rounded,
    store_sum,
    tile_position,
    up_gradient,
    widened,
    z_gradient,
)


@triton.jit(do_not_specialize=["M"])
def linear_dact_kernel(
    dy_ptr, weight_ptr, saved_ptr, up_ptr, signs_ptr, dz_ptr, dup_ptr, h_ptr, dbias_ptr, dup_bias_ptr, dparam_ptr,
    act_params, dropout, M, N, K, stride_dym, stride_dyk, stride_wk, stride_wn, stride_sm, stride_signs, stride_dzm,
    value: tl.constexpr, grad: tl.constexpr, grad_up: tl.constexpr, grad_param: tl.constexpr,
    PARAM_STRIDES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """dz [M, N] = dropout(dy [M, K] weight [K, N]) ⊙ act'(saved), with `up` the gradients of both operands; h [M, N] unless None.

    Of the sums over rows, one per tile: dbias and dup_bias of row stride stride_dzm, dparam of row stride N. One tile per program. The
    epilogue goes in column pieces: in one it would hold five tiles and spill.
    """
    WIDTH: tl.constexpr = BLOCK_N // PIECES
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
    pieces = column_pieces(acc, PIECES)
    for i in tl.static_range(PIECES):
        start = tile_n * BLOCK_N + i * WIDTH
        cols = start + tl.arange(0, WIDTH)
        cols64 = cols.to(tl.int64)[None, :]
        mask = row_mask & (cols < N)[None, :]
        values = load_params(act_params, cols, N, PARAM_STRIDES)
        dh = pieces[i]
        if dropout is not None:
            kept = drawn(dropout, tile_m * BLOCK_M, start, BLOCK_M, WIDTH)
            dh = dropped(dh, kept, dropout)
        if signs_ptr is not None:
            saved = load_signs(signs_ptr, rows64, cols, stride_signs, mask)
        else:
            saved = widened(tl.load(saved_ptr + rows64 * stride_sm + cols64, mask=mask, other=0.0))
        up = None
        if up_ptr is not None:
            up = widened(tl.load(up_ptr + rows64 * stride_sm + cols64, mask=mask, other=0.0))
        dz = z_gradient(dh, saved, up, values, grad, grad_up)
        tl.store(dz_ptr + rows64 * stride_dzm + cols64, rounded(dz, dz_ptr.dtype.element_ty), mask=mask)
        store_sum(dbias_ptr, dz, tile_m, cols, mask, N, stride_dzm)
        if up_ptr is not None:
            dup = up_gradient(dh, saved, up, values, value, grad_up)
            tl.store(dup_ptr + rows64 * stride_dzm + cols64, rounded(dup, dz_ptr.dtype.element_ty), mask=mask)
            store_sum(dup_bias_ptr, dup, tile_m, cols, mask, N, stride_dzm)
        if dparam_ptr is not None:
            dparam = param_gradient(dh, saved, up, values, grad_param, grad_up is None)
            store_sum(dparam_ptr, dparam, tile_m, cols, mask, N, N)
        if h_ptr is not None:
            h = activate(saved, up, values, value, grad_up is None)
            if dropout is not None:
                h = dropped(h, kept, dropout)
            tl.store(h_ptr + rows64 * N + cols64, rounded(h, h_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def linear_dact_tma_kernel(
    dy_desc, weight_desc, saved_desc, up_desc, signs_ptr, dz_desc, dup_desc, h_desc, dbias_ptr, dup_bias_ptr, dparam_ptr,
    act_params, dropout, M, N, K, stride_signs, stride_dzm,
    value: tl.constexpr, grad: tl.constexpr, grad_up: tl.constexpr, grad_param: tl.constexpr,
    PARAM_STRIDES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """The same by tensor descriptors, persistent as linear_fwd_tma_kernel is."""
    WIDTH: tl.constexpr = BLOCK_N // PIECES
    count = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), count, tl.num_programs(0), flatten=True):
        tile_m, tile_n = tile_position(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        row, col = tile_m * BLOCK_M, tile_n * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            acc = dot(dy_desc.load([row, k]), weight_desc.load([k, col]), acc, PRECISION)
        rows = row + tl.arange(0, BLOCK_M)
        row_mask = (rows < M)[:, None]
        pieces = column_pieces(acc, PIECES)
        for i in tl.static_range(PIECES):
            start = col + i * WIDTH
            cols = start + tl.arange(0, WIDTH)
            values = load_params(act_params, cols, N, PARAM_STRIDES)
            dh = pieces[i]
            if dropout is not None:
                kept = drawn(dropout, row, start, BLOCK_M, WIDTH)
                dh = dropped(dh, kept, dropout)
            if signs_ptr is not None:
                saved = load_signs(
                    signs_ptr, rows.to(tl.int64)[:, None], cols, stride_signs, row_mask & (cols < N)[None, :]
                )
            else:
                saved = widened(saved_desc.load([row, start]))
            up = None
            if up_desc is not None:
                up = widened(up_desc.load([row, start]))
            dz = z_gradient(dh, saved, up, values, grad, grad_up)
            dz_desc.store([row, start], rounded(dz, dz_desc.dtype))
            store_sum(dbias_ptr, dz, tile_m, cols, row_mask, N, stride_dzm)
            if up_desc is not None:
                dup = up_gradient(dh, saved, up, values, value, grad_up)
                dup_desc.store([row, start], rounded(dup, dz_desc.dtype))
                store_sum(dup_bias_ptr, dup, tile_m, cols, row_mask, N, stride_dzm)
            if dparam_ptr is not None:
                dparam = param_gradient(dh, saved, up, values, grad_param, grad_up is None)
                store_sum(dparam_ptr, dparam, tile_m, cols, row_mask, N, N)
            if h_desc is not None:
                h = activate(saved, up, values, value, grad_up is None)
                if dropout is not None:
                    h = dropped(h, kept, dropout)
                h_desc.store([row, start], rounded(h, h_desc.dtype))


def linear_dact(
    dy: Tensor, weight: Tensor, saved: Tensor, kept: Keep, act: Activation, values: tuple, gated: bool, dropout: Dropout | None,
    needs: Sequence[bool], choice: Choice | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """(dz [M, F], h [M, F], dbias float32 [F], dparam float32 [F]) for dy [M, N] and the down weight [N, F].

    saved is what linear_fwd kept, by the same word `kept`: z ("input"), y ("output") or signs ("sign"); gated: gate|up [M, 2F], and so are
    dz and dbias. needs: whether h, dbias and dparam are wanted; h follows from "input" alone.
    """
    saved = saved.contiguous()  # what a user's hooks give back may not be
    if choice is None:
        choice = choose(_problem(dy, weight, saved, kept, act, gated, dropout, needs[0]), machine(dy))
    call = dy, weight, saved, kept, act, values, gated, dropout, needs
    return _fused_dact(*call, choice) if isinstance(choice, Config) else unfused_dact(*call, act_bwd)


def _problem(
    dy, weight, saved, kept: Keep, act: Activation, gated: bool, dropout: Dropout | None, emits: bool
) -> Problem:
    (m, k), n = dy.shape, weight.shape[1]
    serve = descriptors_serve(dy, weight, None if kept == "sign" else saved)
    return backward_problem(m, n, k, dy.dtype, act, gated, dropout is not None, emits, serve)


def _fused_dact(
    dy: Tensor, weight: Tensor, saved: Tensor, kept: Keep, act: Activation, values: tuple, gated: bool, dropout: Dropout | None,
    needs: Sequence[bool], config: Config,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    m, n = dy.shape[0], weight.shape[1]
    width = 2 * n if gated else n
    dz = dy.new_empty(m, width)
    h = dy.new_empty(m, n) if needs[0] else None
    rows_of_tiles = triton.cdiv(m, config.BLOCK_M)
    dbias = dy.new_empty(rows_of_tiles, width, dtype=torch.float32) if needs[1] else None
    dparam = dy.new_empty(rows_of_tiles, n, dtype=torch.float32) if needs[2] else None
    if m and n:
        matrix, signs = (None, saved) if kept == "sign" else (saved, None)
        params, strides = param_arguments(values)
        functions = gradients(act, values, dy.dtype, kept)
        constants = {**functions, "PARAM_STRIDES": strides, "PRECISION": precision(dy.dtype), **config.constants()}
        epilogue = (*halves(matrix, n, gated), signs, *halves(dz, n, gated), h)
        sums = (*halves(dbias, n, gated), dparam, params, dropout and dropout.argument())
        with on_device(dy):
            (_launch_tma if config.tma else _launch_pointer)(dy, weight, epilogue, sums, config, constants)
    return dz, h, None if dbias is None else dbias.sum(0), None if dparam is None else dparam.sum(0)


def _launch_tma(dy, weight, epilogue, sums, config: Config, constants: dict[str, Any]) -> None:
    saved, up, signs, dz, dup, h = epilogue
    (m, k), n = dy.shape, weight.shape[1]
    piece = (config.BLOCK_M, config.BLOCK_N // config.PIECES)
    loads = descriptor(dy, (config.BLOCK_M, config.BLOCK_K)), descriptor(weight, (config.BLOCK_K, config.BLOCK_N))
    saved, up, dz_desc, dup, h = (descriptor(matrix, piece) for matrix in (saved, up, dz, dup, h))
    programs = min(tiles(m, n, config), machine(dy).processors)
    linear_dact_tma_kernel[(programs,)](
        *loads, saved, up, signs, dz_desc, dup, h, *sums, m, n, k, triton.cdiv(n, 8), dz.stride(0), **constants
    )


def _launch_pointer(dy, weight, epilogue, sums, config: Config, constants: dict[str, Any]) -> None:
    saved, _, _, dz, *_ = epilogue
    (m, k), n = dy.shape, weight.shape[1]
    strides = (*dy.stride(), *weight.stride(), 0 if saved is None else saved.stride(0), triton.cdiv(n, 8), dz.stride(0))
    linear_dact_kernel[(tiles(m, n, config),)](dy, weight, *epilogue, *sums, m, n, k, *strides, **constants)
