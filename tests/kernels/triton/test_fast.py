"""The fast primitives over every value of the 16-bit type that they serve, against NumPy's in float64."""

import re

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from epilogue.triton.vocabulary import EXACT, VOCABULARIES
from epilogue.vocabulary import NUMPY

CASES = [
    pytest.param(name, dtype, id=f"{name}-{dtype}")
    for dtype, vocabulary in VOCABULARIES.items()
    for name in NUMPY
    if vocabulary[name] is not EXACT[name]
]
FLUSHED = 2.0**-126
"""Smaller inputs and results may count as 0."""


@triton.jit
def apply_kernel(x_ptr, y_ptr, function: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + index, function(tl.load(x_ptr + index)))


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_error_is_the_stated_one(name, dtype, device):
    primitive = VOCABULARIES[dtype][name]
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    x = torch.where(x.abs() < FLUSHED, 0.0 * x, x)
    y = torch.empty(2**16, device=device)
    apply_kernel[(16,)](x.to(device, torch.float32), y, function=primitive, BLOCK=4096)
    actual = y.to(dtype).double().cpu()
    with np.errstate(all="ignore"):
        exact = torch.from_numpy(NUMPY[name](x.double().numpy()))

    expected = exact.to(dtype).double()
    finite = expected.isfinite()
    torch.testing.assert_close(actual[~finite], expected[~finite], rtol=0, atol=0, equal_nan=True)
    actual, exact = actual[finite], exact[finite]
    flushed = exact.abs() < FLUSHED
    assert (actual[flushed].abs() <= FLUSHED).all()
    limits = torch.finfo(dtype)
    ulp = limits.eps * exact.abs().clamp(min=limits.tiny).log2().floor().exp2()
    error = ((actual - exact).abs() / ulp)[~flushed].max().item()
    stated = float(re.search(rf"([\d.]+) ulp of {str(dtype).removeprefix('torch.')}", primitive.fn.__doc__)[1])
    assert stated <= 1.0
    assert error == pytest.approx(stated, abs=0.03)  # which allows for the hardware's approximations
