"""The benchmark of a tiny call: both sides compute the same, the numbers are kept as data."""

import functools
import json

import pytest
import torch

from epilogue.benchmarks.machine import host_cost
from epilogue.nn.surgery import sites


@pytest.mark.parametrize("mode", ["no grad", "forward + backward"])
@pytest.mark.parametrize("what", ["operation", "MLP"])
def test_both_sides_compute_the_same(what, mode, device):
    eager, fused = (host_cost.calls(what, fused, device)[mode]() for fused in (False, True))
    torch.testing.assert_close(fused, eager)


def test_the_mlp_runs_fused(monkeypatch):
    ran, mlp = [], sites.mlp
    monkeypatch.setattr(sites, "mlp", lambda *args, **kwargs: ran.append(1) or mlp(*args, **kwargs))
    host_cost.calls("MLP", False, "cpu")["no grad"]()
    assert not ran
    host_cost.calls("MLP", True, "cpu")["no grad"]()
    assert ran


def test_the_measurement_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(host_cost, "measure", functools.partial(host_cost.measure, rounds=3, count=2))
    path = tmp_path / "new" / "cost.json"
    assert host_cost.main(path) == 0
    assert "fc2(gelu(fc1(x))) stock and after fuse" in capsys.readouterr().out
    written = json.loads(path.read_text())
    assert {"date", "cpu", "gpu", "versions", "case", "target", "costs_us"} <= written.keys()
    cost = written["costs_us"][0]
    assert (cost["device"], cost["what"], cost["mode"]) == ("cpu", "operation", "no grad")
    low, median, high = cost["eager"]
    assert 0 < low <= median <= high
    assert cost["ratio"] > 0


def test_the_threads_are_as_before():
    before = torch.get_num_threads()
    with host_cost.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
