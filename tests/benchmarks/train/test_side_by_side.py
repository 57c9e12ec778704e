"""Two models side by side: the same batches and dropouts, and what is said of them is true."""

import math

import pytest
import torch
from torch import nn

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
from epilogue import backends, triton
from epilogue.benchmarks.train import side_by_side


def finished(name, losses, accuracy=None):
    run = side_by_side.begin(name, nn.Linear(2, 2), len(losses), 1e-3)
    run.losses, run.seconds, run.accuracy = losses, [0.002] * len(losses), accuracy
    return run


def training(accuracy=None):
    return side_by_side.Training(
        "A title", finished("stock", [2.0, 1.0], accuracy), finished("fused", [2.0, 1.25], accuracy), 0.5, []
    )


def loss_of(model, x, labels):
    return (model(x) - labels).square().mean()


def test_the_same_weights_train_alike_with_dropout():
    models = {}
    for name in ("stock", "fused"):
        torch.manual_seed(0)
        models[name] = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    batches = [(torch.randn(5, 3), torch.randn(5, 2)) for _ in range(4)]
    stock, fused = side_by_side.train(models, loss_of, iter(batches), 4, 1e-2)
    assert (stock.name, fused.name) == ("stock", "fused")
    assert stock.losses == fused.losses
    assert len(set(stock.losses)) == len(fused.seconds) == 4


def test_curves_that_are_apart():
    stock = finished("stock", [1.0, 2.0])
    assert side_by_side.gaps(stock, finished("fused", [1.0, 2.5])) == [0.0, 0.5]
    assert side_by_side.apart(stock, finished("fused", [1.0, 2.5]), 0.5) == []
    (apart,) = side_by_side.apart(stock, finished("fused", [1.0, 2.5]), 0.4)
    assert apart == "the loss curves differ by 5.0e-01, more than 4e-01"
    assert side_by_side.apart(stock, finished("fused", [1.0, math.nan]), 0.5)


@pytest.mark.parametrize(
    ("served", "said"),
    [
        (("eager", "no GPU"), ("plain torch", "no GPU")),
        (("cupy", "triton is not installed"), ("CuPy kernels", None)),
        (("triton", "served"), ("Triton, interpreted" if triton.INTERPRET else "Triton kernels", None)),
    ],
)
def test_backend_tells_the_refusal(served, said, monkeypatch):
    monkeypatch.setattr(backends, "serving", lambda x, weight: served)
    assert side_by_side.backend(nn.Linear(2, 2)) == said


@pytest.mark.parametrize("accuracy", [None, 0.5])
def test_summary(accuracy):
    shown = side_by_side.summary(training(accuracy), "some backend")
    assert shown.splitlines()[0].split() == ["stock", "fused"]
    assert "2.0000 to 1.2500" in shown
    assert "2.5e-01 (allowed: 5e-01)" in shown
    assert shown.count("2.00 ms") == 2
    assert ("held-out digits right" in shown) == (accuracy is not None)
