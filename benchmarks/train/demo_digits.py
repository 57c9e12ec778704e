"""`epilogue demo`: one classifier of handwritten digits, built from stock torch.nn and from epilogue's layers."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from epilogue.benchmarks.train.kernel_step import StepCase
from epilogue.benchmarks.train.layers import FUSED, STOCK, Layers
from epilogue.benchmarks.train.side_by_side import Run, Training, apart, train

HELD_OUT = 360
ACCURACY = 0.97
NOISE, SMOOTHING = 0.2, 0.1  # on the pixels and the labels, so that 1,437 images are not learned by heart


class DigitsScale(NamedTuple):
    """The size of a training. tolerance: the largest distance of the loss curves, from float32 rounding and what the steps make of it."""

    width: int
    batch: int
    steps: int
    learning_rate: float
    tolerance: float


FULL = DigitsScale(width=128, batch=128, steps=400, learning_rate=2e-3, tolerance=1e-3)
INTERPRETED = DigitsScale(width=16, batch=32, steps=6, learning_rate=1e-2, tolerance=1e-5)
STEP_ROWS = 512
"""Images of the step through the kernels: enough that what is kept for backward outweighs the gradients, as in a real training."""


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
    """scikit-learn's 1,797 digits; a stratified fifth is held out, always the same one."""
    data = load_digits()
    images, held_out_images, labels, held_out_labels = (
        torch.as_tensor(array, device=device)
        for array in train_test_split(
            data.data / 16, data.target, test_size=HELD_OUT, stratify=data.target, random_state=0
        )
    )
    return Digits(images.float(), labels, held_out_images.float(), held_out_labels)


def batches(data: Digits, size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random batches with noisy pixels: (images [size, 64], labels [size])."""
    generator = torch.Generator().manual_seed(0)  # on the CPU: the same batches on every device
    for _ in range(steps):
        picked = torch.randint(len(data.labels), (size,), generator=generator).to(data.labels.device)
        noise = torch.randn(size, data.images.shape[1], generator=generator).to(data.images.device)
        yield data.images[picked] + NOISE * noise, data.labels[picked]


def loss_of(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(x), labels, label_smoothing=SMOOTHING)


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    return (model(data.held_out_images).argmax(-1) == data.held_out_labels).double().mean().item()


def inaccurate(stock: Run, fused: Run, scale: DigitsScale) -> list[str]:
    """A message for each model that breaks the promise of accuracy, which holds for a full training alone."""
    if scale is not FULL or len(stock.losses) < scale.steps:
        return []
    return [
        f"{run.name} gets {run.accuracy:.1%} of the held-out digits right, less than {ACCURACY:.0%}"
        for run in (stock, fused)
        if run.accuracy is None or run.accuracy < ACCURACY
    ]


def run(device: torch.device, interpret: bool, steps: int | None) -> Training:
    """Train both from the same weights."""
    scale = INTERPRETED if interpret else FULL
    steps = steps or scale.steps
    data = digits(device)
    print(
        f"{len(data.labels)} digits to learn, {HELD_OUT} held out; {steps} steps of {scale.batch} on {device}, float32; "
        "the labels are smoothed, so the loss ends near 0.5"
    )
    stock, fused = trained(data, scale, steps)
    title = "Handwritten digits: the same model, weights and batches"
    broken = apart(stock, fused, scale.tolerance) + inaccurate(stock, fused, scale)
    return Training(title, stock, fused, scale.tolerance, broken)


def classifiers(width: int, device: torch.device) -> tuple[Classifier, Classifier]:
    """(stock, fused) with the same weights."""
    torch.manual_seed(0)
    stock, fused = (Classifier(layers, width).to(device) for layers in (STOCK, FUSED))
    fused.load_state_dict(stock.state_dict())
    return stock, fused


def step_case(device: torch.device, interpret: bool) -> StepCase:
    """A step of the classifiers, before training."""
    scale, rows = (INTERPRETED, INTERPRETED.batch) if interpret else (FULL, STEP_ROWS)
    x, labels = next(batches(digits(device), rows, 1))
    return StepCase(*classifiers(scale.width, device), loss_of, x, labels)


def trained(data: Digits, scale: DigitsScale, steps: int) -> tuple[Run, Run]:
    """Train (torch.nn, epilogue) and test both on the held-out digits."""
    stock, fused = classifiers(scale.width, data.images.device)
    models = {"torch.nn": stock, "epilogue": fused}
    runs = train(models, loss_of, batches(data, scale.batch, steps), steps, scale.learning_rate)
    for run in runs:
        run.accuracy = accuracy(run.model, data)
    return runs
