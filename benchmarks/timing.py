"""The cost of one call: time on the device, time of the host, memory. Calls that are compared take turns, warm, with a cold L2."""

import contextlib
import functools
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch

Call = Callable[[], object]

WARM = 3
ROUNDS = (10, 500)
"""The least and the most samples of each call."""

GRAPH_BELOW = 1000.0
"""Microseconds under which a call is replayed as a CUDA graph. A short call is as slow as the host that launches it, and a backward pass of
a few kernels takes the host hundreds of microseconds."""

FLUSHED = 256 << 20
"""Bytes written before each sample, several times the L2 of any GPU: as in a model, a call finds none of its operands there. Meanwhile the
host launches the sample."""


class Timing(NamedTuple):
    """Microseconds of one call on the device: lower quartile, median, upper quartile."""

    low: float
    median: float
    high: float


def measure(calls: Mapping[str, Call], device: str, seconds: float = 0.2) -> dict[str, Timing]:
    """Name -> the time of one call on the device, "cpu" or "cuda".

    All calls in turns, round after round in this process, so that a change in the machine's speed affects all alike; in another order each
    round, since a call's speed depends on what ran before it; each warm, its first calls not counted. On a GPU L2 is flushed before each
    sample, and short calls run as CUDA graphs where they can be captured, which leaves the host's time out. seconds: about how long each
    call is measured.
    """
    timed = _gpu_round if device == "cuda" else _cpu_round
    runs = {name: _prepared(call, device) for name, call in calls.items()}
    timed(runs.values())  # a graph's first replay uploads it, and capturing emptied the allocator's cache
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order, shuffled = list(runs), random.Random(0)

    def one_round() -> None:
        shuffled.shuffle(order)
        for name, microseconds in zip(order, timed([runs[name] for name in order]), strict=True):
            samples[name].append(microseconds)

    start = time.perf_counter()
    one_round()
    one = time.perf_counter() - start
    least, most = ROUNDS
    for _ in range(min(max(least, round(seconds * len(runs) / one)), most) - 1):
        one_round()
    return {name: _timing(times) for name, times in samples.items()}


def host_time(call: Call, device: str) -> float:
    """Microseconds that the host needs for one call, not waiting for the device: the median of a few, each on an idle device."""
    times: list[float] = []
    while len(times) < WARM or (len(times) < 30 and sum(times) < 0.1e6):
        times += _cpu_round([call])
        if device == "cuda":
            torch.cuda.synchronize()
    return statistics.median(times)


def peak_bytes(call: Call, device: str) -> int | None:
    """The peak of torch's allocator during the call, above what was there before it; None on the CPU, where torch does not count."""
    if device != "cuda":
        return None
    call()  # libraries keep the workspaces of their first call
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _timing(times: Iterable[float]) -> Timing:
    return Timing(*(round(quartile, 2) for quartile in statistics.quantiles(times, n=4, method="inclusive")))


def _prepared(call: Call, device: str) -> Call:
    """The warm call, or the replay of its CUDA graph."""
    for _ in range(WARM):
        call()
    if device == "cuda" and min(_gpu_round([call] * WARM)) < GRAPH_BELOW:
        return _captured(call)
    return call


def _captured(call: Call) -> Call:
    """The replay of the call's CUDA graph; the call itself where it cannot be captured (it waits for the device, say)."""
    stream, graph, pool = _capture_stream(), torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):  # left in any case; torch.cuda.graph does not leave it where a capture fails
        call()  # what a library keeps for each stream must not come from the graph's memory
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                call()
        except Exception:  # the call works, so whatever it raises here comes from the capture
            torch.cuda.synchronize()
            with contextlib.suppress(RuntimeError):  # or the allocator takes it for under way, and refuses later ones
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            return call
    return graph.replay


@functools.cache
def _capture_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


@functools.cache
def _flushed() -> torch.Tensor:
    return torch.empty(FLUSHED, dtype=torch.int8, device="cuda")


def _gpu_round(runs: Iterable[Call]) -> list[float]:
    """Microseconds on the GPU, each run once; the host waits only at the end.

    The first call after a wait took up to 15 % longer on an H100, so one goes before, untimed.
    """
    runs, events = list(runs), []
    runs[-1]()
    for run in runs:
        _flushed().zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [1e3 * start.elapsed_time(end) for start, end in events]


def _cpu_round(runs: Iterable[Call]) -> list[float]:
    times = []
    for run in runs:
        start = time.perf_counter()
        run()
        times.append(1e6 * (time.perf_counter() - start))
    return times
