"""`epilogue bandwidth` on the CuPy kernels themselves: they pass its gate, and move the bytes that it counts."""

import functools

import pytest
import torch

pytest.importorskip("tqdm")
from epilogue.benchmarks import timing
from epilogue.benchmarks.machine import bandwidth
from epilogue.cupy import tensors


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("dtype", bandwidth.DTYPES)
@pytest.mark.parametrize("activation", bandwidth.CLASSES)
@pytest.mark.parametrize("what", bandwidth.PASSES)
def test_they_are_timed(what, activation, dtype, device, monkeypatch):
    monkeypatch.setattr(timing, "measure", functools.partial(timing.measure, seconds=0.01))
    case = bandwidth.PointwiseCase(what, activation, dtype, 50, 33)
    assert bandwidth.measured(case, {"cupy": tensors}, device)["results"]["cupy"].keys() == {"us", "gbps", "of_copy"}
    z, dy = (torch.ones(50, k * 33, device=device, dtype=getattr(torch, dtype)) for k in (case.act.arity, 1))
    read = z.nbytes + dy.nbytes * (what != bandwidth.FORWARD)  # what is kept is as large as z
    assert case.bytes == read + sum(part.nbytes for part in bandwidth.pass_of(case, tensors, z, dy)().values())
