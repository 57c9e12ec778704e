"""The rule of accuracy says what broke it."""

import pytest
import torch

from checks import Inaccurate, assert_accurate


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 9.0])
def test_the_worst_element_is_told(value):
    exact = torch.linspace(1, 2, 12, dtype=torch.float64).view(3, 4)
    torchs, actual = exact.bfloat16(), exact.bfloat16()
    actual[2, 1] = value
    actual[0, 0] += 1
    with pytest.raises(Inaccurate, match="dtype bfloat16") as raised:
        assert_accurate(actual, torchs, exact)
    found = raised.value.found
    assert (found["shape"], found["index"], found["measure"]) == ([3, 4], [2, 1], "largest")
    assert found["exact"] == exact[2, 1]
    assert str(found["actual"]) == str(float(value))
    assert found["torch"] == (torchs.double() - exact).abs().max()


def test_torchs_own_error_twice_is_allowed():
    exact = torch.ones(4, dtype=torch.float64)
    torchs = torch.tensor([1.0, 1.25, 1.0, 1.0])
    assert_accurate(torch.tensor([1.0, 1.0, 0.5, 1.0]), torchs, exact)
    with pytest.raises(Inaccurate, match="measure largest"):
        assert_accurate(torch.tensor([1.0, 1.0, 0.4, 1.0]), torchs, exact)
    with pytest.raises(Inaccurate, match="measure RMS"):
        assert_accurate(torch.full((4,), 0.6), torchs, exact)
