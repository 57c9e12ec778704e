"""Timing with a clock that the calls themselves move, and on the device that is here."""

import contextlib
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
    pairs = {tuple(rounds[i : i + 2]) for i in range(0, len(rounds), 2)}
    assert pairs == {("a", "b"), ("b", "a")}  # one each a round, and not always the same one first


@pytest.mark.parametrize(("microseconds", "samples"), [(1e6, timing.ROUNDS[0]), (2000.0, 100), (0.1, timing.ROUNDS[1])])
def test_the_time_is_kept(clock, microseconds, samples):
    timing.measure({"a": clock.call("a", microseconds), "b": clock.call("b", microseconds)}, "cpu", seconds=0.2)
    assert clock.log.count("a") == timing.WARM + 1 + samples


@pytest.mark.parametrize(("microseconds", "samples"), [(1e6, timing.WARM), (20e3, 5), (10.0, 30)])
def test_the_hosts_time_is_a_median_of_a_few(clock, microseconds, samples):
    assert timing.host_time(clock.call("a", microseconds), "cpu") == pytest.approx(microseconds)
    assert len(clock.log) == samples


class Cuda:
    """What timing uses of torch.cuda, on the clock above; a captured call logs nothing and takes a tenth of its time."""

    def __init__(self, clock):
        self.clock = clock
        self.stream_now = self.default = SimpleNamespace()
        self.ended = []

    def Event(self, enable_timing):
        event = SimpleNamespace(elapsed_time=lambda end: 1e3 * (end.at - event.at))
        event.record = lambda: vars(event).update(at=self.clock.now)
        return event

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.stream_now = self.stream_now, stream
        yield
        self.stream_now = before

    @contextlib.contextmanager
    def graph(self, graph, pool, stream):
        assert stream is self.stream_now is not self.default
        start, logged = self.clock.now, len(self.clock.log)
        yield
        taken, self.clock.now = self.clock.now - start, start
        del self.clock.log[logged:]
        graph.replay = lambda: vars(self.clock).update(now=self.clock.now + taken / 10)

    def install(self, monkeypatch):
        fakes = {
            "Event": self.Event,
            "stream": self.stream,
            "graph": self.graph,
            "CUDAGraph": SimpleNamespace,
            "Stream": SimpleNamespace,
            "graph_pool_handle": lambda: (0, 1),
            "current_device": lambda: 0,
            "synchronize": lambda: None,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *of: self.ended.append(of), raising=False)
        monkeypatch.setattr(timing, "_flushed", lambda: torch.empty(1))
        monkeypatch.setattr(timing, "_capture_stream", SimpleNamespace)


def test_short_calls_are_replayed_as_graphs(clock, monkeypatch):
    cuda = Cuda(clock)
    cuda.install(monkeypatch)
    calls = {"short": clock.call("short", 80.0), "long": clock.call("long", 8000.0)}
    found = timing.measure(calls, "cuda")
    assert found["short"] == pytest.approx((8.0, 8.0, 8.0))
    assert found["long"] == pytest.approx((8000.0, 8000.0, 8000.0))
    assert clock.log.count("short") == 2 * timing.WARM + 2
    assert cuda.ended == []


def test_a_call_that_no_graph_can_hold_is_called(clock, monkeypatch):
    def waits():
        if cuda.stream_now is not cuda.default and len(clock.log) > 2 * timing.WARM + 1:
            raise RuntimeError("operation not permitted when stream is capturing")
        clock.call("waits", 80.0)()

    cuda = Cuda(clock)
    cuda.install(monkeypatch)
    assert timing.measure({"waits": waits}, "cuda")["waits"].median == pytest.approx(80.0)
    assert cuda.stream_now is cuda.default
    assert cuda.ended == [(0, (0, 1))]


def test_a_call_of_the_device_that_is_here(device):
    """Short enough for a CUDA graph, and too long for one."""
    x, big = (
        torch.randn(size, size, device=device, requires_grad=True) for size in (64, 4096 if device == "cuda" else 64)
    )

    def backward():
        return torch.autograd.grad(torch.tanh(x @ x), x, x)

    calls = {"backward": backward, "long": lambda: big @ big @ big}
    for low, median, high in timing.measure(calls, device, seconds=0.01).values():
        assert 0 < low <= median <= high
    for call in calls.values():
        assert timing.host_time(call, device) > 0


def test_the_peak_is_what_the_call_adds(device):
    kept = torch.empty(1 << 20, device=device)
    peak = timing.peak_bytes(lambda: (kept * 2) * 3, device)
    assert peak == (2 * 4 << 20 if device == "cuda" else None)
