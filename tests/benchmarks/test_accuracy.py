"""The rule of accuracy: where it ends, and that no NaN passes it."""

import math

import pytest
import torch

from epilogue.benchmarks.accuracy import accurate

EPS = 2.0**-7  # bfloat16's


@pytest.mark.parametrize(
    ("error", "torchs", "size", "allowed"),
    [
        (2.0, 1.0, 0.0, True),
        (2.01, 1.0, 0.0, False),
        (4 * EPS, 0.0, 4.0, True),
        (4.01 * EPS, 0.0, 4.0, False),
        (math.nan, 1.0, 1.0, False),
        (0.0, math.nan, 1.0, False),
    ],
)
def test_twice_torchs_own_and_one_rounding(error, torchs, size, allowed):
    assert accurate(error, torchs, torch.bfloat16, size) is allowed
