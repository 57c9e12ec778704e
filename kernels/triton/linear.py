"""act(x Wᵀ + b), and with a second weight act(x Gᵀ + bg) ⊙ (x Uᵀ + bu): the forward kernels.

Two kernels compute it: one loads by tensor descriptors (TMA, sm_90 and newer), one by pointers (everything else).
No kernel argument may be called `params`: the function that Triton generates to bind a launch's arguments has a variable of that name.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..applied import Applied
from ..catalogue import Keep
from ..operands import Layer, halves, rows_of
from ..unfused import library_fwd, unfused_fwd
from .epilogue import column_pieces, dot, finish, store_result, tile_position
from .operands import (
    descriptor,
    descriptor_of_weights,
    descriptor_serves_both,
    descriptors_serve,
    epilogue_of,
    forward_functions,
    on_device,
    tile_arguments,
    tiles,
)
from .plan.chips import machine, precision
from .plan.configs import Choice, Config
from .plan.dispatch import choose
from .plan.problem import Problem, forward_problem
from .pointwise import act_fwd


@triton.jit(do_not_specialize=["M"])
def linear_fwd_kernel(
    x_ptr, weight_ptr, up_ptr, y_ptr, z_ptr, z_up_ptr, epilogue, M, N, K, stride_xm, stride_xk, stride_wn, stride_wk, stride_un, stride_uk,
    value: tl.constexpr, GATED: tl.constexpr, PARAM_STRIDES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """y [M, N] = finish(x [M, K] weight [N, K]ᵀ), one tile per program. With a second weight, finish takes both products."""
    tile_m, tile_n = tile_position(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    row_mask, col_mask = (rows < M)[:, None], (cols < N)[None, :]
    rows64, cols64, ks64 = rows.to(tl.int64)[:, None], cols.to(tl.int64)[None, :], ks.to(tl.int64)
    x_ptrs = x_ptr + rows64 * stride_xm + ks64[None, :] * stride_xk
    w_ptrs = weight_ptr + cols64 * stride_wn + ks64[:, None] * stride_wk
    # int64, because it is multiplied by a stride, which for x stored column by column is its number of rows.
    step = tl.full((), BLOCK_K, tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if up_ptr is not None:
        u_ptrs = up_ptr + cols64 * stride_un + ks64[:, None] * stride_uk
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        k_mask = ks < K - k
        x = tl.load(x_ptrs, mask=row_mask & k_mask[None, :], other=0.0)
        w = tl.load(w_ptrs, mask=col_mask & k_mask[:, None], other=0.0)
        acc = dot(x, w, acc, PRECISION)
        if up_ptr is not None:
            u = tl.load(u_ptrs, mask=col_mask & k_mask[:, None], other=0.0)
            up = dot(x, u, up, PRECISION)
            u_ptrs += step * stride_uk
        x_ptrs += step * stride_xk
        w_ptrs += step * stride_wk
    z_pieces = column_pieces(acc, PIECES)
    if up_ptr is not None:
        up_pieces = column_pieces(up, PIECES)
    for i in tl.static_range(PIECES):
        row, col = tile_m * BLOCK_M, tile_n * BLOCK_N + i * (BLOCK_N // PIECES)
        up_piece = None
        if up_ptr is not None:
            up_piece = up_pieces[i]
        y = finish(
            z_pieces[i], up_piece, z_ptr, z_up_ptr, epilogue, row, col, M, N, value, GATED, PARAM_STRIDES, False
        )  # fmt: skip
        store_result(y_ptr, N, y, row, col, M, N, False)


@triton.jit(do_not_specialize=["M"])
def linear_fwd_tma_kernel(
    x_desc, weight_desc, y_desc, z_desc, z_up_desc, epilogue, M, N, K, UP: tl.constexpr,
    value: tl.constexpr, GATED: tl.constexpr, PARAM_STRIDES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """linear_fwd_kernel by tensor descriptors, persistent: a program walks over tiles, so the next tile's loads overlap this epilogue.

    A gated layer's weights are one box [2, BLOCK_N, BLOCK_K], so that one product gives both tiles: two products of half the width would
    read x from shared memory twice as often. UP is up's place in that pair, None where there is one weight.
    """
    tl.assume(K > 0)  # else the loops are compiled twice, with and without a product
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    WEIGHTS: tl.constexpr = 1 if UP is None else 2
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        tile_m, tile_n = tile_position(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        row, first = tile_m * BLOCK_M, tile_n * BLOCK_N
        acc = tl.zeros((BLOCK_M, WEIGHTS * BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            x = x_desc.load([row, k])
            w = weight_desc.load([0, first, k]).reshape(WEIGHTS * BLOCK_N, BLOCK_K)
            acc = dot(x, w.T, acc, PRECISION)
        if UP is None:
            z_pieces = column_pieces(acc, PIECES)
        else:
            pair = column_pieces(acc, 2)
            z_pieces, up_pieces = column_pieces(pair[1 - UP], PIECES), column_pieces(pair[UP], PIECES)
        for i in tl.static_range(PIECES):
            col = first + i * (BLOCK_N // PIECES)
            up_piece = None
            if UP is not None:
                up_piece = up_pieces[i]
            y = finish(
                z_pieces[i], up_piece, z_desc, z_up_desc, epilogue, row, col, M, N, value, GATED, PARAM_STRIDES, True
            )  # fmt: skip
            store_result(y_desc, N, y, row, col, M, N, True)


def linear_fwd(
    layer: Layer, applied: Applied, keep: Keep, choice: Choice | None = None
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """(y [..., N], the tensor to keep for backward beside y).

    For keep "input" that is z [M, N] or gate|up [M, 2N], for "sign" the bits of act(z) > 0 in uint8 [M, ⌈N/8⌉], else None.
    """
    rows = layer.in_rows(applied.gated)
    if choice is None:
        choice = choose(_problem(rows, applied, keep), machine(layer.x))
    if choice == "library":
        return library_fwd(layer, applied.act), None
    if choice == "unfused":
        return unfused_fwd(layer, applied, keep, act_fwd)
    y = layer.x.new_empty(*layer.x.shape[:-1], rows.weight.shape[0])
    return y, _fused_fwd(rows, applied, keep, choice, rows_of(y))


def _problem(layer: Layer, applied: Applied, keep: Keep) -> Problem:
    x, weight, up, bias, *_ = layer
    (m, k), n = x.shape, weight.shape[0]
    act, _, gated, dropout = applied
    serve = descriptors_serve(x, weight) and (up is None or descriptor_serves_both(weight, up))
    return forward_problem(m, n, k, x.dtype, act, gated, bias is not None, dropout is not None, keep, serve)


def _fused_fwd(layer: Layer, applied: Applied, keep: Keep, config: Config, y: Tensor) -> Tensor | None:
    """Write y [M, N], and return the tensor to keep beside it."""
    x, weight, up, bias, up_bias, _ = layer
    (m, n), gated = y.shape, applied.gated
    z = x.new_empty(m, 2 * n if gated else n) if keep == "input" else None
    signs = x.new_empty(m, triton.cdiv(n, 8), dtype=torch.uint8) if keep == "sign" else None
    kept = signs if z is None else z
    if y.numel() == 0:
        return kept
    constants = {**forward_functions(applied, x.dtype), "PRECISION": precision(x.dtype), **config.constants}
    block = (config.BLOCK_M, config.BLOCK_N // config.PIECES) if config.tma else None
    results = tile_arguments(block, y, *halves(z, n, gated))
    epilogue = epilogue_of(applied, bias, up_bias, 0 if z is None else z.stride(0), signs)
    arguments = *results, epilogue, m, n, x.shape[1]
    with on_device(x):
        if config.tma:
            place = None if up is None else int(up.data_ptr() > weight.data_ptr())
            weights = descriptor_of_weights(weight, up, (config.BLOCK_N, config.BLOCK_K))
            programs = min(tiles(m, n, config), machine(x).processors * config.blocks)
            x_desc = descriptor(x, (config.BLOCK_M, config.BLOCK_K))
            linear_fwd_tma_kernel[(programs,)](x_desc, weights, *arguments, UP=place, **constants)
        else:
            strides = (*x.stride(), *weight.stride(), *((0, 0) if up is None else up.stride()))
            linear_fwd_kernel[(tiles(m, n, config),)](x, weight, up, *arguments, *strides, **constants)
    return kept
