"""The benchmark of a tiny call: both sides compute the same, the numbers are kept as data."""

import functools
import json

import pytest
import torch

import epilogue
from epilogue.benchmarks import host_cost


@pytest.mark.parametrize("mode", ["no grad", "forward + backward"])
def test_both_sides_compute_the_same(mode, device):
    eager, fused = (host_cost.calls(op, device)[mode]() for op in (host_cost.eager_linear, epilogue.linear))
    torch.testing.assert_close(fused, eager)


def test_the_measurement_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(host_cost, "measure", functools.partial(host_cost.measure, rounds=3, count=2))
    path = tmp_path / "new" / "cost.json"
    assert host_cost.main(path) == 0
    assert "target 1.5" in capsys.readouterr().out
    written = json.loads(path.read_text())
    assert {"date", "cpu", "gpu", "versions", "case", "target", "costs_us"} <= written.keys()
    cost = written["costs_us"][0]
    assert (cost["device"], cost["mode"]) == ("cpu", "no grad")
    low, median, high = cost["eager"]
    assert 0 < low <= median <= high
    assert cost["ratio"] > 0


def test_the_threads_are_as_before():
    before = torch.get_num_threads()
    with host_cost.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
