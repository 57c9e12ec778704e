"""act(x Wᵀ + b), and with a second weight act(x Gᵀ + bg) ⊙ (x Uᵀ + bu): the forward kernels.

Two kernels compute the same: one loads by tensor descriptors (TMA, sm_90 and newer), one by pointers (everything else).
No kernel argument may be called `params`: the function that Triton writes to bind a launch's arguments has a variable of that name.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..catalogue import Keep
from ..operands import Operands, halves, rows_of
from ..unfused import library_fwd, unfused_fwd
from .chips import machine, precision
from .configs import Choice, Config
from .dispatch import choose
from .dropout import drawn, dropped
from .operands import descriptor, descriptors_serve, on_device, param_arguments, tiles
from .pointwise import act_fwd
from .problem import Problem, forward_problem
from .tiles import (
    activate,
    add_bias,
    column_pieces,
    dot,
    load_params,
    rounded,
    store_signs,
    tile_position,
)
from .vocabulary import device_function


@triton.jit(do_not_specialize=["M"])
def linear_fwd_kernel(
    x_ptr, weight_ptr, up_ptr, bias_ptr, up_bias_ptr, y_ptr, z_ptr, z_up_ptr, signs_ptr, act_params, dropout,
    M, N, K, stride_xm, stride_xk, stride_wn, stride_wk, stride_un, stride_uk, stride_zm, stride_signs,
    value: tl.constexpr, GATED: tl.constexpr, PARAM_STRIDES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """y [M, N] = dropout(act(x [M, K] weight [N, K]ᵀ + bias [N])); z (z_up) the pre-activations and signs those of act's result, unless
    None. One tile per program.
    """
    tile_m, tile_n = tile_position(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    row_mask, col_mask = (rows < M)[:, None], (cols < N)[None, :]
    rows64, cols64, ks64 = rows.to(tl.int64)[:, None], cols.to(tl.int64)[None, :], ks.to(tl.int64)
    x_ptrs = x_ptr + rows64 * stride_xm + ks64[None, :] * stride_xk
    w_ptrs = weight_ptr + cols64 * stride_wn + ks64[:, None] * stride_wk
    step = tl.full(
        (), BLOCK_K, tl.int64
    )  # times a stride: x stored column by column has strides as long as its rows are many
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = None
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
        start = tile_n * BLOCK_N + i * (BLOCK_N // PIECES)
        cols = start + tl.arange(0, BLOCK_N // PIECES)
        cols64 = cols.to(tl.int64)[None, :]
        mask = row_mask & (cols < N)[None, :]
        z = add_bias(z_pieces[i], bias_ptr, cols, N)
        if z_ptr is not None:
            tl.store(z_ptr + rows64 * stride_zm + cols64, rounded(z, z_ptr.dtype.element_ty), mask=mask)
        up_piece = None
        if up_ptr is not None:
            up_piece = add_bias(up_pieces[i], up_bias_ptr, cols, N)
            if z_ptr is not None:
                tl.store(z_up_ptr + rows64 * stride_zm + cols64, rounded(up_piece, z_ptr.dtype.element_ty), mask=mask)
        y = activate(z, up_piece, load_params(act_params, cols, N, PARAM_STRIDES), value, GATED)
        if signs_ptr is not None:
            store_signs(signs_ptr, y, tile_m * BLOCK_M, start, M, N, stride_signs)
        if dropout is not None:
            y = dropped(y, drawn(dropout, tile_m * BLOCK_M, start, BLOCK_M, BLOCK_N // PIECES), dropout)
        tl.store(y_ptr + rows64 * N + cols64, rounded(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def linear_fwd_tma_kernel(
    x_desc, weight_desc, up_desc, bias_ptr, up_bias_ptr, y_desc, z_desc, z_up_desc, signs_ptr, act_params, dropout,
    M, N, K, stride_signs,
    value: tl.constexpr, GATED: tl.constexpr, PARAM_STRIDES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    """The same by tensor descriptors, persistent: a program walks over tiles, so the next tile's loads run under this one's epilogue."""
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        tile_m, tile_n = tile_position(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        row, col = tile_m * BLOCK_M, tile_n * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if up_desc is not None:
            up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            x = x_desc.load([row, k])
            acc = dot(x, weight_desc.load([col, k]).T, acc, PRECISION)
            if up_desc is not None:
                up = dot(x, up_desc.load([col, k]).T, up, PRECISION)
        z_pieces = column_pieces(acc, PIECES)
        if up_desc is not None:
            up_pieces = column_pieces(up, PIECES)
        for i in tl.static_range(PIECES):
            start = col + i * (BLOCK_N // PIECES)
            cols = start + tl.arange(0, BLOCK_N // PIECES)
            z = add_bias(z_pieces[i], bias_ptr, cols, N)
            if z_desc is not None:
                z_desc.store([row, start], rounded(z, z_desc.dtype))
            up_piece = None
            if up_desc is not None:
                up_piece = add_bias(up_pieces[i], up_bias_ptr, cols, N)
                if z_desc is not None:
                    z_up_desc.store([row, start], rounded(up_piece, z_desc.dtype))
            y = activate(z, up_piece, load_params(act_params, cols, N, PARAM_STRIDES), value, GATED)
            if signs_ptr is not None:
                store_signs(signs_ptr, y, row, start, M, N, stride_signs)
            if dropout is not None:
                y = dropped(y, drawn(dropout, row, start, BLOCK_M, BLOCK_N // PIECES), dropout)
            y_desc.store([row, start], rounded(y, y_desc.dtype))


def linear_fwd(operands: Operands, keep: Keep, choice: Choice | None = None) -> tuple[Tensor, Tensor | None]:
    """(y [..., N], what to keep of it for backward beside y).

    keep "input": z [M, N] or gate|up [M, 2N]; "sign": whether act(z) > 0, bits in uint8 [M, ⌈N/8⌉]; else None.
    """
    if choice is None:
        choice = choose(_problem(operands, keep), machine(operands.x))
    if isinstance(choice, Config):
        return _fused_fwd(operands, keep, choice)
    return (library_fwd(operands), None) if choice == "library" else unfused_fwd(operands, keep, act_fwd)


def _problem(operands: Operands, keep: Keep) -> Problem:
    x, act, gated = rows_of(operands.x), operands.act, operands.gated
    weight, up, _, _ = operands.halves()
    (m, k), n = x.shape, weight.shape[0]
    with_bias, dropped = operands.bias is not None, operands.dropout is not None
    serve = descriptors_serve(x, weight, up)
    return forward_problem(m, n, k, x.dtype, act, gated, with_bias, dropped, keep, serve)


def _fused_fwd(operands: Operands, keep: Keep, config: Config) -> tuple[Tensor, Tensor | None]:
    x, act, gated = rows_of(operands.x), operands.act, operands.gated
    weight, up, bias, up_bias = operands.halves()
    m, n = x.shape[0], weight.shape[0]
    y = x.new_empty(*operands.x.shape[:-1], n)
    z = x.new_empty(m, 2 * n if gated else n) if keep == "input" else None
    signs = x.new_empty(m, triton.cdiv(n, 8), dtype=torch.uint8) if keep == "sign" else None
    kept = signs if z is None else z
    if y.numel() == 0:
        return y, kept
    z_gate, z_up = halves(z, n, gated)
    params, strides = param_arguments(operands.values)
    constants = {
        "value": device_function((act.gate or act).value, x.dtype), "GATED": act.arity == 1 or act.gate is not None,
        "PARAM_STRIDES": strides, "PRECISION": precision(x.dtype), **config.constants(),
    }  # fmt: skip
    matrices, biases, results = (x, weight, up), (bias, up_bias), (rows_of(y), z_gate, z_up)
    with on_device(x):
        launch = _launch_tma if config.tma else _launch_pointer
        extras = (signs, params, operands.dropout and operands.dropout.argument())
        launch(matrices, biases, results, extras, config, constants)
    return y, kept


def _launch_tma(matrices, biases, results, extras, config: Config, constants: dict[str, Any]) -> None:
    (m, k), n = matrices[0].shape, matrices[1].shape[0]
    blocks = ((rows, config.BLOCK_K) for rows in (config.BLOCK_M, config.BLOCK_N, config.BLOCK_N))
    loads = [descriptor(matrix, block) for matrix, block in zip(matrices, blocks, strict=True)]
    stores = [descriptor(result, (config.BLOCK_M, config.BLOCK_N // config.PIECES)) for result in results]
    programs = min(tiles(m, n, config), machine(matrices[0]).processors)
    stride_signs = triton.cdiv(n, 8)
    linear_fwd_tma_kernel[(programs,)](*loads, *biases, *stores, *extras, m, n, k, stride_signs, **constants)


def _launch_pointer(matrices, biases, results, extras, config: Config, constants: dict[str, Any]) -> None:
    x, weight, up = matrices
    _, z, _ = results
    (m, k), n = x.shape, weight.shape[0]
    strides = (*x.stride(), *weight.stride(), *((0, 0) if up is None else up.stride()), 0 if z is None else z.stride(0))
    linear_fwd_kernel[(tiles(m, n, config),)](
        *matrices, *biases, *results, *extras, m, n, k, *strides, triton.cdiv(n, 8), **constants
    )
