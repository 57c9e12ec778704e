"""What the kernels share: the order of tiles, products, parameters, and the epilogue's arithmetic."""

import triton
import triton.language as tl

from .vocabulary import INTERPRETED


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
def column_pieces(z, PIECES: tl.constexpr):
    """z [rows, cols] as a tuple of PIECES (1 or 2) column blocks: an epilogue in pieces needs a piece's registers."""
    if PIECES == 1:
        return (z,)
    else:
        return z.reshape(z.shape[0], 2, z.shape[1] // 2).permute(0, 2, 1).split()
