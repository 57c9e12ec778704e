"""`epilogue memory` on the kernels themselves: they keep for backward what arithmetic says."""

import functools

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
from epilogue.benchmarks.shapes import Shape
from epilogue.benchmarks.train.memory import DTYPE, OURS, TOKENS, blocks, bytes_kept

D, F = 64, 256
GATED = Shape("gated", D, F, "silu", gated=True, bias=False)
PLAIN = Shape("plain", D, F, "gelu", gated=False, bias=True)
LLAMA, GELU = (shape._replace(d=4096 // 64, hidden=14336 // 64) for shape in (GATED, PLAIN))
SEED = 8 / 2 / TOKENS
"""Dropout's only trace, 64 bits a call, as elements per token."""


def kept(shape, device):
    """Column -> elements per token; without torch.compile's."""
    x = torch.randn(TOKENS, shape.d, device=device, dtype=DTYPE, requires_grad=True)
    columns = blocks(shape, device)
    return {
        name: bytes_kept(functools.partial(columns[name], x), columns[name]) / TOKENS / 2 for name in ("eager", *OURS)
    }


@pytest.mark.parametrize(
    ("shape", "elements", "recomputed"),
    [
        (GATED, D + 2 * F, D),  # x and the pre-activations, or x alone
        (PLAIN, D + F, D),
        (PLAIN._replace(activation="relu"), D + F, D),
        (GATED._replace(dropout=0.1), D + 2 * F + SEED, D + SEED),
    ],
)
def test_they_keep_what_arithmetic_says(shape, elements, recomputed, device):
    found = kept(shape, device)
    assert (found["epilogue"], found["recompute=True"]) == (elements, recomputed)


@pytest.mark.parametrize(("shape", "share"), [(LLAMA, 0.54), (GELU, 0.57)], ids=["Llama", "GELU"])
def test_they_keep_about_half_of_eagers(shape, share, device):
    found = kept(shape, device)
    assert found["epilogue"] <= share * found["eager"]
