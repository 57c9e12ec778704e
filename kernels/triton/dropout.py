"""Dropout inside an epilogue. The mask is a function of a seed and the position alone, so it is never stored."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..operands import Dropout
from .plan.configs import OPTIONS


@triton.jit
def drawn(dropout, rows, col, COLS: tl.constexpr):
    """The mask of the elements (rows[i], col + j) that a dropout keeps, as bytes of 1 and 0.

    dropout: (pointer to a 64-bit seed, threshold, 1/(1-p)). An element is kept where its 32 random bits, as a signed number, reach the
    threshold. They are one of four words that Philox4x32-7 (Salmon et al. 2011, doi:10.1145/2063384.2063405) makes of the counter
    (column // 4, row). The tile's shape does not matter, so backward draws forward's mask. col must be a multiple of 4.
    """
    zero = tl.zeros((rows.shape[0], COLS // 4), tl.int32)
    groups = (col // 4 + tl.arange(0, COLS // 4))[None, :] + zero
    a, b, c, d = tl.philox(tl.load(dropout[0]), groups, rows[:, None] + zero, zero, zero, 7)
    even = tl.join(_kept(a, dropout[1]), _kept(c, dropout[1]))
    odd = tl.join(_kept(b, dropout[1]), _kept(d, dropout[1]))
    return tl.join(even, odd).reshape(rows.shape[0], COLS)


@triton.jit
def dropped(y, mask, dropout):
    """y · 1/(1-p) where `drawn` kept it, else 0. The mask moves to the tile's layout as bytes, not as float32 factors."""
    return tl.where(mask != 0, y * dropout[2], 0.0)


@triton.jit
def _kept(word, threshold):
    return (word.to(tl.int32, bitcast=True) >= threshold).to(tl.int8)


@triton.jit
def dropout_mask_kernel(mask_ptr, dropout, M, N, BLOCK: tl.constexpr):
    rows, col = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1) * BLOCK
    cols = col + tl.arange(0, BLOCK)
    ones = tl.full((BLOCK, BLOCK), 1.0, tl.float32)
    factors = dropped(ones, drawn(dropout, rows, col, BLOCK), dropout)
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    tl.store(mask_ptr + rows.to(tl.int64)[:, None] * N + cols[None, :], factors, mask=mask)


def dropout_mask(dropout: Dropout, m: int, n: int) -> Tensor:
    """The factors that the kernels multiply h [m, n] by, float32."""
    mask = torch.empty(m, n, device=dropout.seed.device)
    if mask.numel():
        with torch.cuda.device_of(mask):
            grid = triton.cdiv(m, 32), triton.cdiv(n, 32)
            dropout_mask_kernel[grid](mask, dropout.argument(), m, n, BLOCK=32, **OPTIONS)
    return mask
