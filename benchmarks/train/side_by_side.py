"""Two models in training side by side, stock and epilogue, on the same batches."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from epilogue import backends, triton
from epilogue.benchmarks.progress import progress
from epilogue.benchmarks.report import table
from epilogue.benchmarks.train import losses

WEIGHT_DECAY = 0.05

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, inputs, labels) -> the loss."""


@dataclass
class Run:
    """One model in training, and what was measured. accuracy: on the held-out part of the data, None where there is none."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    accuracy: float | None = None


class Training(NamedTuple):
    """Both runs, the picture's title, the largest distance that their losses may have, and a message for each broken promise."""

    title: str
    stock: Run
    fused: Run
    tolerance: float
    broken: list[str]


def begin(name: str, model: nn.Module, steps: int, learning_rate: float) -> Run:
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(steps, 2))
    return Run(name, model, optimizer, schedule)


def step(run: Run, loss_of: Loss, x: Tensor, labels: Tensor) -> None:
    """Train for one step, and time it."""
    torch.manual_seed(len(run.losses))  # both models' dropouts draw the same
    start = time.perf_counter()
    loss = loss_of(run.model, x, labels)
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    run.losses.append(loss.item())  # waits for the device
    run.seconds.append(time.perf_counter() - start)
    run.schedule.step()


def train(
    models: Mapping[str, nn.Module],
    loss_of: Loss,
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    learning_rate: float,
) -> tuple[Run, Run]:
    """Train the two models, stock first, in turns so that both see the same machine."""
    stock, fused = (begin(name, model, steps, learning_rate) for name, model in models.items())
    for x, labels in progress(batches, "training both", steps, "step"):
        step(stock, loss_of, x, labels)
        step(fused, loss_of, x, labels)
    return stock, fused


def gaps(stock: Run, fused: Run) -> list[float]:
    """The distance of the two loss curves, step by step."""
    return losses.gaps(stock.losses, fused.losses)


def apart(stock: Run, fused: Run, tolerance: float) -> list[str]:
    """A message where the two do not train alike."""
    largest = max(gaps(stock, fused))
    return [] if largest <= tolerance else [f"the loss curves differ by {largest:.1e}, more than {tolerance:.0e}"]


def backend(model: nn.Module) -> tuple[str, str | None]:
    """(what runs epilogue's operations on the model's matrices, the reason if no kernel does, else None)."""
    weight = next(parameter for parameter in model.parameters() if parameter.ndim == 2)
    name, reason = backends.serving(weight, weight)
    if name == "eager":
        return "plain torch", reason
    if name == "cupy":
        return "CuPy kernels", None
    return "Triton, interpreted" if triton.INTERPRET else "Triton kernels", None


def summary(training: Training, ran: str) -> str:
    """A table of both runs, side by side."""
    both = (training.stock, training.fused)
    rows: list[tuple[str, ...]] = [("", *(run.name for run in both)), ("runs on", "plain torch", ran)]
    if training.fused.accuracy is not None:
        rows.append(("held-out digits right", *(f"{run.accuracy:.1%}" for run in both)))
    rows += [
        ("loss, first to last step", *(f"{run.losses[0]:.4f} to {run.losses[-1]:.4f}" for run in both)),
        ("largest loss difference", "", f"{max(gaps(*both)):.1e} (allowed: {training.tolerance:.0e})"),
        ("time per step, median", *(f"{statistics.median(run.seconds) * 1e3:.2f} ms" for run in both)),
    ]
    return table(rows)
