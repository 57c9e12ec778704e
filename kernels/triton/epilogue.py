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
def row_halves(z):
    """z [rows, cols] as (the rows with row % 16 < 8, the others), which are registers of the same threads in a product's result."""
    ROWS: tl.constexpr = z.shape[0]
    COLS: tl.constexpr = z.shape[1]
    first, second = z.reshape(ROWS // 16, 2, 8, COLS).permute(0, 2, 3, 1).split()
    return (first.reshape(ROWS // 2, COLS), second.reshape(ROWS // 2, COLS))


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
def zeros_for_arrays(PARAM_STRIDES: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """A float32 tile of zeros for each parameter that is a tensor, as a tuple."""
    zeros = ()
    for i in tl.static_range(len(PARAM_STRIDES)):
        if PARAM_STRIDES[i] is not None:
            zeros = zeros + (tl.zeros((ROWS, COLS), tl.float32),)  # type: ignore[assignment]
    return zeros


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
def scaled(dy, slopes):
    """dy times each of a tuple."""
    results = ()
    for i in tl.static_range(len(slopes)):
        results = results + (dy * slopes[i],)
    return results


@triton.jit
def param_gradients(dy, z, up, values, grad_params: tl.constexpr, GATED: tl.constexpr):
    """The gradients of the learnable parameters, element by element, as a tuple."""
    if up is None:
        return scaled(dy, grad_params(z, *values))
    elif GATED:
        return scaled(dy * up, grad_params(z, *values))
    else:
        return scaled(dy, grad_params(z, up, *values))


@triton.jit
def store_signs(signs_ptr, y, rows, col, M, N):
    """Store y > 0, one bit per element: eight columns to a byte, the first in its lowest bit. col is a multiple of 8."""
    bytes_ = col // 8 + tl.arange(0, y.shape[1] // 8)
    bits = (y > 0.0).to(tl.int32).reshape(y.shape[0], y.shape[1] // 8, 8) << tl.arange(0, 8)[None, None, :]
    mask = (rows < M)[:, None] & (bytes_ < tl.cdiv(N, 8))[None, :]
    ptrs = signs_ptr + rows.to(tl.int64)[:, None] * tl.cdiv(N, 8) + bytes_[None, :]
    tl.store(ptrs, tl.sum(bits, 2).to(tl.uint8), mask=mask)


@triton.jit
def load_signs(signs_ptr, rows, col, M, N, COLS: tl.constexpr):
    """Load the bits that store_signs stored, as 1.0 and 0.0."""
    cols = col + tl.arange(0, COLS)
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    packed = tl.load(signs_ptr + rows.to(tl.int64)[:, None] * tl.cdiv(N, 8) + (cols // 8)[None, :], mask=mask, other=0)
    return ((packed.to(tl.int32) >> (cols % 8)[None, :]) & 1).to(tl.float32)


@triton.jit
def load_tile(matrix, stride, rows, col, M, N, COLS: tl.constexpr):
    """Load those rows and COLS columns from `col` on of a matrix [M, N], 0 beyond the matrix."""
    cols = col + tl.arange(0, COLS)
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    ptrs = matrix + rows.to(tl.int64)[:, None] * stride + cols.to(tl.int64)[None, :]
    return tl.load(ptrs, mask=mask, other=0.0)


@triton.jit
def store_tile(matrix, stride, x, rows, col, M, N):
    """Write float32 x to those rows of a matrix [M, N] from `col` on, in the matrix's dtype."""
    cols = col + tl.arange(0, x.shape[1])
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    ptrs = matrix + rows.to(tl.int64)[:, None] * stride + cols.to(tl.int64)[None, :]
    tl.store(ptrs, rounded(x, matrix.dtype.element_ty), mask=mask)


@triton.jit
def store_result(matrix, stride, x, row, col, M, N, TMA: tl.constexpr):
    """store_tile from `row` on; with TMA `matrix` is a descriptor."""
    if TMA:
        matrix.store([row, col], rounded(x, matrix.dtype))
    else:
        store_tile(matrix, stride, x, row + tl.arange(0, x.shape[0]), col, M, N)


@triton.jit
def load_saved(saved, up, epilogue, rows, col, M, N, COLS: tl.constexpr):
    """Load a tile of the kept tensor, z or y or the signs in its place; with `up`, the tiles of gate and up. As a tuple."""
    if epilogue.signs is not None:
        return (load_signs(epilogue.signs, rows, col, M, N, COLS),)
    elif up is None:
        return (load_tile(saved, epilogue.stride, rows, col, M, N, COLS),)
    else:
        return (
            load_tile(saved, epilogue.stride, rows, col, M, N, COLS),
            load_tile(up, epilogue.stride, rows, col, M, N, COLS),
        )


@triton.jit
def added(total, x, rows, M):
    """total + x without the rows past M, or that x alone where total is None."""
    x = tl.where((rows < M)[:, None], x, 0.0)
    if total is None:
        return x
    else:
        return total + x


@triton.jit
def added_each(totals, xs, rows, M):
    """`added` for each pair of two tuples."""
    results = ()
    for i in tl.static_range(len(xs)):
        results = results + (added(totals[i], xs[i], rows, M),)
    return results


@triton.jit
def store_sum(sums, stride, x, tile_m, col, N):
    """Write the float32 column sums of x to row tile_m of `sums` [tiles_m, N], unless None. This needs no atomics."""
    if sums is not None:
        cols = col + tl.arange(0, x.shape[1])
        tl.store(sums + tile_m.to(tl.int64) * stride + cols, tl.sum(x, 0), mask=cols < N)


@triton.jit
def finish(
    z, up, z_kept, up_kept, epilogue, row, col, M, N,
    value: tl.constexpr, GATED: tl.constexpr, PARAM_STRIDES: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """y = dropout(act(z + bias)), or dropout(act(z + bias, up + up_bias)) with `up`, for a tile of products from (row, col) on.

    It also writes the pre-activations to z_kept and up_kept, and the signs of y before dropout to epilogue.signs, unless None.
    """
    rows, cols = row + tl.arange(0, z.shape[0]), col + tl.arange(0, z.shape[1])
    z = add_bias(z, epilogue.bias, cols, N)
    if z_kept is not None:
        store_result(z_kept, epilogue.stride, z, row, col, M, N, TMA)
    if up is not None:
        up = add_bias(up, epilogue.up_bias, cols, N)
        if up_kept is not None:
            store_result(up_kept, epilogue.stride, up, row, col, M, N, TMA)
    y = activate(z, up, load_params(epilogue.params, cols, N, PARAM_STRIDES), value, GATED)
    if epilogue.signs is not None:
        store_signs(epilogue.signs, y, rows, col, M, N)
    if epilogue.dropout is not None:
        y = dropped(y, drawn(epilogue.dropout, rows, col, y.shape[1]), epilogue.dropout)
    return y


@triton.jit
def finish_backward(
    dh, saved_ptr, up_ptr, dz, dup, h, epilogue, sums, tile_m, row, first, M, N,
    value: tl.constexpr, grad: tl.constexpr, grad_up: tl.constexpr, grad_params: tl.constexpr, PARAM_STRIDES: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    """Write dz = dropout(dh) ⊙ act'(saved), dup, h = dropout(act(saved)) and the sums for a tile of dh from (row, first) on.

    In pieces, of half the rows and 1 / PIECES of the columns: on the whole tile it would hold five tiles and spill registers. Narrower ones
    would touch less than 128 bytes of a row. The kept tensor is read and the results are written by pointers: each access by a descriptor
    waits for the one before it. A sum waits for all warps, so the next piece's loads begin before it.
    """
    COLS: tl.constexpr = dh.shape[1] // PIECES
    pieces = column_pieces(dh, PIECES)
    index = tl.arange(0, dh.shape[0] // 2)
    rows = row + index // 8 * 16 + index % 8
    saved = load_saved(saved_ptr, up_ptr, epilogue, rows, first, M, N, COLS)
    for i in tl.static_range(PIECES):
        halves, col = row_halves(pieces[i]), first + i * COLS
        values = load_params(epilogue.params, col + tl.arange(0, COLS), N, PARAM_STRIDES)
        z_sum, up_sum, param_sums = None, None, ()
        if sums.dparam is not None:
            param_sums = zeros_for_arrays(PARAM_STRIDES, dh.shape[0] // 2, COLS)
        for j in tl.static_range(2):
            half, at = halves[j], rows + 8 * j
            if epilogue.dropout is not None:
                stays = drawn(epilogue.dropout, at, col, COLS)
                half = dropped(half, stays, epilogue.dropout)
            z = widened(saved[0])
            up = None
            if up_ptr is not None:
                up = widened(saved[1])
            z_grad = z_gradient(half, z, up, values, grad, grad_up)
            store_tile(dz, sums.stride, z_grad, at, col, M, N)
            if sums.dbias is not None:
                z_sum = added(z_sum, z_grad, at, M)
            if up_ptr is not None:
                up_grad = up_gradient(half, z, up, values, value, grad_up)
                store_tile(dup, sums.stride, up_grad, at, col, M, N)
                if sums.dup_bias is not None:
                    up_sum = added(up_sum, up_grad, at, M)
            if sums.dparam is not None:
                param_grads = param_gradients(half, z, up, values, grad_params, grad_up is None)
                param_sums = added_each(param_sums, param_grads, at, M)
            if h is not None:
                result = activate(z, up, values, value, grad_up is None)
                if epilogue.dropout is not None:
                    result = dropped(result, stays, epilogue.dropout)
                store_tile(h, N, result, at, col, M, N)
            if j == 0:
                saved = load_saved(saved_ptr, up_ptr, epilogue, rows + 8, col, M, N, COLS)
            elif i + 1 < PIECES:
                saved = load_saved(saved_ptr, up_ptr, epilogue, rows, col + COLS, M, N, COLS)
        store_sum(sums.dbias, sums.stride, z_sum, tile_m, col, N)
        store_sum(sums.dup_bias, sums.stride, up_sum, tile_m, col, N)
        if sums.dparam is not None:
            for p in tl.static_range(len(param_sums)):
                store_sum(sums.dparam + p * N, len(param_sums) * N, param_sums[p], tile_m, col, N)
