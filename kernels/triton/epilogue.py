"""The epilogue of a product: its operands, and its work on one tile of the product. The kernels bring tiles and a schedule.

`finish` is forward's epilogue, `finish_backward` that of an MLP's backward. Another operand takes a field of `Epilogue` and a line in both.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .dropout import drawn, dropped
from .vocabulary import INTERPRETED, maximum, minimum


class Epilogue(NamedTuple):
    """The operands of an epilogue beside the product; None where absent. A kernel takes them as one argument.

    Matrices as large as the result are separate arguments, as pointers or as descriptors of the epilogue's tiles. Triton 3.6 and 3.7
    compile a kernel that has a descriptor in a tuple, but cannot launch it.
    """

    bias: Any = None
    up_bias: Any = None
    params: tuple = ()
    dropout: tuple | None = None
    stride: int = 0  # the row stride of z and up, as kept for backward
    signs: Any = None  # one bit for each element of y, kept in place of z


class Sums(NamedTuple):
    """The float32 sums over rows that backward's epilogue writes, one row of them for each row of tiles; None where absent."""

    dbias: Any = None
    dup_bias: Any = None
    stride: int = 0  # the row stride of these two, and of dz and dup
    dparam: Any = None


# Shared by the kernels' loops: the order of tiles, and the product.


@triton.jit
def tile_position(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """(tile_m, tile_n) of tile number `tile`. GROUP_M rows of tiles are walked column by column, so that both operands stay in L2."""
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = tile // (GROUP_M * tiles_n)
    first = group * GROUP_M
    height = min(tiles_m - first, GROUP_M)
    within = tile % (GROUP_M * tiles_n)
    return first + within % height, within // height


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b in float32."""
    if INTERPRETED:  # the interpreter's tl.dot returns garbage on bfloat16, without a message
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def column_pieces(z, PIECES: tl.constexpr):
    """z [rows, cols] as a tuple of PIECES (a power of two) column blocks, so that an epilogue needs registers for one piece only."""
    if PIECES == 1:
        return (z,)
    else:
        left, right = z.reshape(z.shape[0], 2, z.shape[1] // 2).permute(0, 2, 1).split()
        if PIECES == 2:
            return (left, right)
        else:
            return column_pieces(left, PIECES // 2) + column_pieces(right, PIECES // 2)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 x rounded to `dtype`, to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:  # the interpreter's own conversion truncates
        bits = x.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
        return tl.where(x == x, nearest, x).to(tl.bfloat16)
    else:
        return x.to(dtype)


@triton.jit
def widened(saved):
    """The kept tensor in float32. float16's infinity becomes its largest number: z may have overflowed in its rounding where y, computed
    from the unrounded z, did not, and a gradient of inf · 0 would be NaN.
    """
    wide = saved.to(tl.float32)
    if saved.dtype == tl.float16:
        return minimum(maximum(wide, -65504.0), 65504.0)
    else:
        return wide


@triton.jit
def load_params(params, cols, N, PARAM_STRIDES: tl.constexpr):
    """Load the activation's parameters: a number as it is (stride None), a tensor as a float32 row over the columns (stride 0 or 1)."""
    values = ()
    for i in tl.static_range(len(PARAM_STRIDES)):
        if PARAM_STRIDES[i] is None:
            values = values + (params[i],)  # type: ignore[assignment]
        else:
            row = tl.load(params[i] + cols * PARAM_STRIDES[i], mask=cols < N, other=0.0)
            values = values + (row.to(tl.float32)[None, :],)  # type: ignore[assignment]
    return values


@triton.jit
def add_bias(z, bias_ptr, cols, N):
    """z + bias in float32; z where there is no bias."""
    if bias_ptr is None:
        return z
    else:
        return z + tl.load(bias_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]


@triton.jit
def activate(z, up, values, value: tl.constexpr, GATED: tl.constexpr):
    """act(z); with `up`, act(z) · up where the activation is elementwise (GATED), act(z, up) where it is a pair."""
    if up is None:
        return value(z, *values)
    elif GATED:
        return value(z, *values) * up
    else:
        return value(z, up, *values)


@triton.jit
def z_gradient(dy, z, up, values, grad: tl.constexpr, grad_up: tl.constexpr):
    """dz of y = activate(z, up): for a pair by `grad`, for a gated activation (grad_up None) by the product rule."""
    if up is None:
        return dy * grad(z, *values)
    elif grad_up is None:
        return dy * up * grad(z, *values)
    else:
        return dy * grad(z, up, *values)


@triton.jit
def up_gradient(dy, z, up, values, value: tl.constexpr, grad_up: tl.constexpr):
    """dup of y = activate(z, up)."""
    if grad_up is None:
        return dy * value(z, *values)
    else:
        return dy * grad_up(z, up, *values)


@triton.jit
def param_gradient(dy, z, up, values, grad_param: tl.constexpr, GATED: tl.constexpr):
    """The learnable parameter's gradient, element by element."""
    if up is None:
        return dy * grad_param(z, *values)
    elif GATED:
        return dy * up * grad_param(z, *values)
    else:
        return dy * grad_param(z, up, *values)


@triton.jit
def store_signs(signs_ptr, y, row, col, M, N):
    """Store y > 0, one bit per element: eight columns to a byte, the first in its lowest bit. col is a multiple of 8."""
    rows = (row + tl.arange(0, y.shape[0]))[:, None]
    bytes_ = (col // 8 + tl.arange(0, y.shape[1] // 8))[None, :]
    bits = (y > 0.0).to(tl.int32).reshape(y.shape[0], y.shape[1] // 8, 8) << tl.arange(0, 8)[None, None, :]
    mask = (rows < M) & (bytes_ < tl.cdiv(N, 8))
    tl.store(signs_ptr + rows.to(tl.int64) * tl.cdiv(N, 8) + bytes_, tl.sum(bits, 2).to(tl.uint8), mask=mask)


@triton.jit
def load_signs(signs_ptr, row, col, M, N, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Load the bits that store_signs stored, as 1.0 and 0.0."""
    rows, cols = row + tl.arange(0, ROWS), col + tl.arange(0, COLS)
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    packed = tl.load(signs_ptr + rows.to(tl.int64)[:, None] * tl.cdiv(N, 8) + (cols // 8)[None, :], mask=mask, other=0)
    return ((packed.to(tl.int32) >> (cols % 8)[None, :]) & 1).to(tl.float32)


@triton.jit
def load_tile(matrix, stride, row, col, M, N, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Load the tile [ROWS, COLS] of a matrix [M, N] from (row, col) on, 0 beyond the matrix.

    By pointers: several such loads are under way at a time, while each load by a descriptor waits for its data.
    """
    rows, cols = row + tl.arange(0, ROWS), col + tl.arange(0, COLS)
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    ptrs = matrix + rows.to(tl.int64)[:, None] * stride + cols.to(tl.int64)[None, :]
    return tl.load(ptrs, mask=mask, other=0.0)


@triton.jit
def store_tile(matrix, stride, x, row, col, M, N, TMA: tl.constexpr):
    """Write float32 x to a matrix [M, N] from (row, col) on, in the matrix's dtype."""
    if TMA:
        matrix.store([row, col], rounded(x, matrix.dtype))
    else:
        rows, cols = row + tl.arange(0, x.shape[0]), col + tl.arange(0, x.shape[1])
        mask = (rows < M)[:, None] & (cols < N)[None, :]
        ptrs = matrix + rows.to(tl.int64)[:, None] * stride + cols.to(tl.int64)[None, :]
        tl.store(ptrs, rounded(x, matrix.dtype.element_ty), mask=mask)


@triton.jit
def load_saved(saved, up, epilogue, row, col, M, N, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Load a tile of the kept tensor, z or y or the signs in its place; with `up`, the tiles of gate and up. As a tuple."""
    if epilogue.signs is not None:
        return (load_signs(epilogue.signs, row, col, M, N, ROWS, COLS),)
    elif up is None:
        return (load_tile(saved, epilogue.stride, row, col, M, N, ROWS, COLS),)
    else:
        return (
            load_tile(saved, epilogue.stride, row, col, M, N, ROWS, COLS),
            load_tile(up, epilogue.stride, row, col, M, N, ROWS, COLS),
        )


@triton.jit
def store_sum(sums, stride, x, tile_m, row, col, M, N):
    """Write the float32 column sums of a tile x to row tile_m of `sums` [tiles_m, N], unless None. This needs no atomics."""
    if sums is not None:
        rows, cols = row + tl.arange(0, x.shape[0]), col + tl.arange(0, x.shape[1])
        total = tl.sum(tl.where((rows < M)[:, None], x, 0.0), 0)
        tl.store(sums + tile_m.to(tl.int64) * stride + cols, total, mask=cols < N)


@triton.jit
def finish(
    z, up, z_kept, up_kept, epilogue, row, col, M, N,
    value: tl.constexpr, GATED: tl.constexpr, PARAM_STRIDES: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """y = dropout(act(z + bias)), or dropout(act(z + bias, up + up_bias)) with `up`, for a tile of products from (row, col) on.

    It also writes the pre-activations to z_kept and up_kept, and the signs of y before dropout to epilogue.signs, unless None.
    """
    cols = col + tl.arange(0, z.shape[1])
    z = add_bias(z, epilogue.bias, cols, N)
    if z_kept is not None:
        store_tile(z_kept, epilogue.stride, z, row, col, M, N, TMA)
    if up is not None:
        up = add_bias(up, epilogue.up_bias, cols, N)
        if up_kept is not None:
            store_tile(up_kept, epilogue.stride, up, row, col, M, N, TMA)
    y = activate(z, up, load_params(epilogue.params, cols, N, PARAM_STRIDES), value, GATED)
    if epilogue.signs is not None:
        store_signs(epilogue.signs, y, row, col, M, N)
    if epilogue.dropout is not None:
        y = dropped(y, drawn(epilogue.dropout, row, col, y.shape[0], y.shape[1]), epilogue.dropout)
    return y


@triton.jit
def finish_backward(
    dh, saved_ptr, up_ptr, dz, dup, h, epilogue, sums, tile_m, row, first, M, N,
    value: tl.constexpr, grad: tl.constexpr, grad_up: tl.constexpr, grad_param: tl.constexpr, PARAM_STRIDES: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    """Write dz = dropout(dh) ⊙ act'(saved), dup, h = dropout(act(saved)) and the sums for a tile of dh from (row, first) on.

    In column pieces: on the whole tile it would hold five tiles and spill registers. The kept tensor is read and the results are written by
    pointers: each access by a descriptor waits for the one before it. A sum waits for all warps, so the next piece's loads begin before it.
    """
    ROWS: tl.constexpr = dh.shape[0]
    COLS: tl.constexpr = dh.shape[1] // PIECES
    pieces = column_pieces(dh, PIECES)
    saved = load_saved(saved_ptr, up_ptr, epilogue, row, first, M, N, ROWS, COLS)
    for i in tl.static_range(PIECES):
        piece, col = pieces[i], first + i * COLS
        values = load_params(epilogue.params, col + tl.arange(0, COLS), N, PARAM_STRIDES)
        if epilogue.dropout is not None:
            stays = drawn(epilogue.dropout, row, col, ROWS, COLS)
            piece = dropped(piece, stays, epilogue.dropout)
        z = widened(saved[0])
        up = None
        if up_ptr is not None:
            up = widened(saved[1])
        z_grad = z_gradient(piece, z, up, values, grad, grad_up)
        store_tile(dz, sums.stride, z_grad, row, col, M, N, False)
        if up_ptr is not None:
            up_grad = up_gradient(piece, z, up, values, value, grad_up)
            store_tile(dup, sums.stride, up_grad, row, col, M, N, False)
        if h is not None:
            result = activate(z, up, values, value, grad_up is None)
            if epilogue.dropout is not None:
                result = dropped(result, stays, epilogue.dropout)
            store_tile(h, N, result, row, col, M, N, False)
        if i + 1 < PIECES:
            saved = load_saved(saved_ptr, up_ptr, epilogue, row, col + COLS, M, N, ROWS, COLS)
        store_sum(sums.dbias, sums.stride, z_grad, tile_m, row, col, M, N)
        if up_ptr is not None:
            store_sum(sums.dup_bias, sums.stride, up_grad, tile_m, row, col, M, N)
        if sums.dparam is not None:
            param_grad = param_gradient(piece, z, up, values, grad_param, grad_up is None)
            store_sum(sums.dparam, N, param_grad, tile_m, row, col, M, N)
