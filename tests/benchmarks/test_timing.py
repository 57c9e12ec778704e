"""Timing with a clock that the calls themselves move, and on the device that is here."""

from types import SimpleNamespace

import pytest
import torch

from epilogue.benchmarks import timing


class Clock:
    """Stands still but for the calls that it makes."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def call(self, name, *microseconds):
        """A call that takes these times in turn."""

        def run():
            taken = microseconds[self.log.count(name) % len(microseconds)]
            self.log.append(name)
            self.now += 1e-6 * taken

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_each_call_has_its_own_quartiles(clock):
    found = timing.measure({"even": clock.call("even", 40.0), "odd": clock.call("odd", 100.0, 200.0, 300.0)}, "cpu")
    assert found["even"] == pytest.approx((40.0, 40.0, 40.0))
    assert found["odd"] == pytest.approx((100.0, 200.0, 300.0))


def test_calls_take_turns(clock):
    timing.measure({"a": clock.call("a", 50.0), "b": clock.call("b", 70.0)}, "cpu")
    rounds = clock.log[2 * timing.WARM :]
    assert rounds == ["a", "b"] * (len(rounds) // 2)


@pytest.mark.parametrize(("microseconds", "samples"), [(1e6, timing.ROUNDS[0]), (2000.0, 100), (0.1, timing.ROUNDS[1])])
def test_the_time_is_kept(clock, microseconds, samples):
    timing.measure({"a": clock.call("a", microseconds), "b": clock.call("b", microseconds)}, "cpu", seconds=0.2)
    assert clock.log.count("a") == timing.WARM + 1 + samples


@pytest.mark.parametrize(("microseconds", "samples"), [(1e6, timing.WARM), (20e3, 5), (10.0, 30)])
def test_the_hosts_time_is_a_median_of_a_few(clock, microseconds, samples):
    assert timing.host_time(clock.call("a", microseconds), "cpu") == pytest.approx(microseconds)
    assert len(clock.log) == samples


def test_a_call_of_the_device_that_is_here(device):
    """Short enough for a CUDA graph, too long for one, and one that no graph can hold."""
    x, big = (
        torch.randn(size, size, device=device, requires_grad=True) for size in (64, 4096 if device == "cuda" else 64)
    )

    def backward():
        return torch.autograd.grad(torch.tanh(x @ x), x, x)

    calls = {"backward": backward, "long": lambda: big @ big @ big, "waits": lambda: float(x.detach().sum())}
    for low, median, high in timing.measure(calls, device, seconds=0.01).values():
        assert 0 < low <= median <= high
    for call in calls.values():
        assert timing.host_time(call, device) > 0
    torch.testing.assert_close(backward()[0], backward()[0])  # a failed capture leaves torch in order


def test_the_peak_is_what_the_call_adds(device):
    kept = torch.empty(1 << 20, device=device)
    peak = timing.peak_bytes(lambda: (kept * 2) * 3, device)
    assert peak == (2 * 4 << 20 if device == "cuda" else None)
