"""`epilogue training`: a real training step of two small language models, stock torch.nn against epilogue's layers.

A Llama-shaped and a GPT-2-shaped model learn the bytes of the standard library's own sources by AdamW, eager and under torch.compile, all
from the same weights on the same batches. Each run's loss curve is compared with stock eager's before any time is shown.
The parameters are bfloat16: there are no casts between the layers, and both sides' AdamW loses the same in rounding.
Without a GPU a tiny scale in float32 shows that both learn alike; epilogue's layers are plain torch operations there, and nothing is timed.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from epilogue.benchmarks import timing
from epilogue.benchmarks.progress import progress
from epilogue.benchmarks.provenance import machine
from epilogue.benchmarks.report import slug, table, write
from epilogue.benchmarks.timing import Timing
from epilogue.benchmarks.train import losses
from epilogue.benchmarks.train.language_models import MODELS, Batch, Size, batches
from epilogue.benchmarks.train.layers import FUSED, STOCK

LAYERS = {"stock": STOCK, "epilogue": FUSED}
SECONDS = 2.0
"""About how long each run is timed."""


class LanguageModelScale(NamedTuple):
    """The size of a training. tolerance: the largest distance from stock eager's loss, from rounding and what the steps make of it."""

    sizes: dict[str, Size]
    batch: dict[str, int]
    steps: int
    dtype: torch.dtype
    learning_rate: float
    tolerance: float


FULL = LanguageModelScale(
    {"llama": Size(2048, 5632, 8, 16, 2048), "gpt2": Size(768, 3072, 12, 12, 1024)},
    {"llama": 8, "gpt2": 16},
    steps=20,
    dtype=torch.bfloat16,
    learning_rate=3e-4,
    tolerance=0.02,
)
TINY = LanguageModelScale(
    {"llama": Size(64, 176, 2, 4, 32), "gpt2": Size(64, 256, 2, 4, 32)},
    {"llama": 4, "gpt2": 4},
    steps=6,
    dtype=torch.float32,
    learning_rate=3e-3,
    tolerance=1e-4,
)


class TrainingRow(NamedTuple):
    """One run: the tokens of a step, its time, the first steps' losses."""

    model: str
    layers: str
    compiled: bool
    tokens: int
    parameters: int
    us: Timing | None
    peak_bytes: int | None
    loss: Sequence[float]

    @property
    def run(self) -> str:
        return f"{self.layers}, {'torch.compile' if self.compiled else 'eager'}"


Trained = tuple[TrainingRow, Callable[[], Tensor]]
"""A model in training: its row, and a call that does its next step."""


def runs(name: str, scale: LanguageModelScale, device: str) -> Iterator[Trained]:
    """Train stock and epilogue, eager and compiled, from the same weights on the same batches; yield each after its first steps, stock
    eager first."""
    torch.compiler.reset()  # every model is a recompilation of one forward, and torch allows eight
    size, batch = scale.sizes[name], scale.batch[name]
    torch.manual_seed(0)
    with torch.device(device):
        weights = MODELS[name](STOCK, size).state_dict()
    data = batches(size, batch, scale.steps, device)
    backend = "inductor" if device == "cuda" else "aot_eager"  # inductor would need a C++ compiler
    for layers, compiled in itertools.product(LAYERS, (False, True)):
        with torch.device(device):
            model = MODELS[name](LAYERS[layers], size)
        model.load_state_dict(weights)
        model.to(scale.dtype)
        forward: Any = torch.compile(model, backend=backend, fullgraph=True, dynamic=False) if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), scale.learning_rate, fused=device == "cuda")
        call = functools.partial(step, forward, optimizer, itertools.cycle(data))
        first = torch.stack([call() for _ in range(scale.steps)]).tolist()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        yield TrainingRow(name, layers, compiled, batch * size.context, parameters, None, None, first), call


def step(forward: Callable[..., Tensor], optimizer: torch.optim.Optimizer, data: Iterator[Batch]) -> Tensor:
    """Train for one step; the loss before it. A step begins and ends without gradients, so that its peak of memory counts them."""
    loss = forward(*next(data))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def gap(row: TrainingRow, stock: TrainingRow) -> float:
    """The largest distance of two runs' loss curves; infinite where one is not finite."""
    return max(losses.gaps(row.loss, stock.loss))


def training_faults(rows: Sequence[TrainingRow], tolerance: float) -> list[str]:
    """The reasons why the times of one model's runs, stock eager first, mean nothing: a run that did not learn, or not as the others."""
    broken = []
    for row in rows:
        if not gap(row, rows[0]) <= tolerance:
            broken.append(
                f"{row.model}, {row.run}: {gap(row, rows[0]):.1e} from stock eager's losses, allowed {tolerance:.0e}"
            )
        broken += losses.stuck(f"{row.model}, {row.run}", row.loss)
    return broken


def timed(trained: Sequence[Trained], device: str, seconds: float) -> list[TrainingRow]:
    """Time the runs: their rows with times and peaks; seconds: about how long each run is timed."""
    times = timing.measure({row.run: call for row, call in trained}, device, seconds)
    return [row._replace(us=times[row.run], peak_bytes=timing.peak_bytes(call, device)) for row, call in trained]


def curves(rows: Sequence[TrainingRow]) -> list[tuple[str, ...]]:
    """A table's rows: the losses of one model's runs."""
    heading = ("model", "run", "loss, first to last step", "largest distance from stock eager's")
    lines = [
        (row.model, row.run, f"{row.loss[0]:.4f} to {row.loss[-1]:.4f}", f"{gap(row, rows[0]):.1e}") for row in rows
    ]
    return [heading, *lines]


def cells(rows: Sequence[TrainingRow]) -> list[tuple[str, ...]]:
    """A table's rows: the times; ratios are ours / stock, eager to eager and compiled to compiled: below 1 is faster, or less."""
    lines: list[tuple[str, ...]] = [
        (
            "model", "parameters", "tokens", "run", "ms per step", "quartiles", "tokens/s", "peak MiB", "time / stock",
            "peak / stock",
        )
    ]  # fmt: skip
    stock = {(row.model, row.compiled): row for row in rows if row.layers == "stock"}
    for row in rows:
        base = stock[row.model, row.compiled]
        assert row.us  # rows are shown once they are timed
        assert base.us
        low, median, high = (us / 1e3 for us in row.us)
        peak = f"{row.peak_bytes / 2**20:,.0f}" if row.peak_bytes else ""
        peak_ratio = f"{row.peak_bytes / base.peak_bytes:.3f}" if row.peak_bytes and base.peak_bytes else ""
        lines.append(
            (
                row.model, f"{row.parameters / 1e6:.0f} M", str(row.tokens), row.run, f"{median:.2f}",
                f"{low:.2f} - {high:.2f}", f"{1e3 * row.tokens / median:,.0f}", peak, f"{row.us.median / base.us.median:.3f}",
                peak_ratio,
            )
        )  # fmt: skip
    return lines


def compare(scale: LanguageModelScale, device: str, seconds: float | None, directory: Path | None) -> int:
    """Train, compare the losses, and time each run for about so many seconds; 1 where a promise is broken."""
    rows: list[TrainingRow] = []
    for name in MODELS:
        trained = list(progress(runs(name, scale, device), name, 2 * len(LAYERS), "run"))
        untimed = [row for row, _ in trained]
        print(table(curves(untimed)))
        broken = training_faults(untimed, scale.tolerance)
        if broken:
            print("\n".join(f"FAILED: {promise}" for promise in broken))
            return 1
        if seconds is not None:
            rows += timed(trained, device, seconds)
    if rows:
        print(table(cells(rows)))
    if directory:
        head = machine()
        path = directory / f"training-{slug(str(head['gpu']))}.json"
        write(path, {**head, "rows": [row._asdict() for row in rows]})
        print(f"written: {path}")
    return 0


def main(directory: Path | None) -> int:
    """Compare on the GPU, print, and write training-<gpu>.json into the folder; without a GPU compare the losses alone."""
    if torch.cuda.is_available():
        return compare(FULL, "cuda", SECONDS, directory)
    if directory:
        raise SystemExit("epilogue training: without a GPU nothing is timed that --json could keep; leave it out")
    print("No GPU here: a tiny scale on the CPU, where epilogue's layers are plain torch operations. It is not timed.")
    return compare(TINY, "cpu", None, None)
