"""What the kernels share: the order of tiles, products, parameters, and the arithmetic of the epilogues."""

import triton
import triton.language as tl

from .vocabulary import INTERPRETED, maximum, minimum


@triton.jit
def tile_position(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """(tile_m, tile_n) of the tile-th tile: GROUP_M rows of tiles are walked column by column, so that both operands stay in L2."""
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = tile // (GROUP_M * tiles_n)
    first = group * GROUP_M
    height = min(tiles_m - first, GROUP_M)
    within = tile % (GROUP_M * tiles_n)
    return first + within % height, within // height


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b in float32."""
    if INTERPRETED:  # its tl.dot returns garbage on bfloat16, without a message
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 x in `dtype`, to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:  # the interpreter's own conversion truncates
        bits = x.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
        return tl.where(x == x, nearest, x).to(tl.bfloat16)
    else:
        return x.to(dtype)


@triton.jit
def widened(saved):
    """What was kept for backward, as float32. An infinity of float16 is the largest number: z may have overflowed in its rounding
    where y, of the z before it, had not, and inf · 0 would be a gradient of NaN.
    """
    wide = saved.to(tl.float32)
    if saved.dtype == tl.float16:
        return minimum(maximum(wide, -65504.0), 65504.0)
    else:
        return wide


@triton.jit
def load_params(params, cols, N, PARAM_STRIDES: tl.constexpr):
    """The activation's parameters: a number as it is (stride None), a tensor as a float32 row over the columns (stride 0 or 1)."""
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
    """dz of y = activate(z, up): of a pair by `grad`, of a gated activation (grad_up None) by the product rule."""
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
def store_signs(signs_ptr, y, row, col, M, N, stride):
    """y > 0, a bit per element: eight columns a byte, the first in its lowest bit. col is a multiple of 8."""
    rows = (row + tl.arange(0, y.shape[0]))[:, None]
    bytes_ = (col // 8 + tl.arange(0, y.shape[1] // 8))[None, :]
    bits = (y > 0.0).to(tl.int32).reshape(y.shape[0], y.shape[1] // 8, 8) << tl.arange(0, 8)[None, None, :]
    mask = (rows < M) & (bytes_ < tl.cdiv(N, 8))
    tl.store(signs_ptr + rows.to(tl.int64) * stride + bytes_, tl.sum(bits, 2).to(tl.uint8), mask=mask)


@triton.jit
def load_signs(signs_ptr, rows64, cols, stride, mask):
    """What store_signs stored, as 1.0 and 0.0."""
    packed = tl.load(signs_ptr + rows64 * stride + (cols // 8)[None, :], mask=mask, other=0)
    return ((packed.to(tl.int32) >> (cols % 8)[None, :]) & 1).to(tl.float32)


@triton.jit
def store_sum(sum_ptr, x, tile_m, cols, mask, N, stride):
    """The float32 column sums of a tile's x as row tile_m of [tiles_m, ...], so that no atomics are needed; nothing without a pointer."""
    if sum_ptr is not None:
        total = tl.sum(tl.where(mask, x, 0.0), 0)
        tl.store(sum_ptr + tile_m.to(tl.int64) * stride + cols, total, mask=cols < N)


@triton.jit
def column_pieces(z, PIECES: tl.constexpr):
    """z [rows, cols] as a tuple of PIECES (a power of two) column blocks: an epilogue in pieces needs a piece's registers."""
    if PIECES == 1:
        return (z,)
    else:
        left, right = z.reshape(z.shape[0], 2, z.shape[1] // 2).permute(0, 2, 1).split()
        if PIECES == 2:
            return (left, right)
        else:
            return column_pieces(left, PIECES // 2) + column_pieces(right, PIECES // 2)
