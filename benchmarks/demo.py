"""`epilogue demo`: one classifier of handwritten digits, trained with stock torch.nn and with epilogue's layers, side by side."""

import functools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

from epilogue import triton
from epilogue.benchmarks.layers import FUSED, STOCK, Layers
from epilogue.benchmarks.memory import bytes_kept
from epilogue.benchmarks.report import table

HELD_OUT = 360
ACCURACY = 0.97
WEIGHT_DECAY = 0.05
NOISE, SMOOTHING = 0.2, 0.1  # on the pixels and the labels, so that 1,437 images are not learned by heart


class Scale(NamedTuple):
    """How large a training is. tolerance: how far apart the loss curves may be, float32 rounding and what steps make of it."""

    width: int
    batch: int
    steps: int
    learning_rate: float
    tolerance: float


FULL = Scale(width=128, batch=128, steps=400, learning_rate=2e-3, tolerance=1e-3)
INTERPRETED = Scale(width=16, batch=32, steps=6, learning_rate=1e-2, tolerance=1e-5)


class Classifier(nn.Module):
    """A residual network over an image's 64 pixels: [batch, 64] -> logits [batch, 10]."""

    def __init__(self, layers: Layers, width: int) -> None:
        super().__init__()
        self.stem = layers.linear(64, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = layers.mlp(width, 4 * width)
        self.gated_norm = nn.LayerNorm(width)
        self.gated_mlp = layers.gated_mlp(width, 3 * width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.mlp(self.mlp_norm(x))
        x = x + self.gated_mlp(self.gated_norm(x))
        return self.head(self.norm(x))


class Digits(NamedTuple):
    """Images [count, 64] in 0 … 1 and their labels [count], for training and held out."""

    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def digits(device: torch.device) -> Digits:
    """scikit-learn's 1,797 digits, a stratified fifth held out, always the same one."""
    data = load_digits()
    images, held_out_images, labels, held_out_labels = (
        torch.as_tensor(array, device=device)
        for array in train_test_split(
            data.data / 16, data.target, test_size=HELD_OUT, stratify=data.target, random_state=0
        )
    )
    return Digits(images.float(), labels, held_out_images.float(), held_out_labels)


def batches(data: Digits, size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches, their pixels noisy: (images [size, 64], labels [size])."""
    generator = torch.Generator().manual_seed(0)  # on the CPU: the same batches on every device
    for _ in range(steps):
        picked = torch.randint(len(data.labels), (size,), generator=generator).to(data.labels.device)
        noise = torch.randn(size, data.images.shape[1], generator=generator).to(data.images.device)
        yield data.images[picked] + NOISE * noise, data.labels[picked]


@dataclass
class Run:
    """One model in training, and what was seen of it."""

    model: Classifier
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    kept: int = 0
    accuracy: float = 0.0


def begin(model: Classifier, steps: int, learning_rate: float) -> Run:
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(steps, 2))
    return Run(model, optimizer, schedule)


def loss_of(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(x), labels, label_smoothing=SMOOTHING)


def step(run: Run, x: Tensor, labels: Tensor) -> None:
    """One timed step of training."""
    start = time.perf_counter()
    loss = loss_of(run.model, x, labels)
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    run.losses.append(loss.item())  # waits for the device
    run.seconds.append(time.perf_counter() - start)
    run.schedule.step()


def gaps(stock: Run, fused: Run) -> list[float]:
    """The two loss curves' distance, step by step."""
    return [abs(a - b) for a, b in zip(stock.losses, fused.losses, strict=True)]


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    return (model(data.held_out_images).argmax(-1) == data.held_out_labels).double().mean().item()


def train(data: Digits, scale: Scale, steps: int) -> tuple[Run, Run]:
    """(stock, epilogue), trained from the same weights on the same batches, in turns so that both see the same machine."""
    torch.manual_seed(0)
    models = [Classifier(layers, scale.width).to(data.images.device) for layers in (STOCK, FUSED)]
    models[1].load_state_dict(models[0].state_dict())
    stock, fused = (begin(model, steps, scale.learning_rate) for model in models)
    progress = tqdm(batches(data, scale.batch, steps), total=steps, desc="training both", unit="step", disable=None)
    for x, labels in progress:
        step(stock, x, labels)
        step(fused, x, labels)
        progress.set_postfix(loss=f"{fused.losses[-1]:.3f}", refresh=False)
    for run in (stock, fused):
        run.kept = bytes_kept(functools.partial(loss_of, run.model, x, labels), run.model)
        run.accuracy = accuracy(run.model, data)
    return stock, fused


def backend(x: Tensor, weight: Tensor) -> tuple[str, str | None]:
    """(what runs epilogue's layers on such tensors, why it is not the Triton kernels)."""
    refusal = triton.refusal(x, weight)
    if refusal:
        return "plain torch", refusal
    return "Triton, interpreted" if triton.INTERPRET else "Triton kernels", None


def summary(stock: Run, fused: Run, ran: str, scale: Scale) -> str:
    """Both runs side by side."""
    both = (stock, fused)
    rows: list[tuple[str, ...]] = [
        ("", "torch.nn", "epilogue"),
        ("backend", "plain torch", ran),
        ("held-out digits right", *(f"{run.accuracy:.1%}" for run in both)),
        ("loss, first to last step", *(f"{run.losses[0]:.4f} to {run.losses[-1]:.4f}" for run in both)),
        ("largest loss difference", "", f"{max(gaps(stock, fused)):.1e} (allowed: {scale.tolerance:.0e})"),
        ("time per step, median", *(f"{statistics.median(run.seconds) * 1e3:.2f} ms" for run in both)),
        ("kept for backward", *(f"{run.kept / 1024:.1f} KiB" for run in both)),
    ]
    return table(rows)


def draw(stock: Run, fused: Run, ran: str, path: Path) -> None:
    """Both loss curves, and their distance below."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    curves, distance = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curves.plot(stock.losses, linewidth=4, alpha=0.4, label=f"torch.nn, {stock.accuracy:.1%} of held-out digits")
    curves.plot(fused.losses, linewidth=1, color="black", label=f"epilogue ({ran}), {fused.accuracy:.1%}")
    curves.set(ylabel="training loss", title="Handwritten digits: the same model, weights and batches")
    curves.legend()
    distance.plot(gaps(stock, fused), color="black", linewidth=1)
    distance.set(xlabel="step", ylabel="|difference|")
    distance.set_ylim(bottom=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def broken_promises(stock: Run, fused: Run, scale: Scale) -> list[str]:
    """What the demo promises and this run did not keep. Accuracy is promised of a full training alone."""
    broken = []
    if not all(gap <= scale.tolerance for gap in gaps(stock, fused)):  # a NaN breaks it too
        broken.append(f"the loss curves differ by {max(gaps(stock, fused)):.1e}, more than {scale.tolerance:.0e}")
    if scale is FULL and len(stock.losses) >= scale.steps:
        for name, run in (("torch.nn", stock), ("epilogue", fused)):
            if run.accuracy < ACCURACY:
                broken.append(f"{name} gets {run.accuracy:.1%} of the held-out digits right, less than {ACCURACY:.0%}")
    return broken


def main(interpret: bool, steps: int | None, out: Path, device: str | None) -> int:
    """Train, print, draw; 1 where a promise is broken."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("epilogue demo: torch finds no GPU here (`epilogue doctor` says why); leave out --device")
    if device is None:
        device = "cuda" if torch.cuda.is_available() and not interpret else "cpu"
    torch.set_num_threads(1)  # with matrices this small threads only wait for one another, on a busy machine for long
    scale = INTERPRETED if interpret else FULL
    steps = steps or scale.steps
    data = digits(torch.device(device))
    print(
        f"{len(data.labels)} digits to learn, {HELD_OUT} held out; {steps} steps of {scale.batch} on {device}, float32"
    )
    stock, fused = train(data, scale, steps)
    ran, refusal = backend(data.images, fused.model.stem.weight)
    print(summary(stock, fused, ran, scale))
    broken = broken_promises(stock, fused, scale)
    if refusal and interpret:
        broken.append(f"no Triton kernel ran: {refusal}")
    elif refusal:
        print(f"No Triton kernel ran: {refusal}.")
        print("An NVIDIA GPU runs them, and so does `epilogue demo --interpret` on any Linux machine.")
    path = out / ("demo-interpret.png" if interpret else "demo.png")
    draw(stock, fused, ran, path)
    print(f"loss curves: {path}")
    for promise in broken:
        print(f"FAILED: {promise}")
    return 1 if broken else 0
