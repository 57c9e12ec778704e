"""act(x Wᵀ + b), and with a second weight act(x Gᵀ + bg) ⊙ (x Uᵀ + bu): the forward kernels.

Two kernels compute the same: one loads by tensor descriptors (TMA, sm_90 and newer), one by pointers (everything else).
No kernel argument may be called `params`: the function that Triton writes to bind a launch's arguments has a variable of that name.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .configs import Config, choose, machine, precision
from .operands import Operands, on_device, param_arguments, rows_of
from .tiles import activate, add_bias, column_pieces, dot, load_params, rounded, tile_position
from .vocabulary import device_function


@triton.jit(do_not_specialize=["M"])
def linear_fwd_kernel(
    x_ptr, weight_ptr, up_ptr, bias_ptr, up_bias_ptr, y_ptr, z_ptr, z_up_ptr, act_params,
    M, N, K, stride_xm, stride_xk, stride_wn, stride_wk, stride_un, stride_uk, stride_zm,
    value: tl.constexpr, GATED: tl.constexpr, PARAM_STRIDES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """y [M, N] = act(x [M, K] weight [N, K]ᵀ + bias [N]), and z (z_up) the pre-activations unless None. One tile per program."""
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
    z = add_bias(acc, bias_ptr, cols, N)
    mask = row_mask & col_mask
    if z_ptr is not None:
        tl.store(z_ptr + rows64 * stride_zm + cols64, rounded(z, z_ptr.dtype.element_ty), mask=mask)
    if up_ptr is not None:
        up = add_bias(up, up_bias_ptr, cols, N)
        if z_ptr is not None:
            tl.store(z_up_ptr + rows64 * stride_zm + cols64, rounded(up, z_ptr.dtype.element_ty), mask=mask)
    y = activate(z, up, load_params(act_params, cols, N, PARAM_STRIDES), value, GATED)
    tl.store(y_ptr + rows64 * N + cols64, rounded(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def linear_fwd_tma_kernel(
    x_desc, weight_desc, up_desc, bias_ptr, up_bias_ptr, y_desc, z_desc, z_up_desc, act_params,
    M, N, K,
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
            y_desc.store([row, start], rounded(y, y_desc.dtype))


def linear_fwd(operands: Operands, save: bool, config: Config | None = None) -> tuple[Tensor, Tensor | None]:
    """(y [..., N], z [M, N] or gate|up [M, 2N]; z is None unless `save`)."""
    x, act = rows_of(operands.x), operands.act
    weight, up, bias, up_bias = operands.halves()
    (m, k), n = x.shape, weight.shape[0]
    y = x.new_empty(*operands.x.shape[:-1], n)
    z = x.new_empty(m, 2 * n if operands.gated else n) if save else None
    if y.numel() == 0:
        return y, z
    z_gate, z_up = (z, None) if z is None or not operands.gated else (z[:, :n], z[:, n:])
    params, strides = param_arguments(operands.values)
    constants = {
        "value": device_function((act.gate or act).value, x.dtype), "GATED": act.arity == 1 or act.gate is not None,
        "PARAM_STRIDES": strides, "PRECISION": precision(x),
    }  # fmt: skip
    matrices, biases, results = (x, weight, up), (bias, up_bias), (rows_of(y), z_gate, z_up)
    if config is None:
        tma = machine(x).descriptors and precision(x) != "ieee" and _tma_fits(x, weight, up, rows_of(y))
        config = choose(m, n, k, x.element_size(), operands.gated, tma, machine(x))
    with on_device(x):
        launch = _launch_tma if config.tma else _launch_pointer
        launch(matrices, biases, results, params, config, {**constants, **config.constants()})
    return y, z


def _launch_tma(matrices, biases, results, params: tuple, config: Config, constants: dict[str, Any]) -> None:
    (m, k), n = matrices[0].shape, matrices[1].shape[0]
    blocks = ((rows, config.BLOCK_K) for rows in (config.BLOCK_M, config.BLOCK_N, config.BLOCK_N))
    loads = [_descriptor(matrix, block) for matrix, block in zip(matrices, blocks, strict=True)]
    stores = [_descriptor(result, (config.BLOCK_M, config.BLOCK_N // config.PIECES)) for result in results]
    programs = min(_tiles(m, n, config), machine(matrices[0]).processors)
    linear_fwd_tma_kernel[(programs,)](*loads, *biases, *stores, params, m, n, k, **constants)


def _launch_pointer(matrices, biases, results, params: tuple, config: Config, constants: dict[str, Any]) -> None:
    x, weight, up = matrices
    _, z, _ = results
    (m, k), n = x.shape, weight.shape[0]
    strides = (*x.stride(), *weight.stride(), *((0, 0) if up is None else up.stride()), 0 if z is None else z.stride(0))
    linear_fwd_kernel[(_tiles(m, n, config),)](*matrices, *biases, *results, params, m, n, k, *strides, **constants)


def _tiles(m: int, n: int, config: Config) -> int:
    return triton.cdiv(m, config.BLOCK_M) * triton.cdiv(n, config.BLOCK_N)


def _descriptor(matrix: Tensor | None, block: tuple[int, int]) -> TensorDescriptor | None:
    return None if matrix is None else TensorDescriptor.from_tensor(matrix, list(block))


def _tma_fits(*matrices: Tensor | None) -> bool:
    """Tensor descriptors want unit column strides, rows that do not overlap, bases and row strides of 16 bytes, and no empty axis."""
    return all(
        t.shape[1] > 0
        and t.stride(1) == 1
        and t.stride(0) >= t.shape[1]
        and t.stride(0) * t.element_size() % 16 == 0
        and t.data_ptr() % 16 == 0
        for t in matrices
        if t is not None
    )
