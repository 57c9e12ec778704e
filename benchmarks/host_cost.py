"""`epilogue host-cost`: what one tiny call costs the host, against the same in plain torch.

The arithmetic of a 4x8 call takes no time, so what is measured is Python, the checks, autograd's bookkeeping and the launches.
"""

import datetime
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import epilogue
from epilogue.benchmarks.report import commit, driver, table, versions, write

ROWS, FEATURES = 4, 8
TARGET = 1.5
ROUNDS, CALLS = 60, 100


class Cost(NamedTuple):
    """Microseconds per call as (lower quartile, median, upper quartile), and the median over the rounds of epilogue's to eager's."""

    device: str
    mode: str
    eager: tuple[float, ...]
    epilogue: tuple[float, ...]
    ratio: float


def eager_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(F.linear(x, weight, bias))


def calls(operation: Callable, device: str) -> dict[str, Callable[[], object]]:
    """Mode -> one call to measure."""
    torch.manual_seed(0)
    operands = [torch.randn(size, device=device) for size in ((ROWS, FEATURES), (FEATURES, FEATURES), (FEATURES,))]
    learned = [tensor.clone().requires_grad_() for tensor in operands]
    dy = torch.randn(ROWS, FEATURES, device=device)
    return {
        "no grad": lambda: operation(*operands),
        "forward + backward": lambda: torch.autograd.grad(operation(*learned), learned, dy),
    }


def microseconds(call: Callable[[], object], device: str, count: int) -> float:
    """Host time of one call, without waiting for what it launched."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count * 1e6


def measure(device: str, rounds: int = ROUNDS, count: int = CALLS) -> list[Cost]:
    """Both operations in each mode, in turns, so that a change of the machine's mood meets both."""
    eager, fused = calls(eager_linear, device), calls(epilogue.linear, device)
    costs = []
    for mode in eager:
        both = (eager[mode], fused[mode])
        for call in both:
            microseconds(call, device, count)  # warm
        times = [[microseconds(call, device, count) for call in both] for _ in range(rounds)]
        theirs, ours = (quartiles(column) for column in zip(*times, strict=True))
        costs.append(Cost(device, mode, theirs, ours, round(statistics.median(b / a for a, b in times), 3)))
    return costs


def quartiles(times: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(quartile, 2) for quartile in statistics.quantiles(times, n=4))


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def summary(costs: list[Cost]) -> str:
    rows: list[tuple[str, ...]] = [
        ("device", "mode", "eager, us", "quartiles", "epilogue, us", "quartiles", "ratio", f"target {TARGET}")
    ]
    for cost in costs:
        columns = []
        for low, median, high in (cost.eager, cost.epilogue):
            columns += [f"{median:.1f}", f"{low:.1f} - {high:.1f}"]
        met = "met" if cost.ratio <= TARGET else "missed"
        rows.append((cost.device, cost.mode, *columns, f"{cost.ratio:.2f}", met))
    return table(rows)


def machine() -> dict[str, object]:
    """What the measurement ran on, for whoever reads it later."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {
        "date": now,
        "cpu": processor(),
        "gpu": gpu,
        "driver": driver(),
        "versions": versions(),
        "commit": commit(),
    }


def processor() -> str:
    """The CPU's model name; Python's own answer is often empty on Linux."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main(path: Path | None) -> int:
    """Measure and print; with a path write it as JSON too."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    with one_thread():
        costs = [cost for device in devices for cost in measure(device)]
    print(f"gelu(x W^T + b), x [{ROWS}, {FEATURES}], W [{FEATURES}, {FEATURES}], float32, 1 thread, {processor()}")
    print(f"per call, median of {ROUNDS} rounds of {CALLS} calls; ratio: median over the rounds")
    print(summary(costs))
    if path:
        case = {"rows": ROWS, "features": FEATURES, "dtype": "float32", "threads": 1, "rounds": ROUNDS, "calls": CALLS}
        result = {**machine(), "case": case, "target": TARGET, "costs_us": [cost._asdict() for cost in costs]}
        write(path, result)
        print(f"written: {path}")
    return 0
