"""`epilogue host-cost`: what one tiny call costs the host, against the same in plain torch: an operation, and an MLP after `fuse`.

The arithmetic of a 4x8 call takes no time, so what is measured is Python, the checks, autograd's bookkeeping and the launches.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import epilogue
from epilogue.benchmarks.provenance import machine, processor
from epilogue.benchmarks.report import table, write
from epilogue.nn import fuse

ROWS, FEATURES = 4, 8
TARGET, FUSE_TARGET = 1.5, 1.3
ROUNDS, CALLS = 60, 100


class Cost(NamedTuple):
    """Microseconds per call as (lower quartile, median, upper quartile); ratio: epilogue's to eager's, the median over the rounds."""

    device: str
    what: str
    mode: str
    eager: tuple[float, ...]
    epilogue: tuple[float, ...]
    ratio: float


def eager_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(F.linear(x, weight, bias))


class MLP(nn.Module):
    """fc2(gelu(fc1(x))), as models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(FEATURES, FEATURES), nn.GELU(), nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def calls(what: str, fused: bool, device: str) -> dict[str, Callable[[], object]]:
    """Mode -> one call to measure, of an "operation" or an "MLP", eager or ours."""
    torch.manual_seed(0)
    x, dy = torch.randn(ROWS, FEATURES, device=device), torch.randn(ROWS, FEATURES, device=device)
    if what == "MLP":
        module = MLP().to(device)
        if fused:
            fuse(module)
        call: Callable[..., Tensor] = module
        operands, learned = [x], [x.clone().requires_grad_()]
        wanted = [*learned, *module.parameters()]
    else:
        call = epilogue.linear if fused else eager_linear
        operands = [x, *(torch.randn(size, device=device) for size in ((FEATURES, FEATURES), (FEATURES,)))]
        learned = wanted = [tensor.clone().requires_grad_() for tensor in operands]

    def without_grad() -> Tensor:
        with torch.no_grad():
            return call(*operands)

    return {
        "no grad": without_grad,
        "forward + backward": lambda: torch.autograd.grad(call(*learned), wanted, dy),
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
    """Time both operations in each mode, in turns, so that a change in the machine's speed affects both alike."""
    costs = []
    for what in ("operation", "MLP"):
        eager, fused = calls(what, False, device), calls(what, True, device)
        for mode in eager:
            both = (eager[mode], fused[mode])
            for call in both:
                microseconds(call, device, count)  # warm
            times = [[microseconds(call, device, count) for call in both] for _ in range(rounds)]
            theirs, ours = (quartiles(column) for column in zip(*times, strict=True))
            ratio = round(statistics.median(b / a for a, b in times), 3)
            costs.append(Cost(device, what, mode, theirs, ours, ratio))
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
        ("device", "call", "mode", "eager, us", "quartiles", "epilogue, us", "quartiles", "ratio", "target", "")
    ]
    for cost in costs:
        columns = []
        for low, median, high in (cost.eager, cost.epilogue):
            columns += [f"{median:.1f}", f"{low:.1f} - {high:.1f}"]
        target = FUSE_TARGET if cost.what == "MLP" else TARGET
        met = "met" if cost.ratio <= target else "missed"
        rows.append((cost.device, cost.what, cost.mode, *columns, f"{cost.ratio:.2f}", str(target), met))
    return table(rows)


def main(path: Path | None) -> int:
    """Measure and print; with a path also write the result as JSON."""
    shapes = f"x [{ROWS}, {FEATURES}], W [{FEATURES}, {FEATURES}], float32, 1 thread, {processor()}"
    print(f"operation: gelu(x W^T + b); MLP: fc2(gelu(fc1(x))) stock and after fuse; {shapes}")
    print(f"per call, median of {ROUNDS} rounds of {CALLS} calls; ratio: median over the rounds")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    with one_thread():
        costs = [cost for device in devices for cost in measure(device)]
    print(summary(costs))
    if path:
        case = {"rows": ROWS, "features": FEATURES, "dtype": "float32", "threads": 1, "rounds": ROUNDS, "calls": CALLS}
        result = {
            **machine(),
            "case": case,
            "target": TARGET,
            "fuse_target": FUSE_TARGET,
            "costs_us": [cost._asdict() for cost in costs],
        }
        write(path, result)
        print(f"written: {path}")
    return 0
