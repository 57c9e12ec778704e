"""`epilogue bandwidth` on the Triton kernels themselves: they pass its gate."""

import pytest

pytest.importorskip("tqdm")
from epilogue.benchmarks import timing
from epilogue.benchmarks.machine import bandwidth
from epilogue.triton import pointwise


@pytest.mark.parametrize("activation", bandwidth.CLASSES)
@pytest.mark.parametrize("what", bandwidth.PASSES)
def test_they_pass(what, activation, device, monkeypatch):
    monkeypatch.setattr(timing, "measure", lambda calls, device: dict.fromkeys(calls, timing.Timing(1.0, 2.0, 3.0)))
    case = bandwidth.PointwiseCase(what, activation, "bfloat16", 50, 33)
    assert "us" in bandwidth.measured(case, {"triton": pointwise}, device)["results"]["triton"]
