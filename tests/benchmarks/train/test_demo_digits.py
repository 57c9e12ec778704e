"""The demo's digits: both classifiers are one network, they train alike, and what is promised of them is checked."""

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
from epilogue.benchmarks.train import demo_digits, side_by_side

SMALL = demo_digits.DigitsScale(width=16, batch=16, steps=3, learning_rate=2e-3, tolerance=1e-5)


@pytest.fixture(scope="module")
def data(device):
    return demo_digits.digits(torch.device(device))


def finished(losses, accuracy=1.0):
    run = side_by_side.begin("stock", torch.nn.Linear(1, 1), len(losses), 1e-3)
    run.losses, run.accuracy = losses, accuracy
    return run


def test_weights_go_both_ways():
    stock, fused = demo_digits.Classifier(demo_digits.STOCK, 16), demo_digits.Classifier(demo_digits.FUSED, 16)
    fused.load_state_dict(stock.state_dict(), strict=True)
    stock.load_state_dict(fused.state_dict(), strict=True)


def test_the_same_seed_gives_the_same_weights():
    torch.manual_seed(1)
    stock = demo_digits.Classifier(demo_digits.STOCK, 16).state_dict()
    torch.manual_seed(1)
    fused = demo_digits.Classifier(demo_digits.FUSED, 16).state_dict()
    assert all(torch.equal(stock[name], fused[name]) for name in stock)


def test_the_split_holds_out_every_digit(data):
    assert len(data.labels) + len(data.held_out_labels) == 1797
    assert len(data.held_out_labels) == demo_digits.HELD_OUT
    assert data.held_out_labels.bincount().min() >= 34
    assert data.images.amax() == 1
    assert torch.equal(demo_digits.digits(data.images.device).held_out_labels, data.held_out_labels)


def test_both_train_alike(data):
    stock, fused = demo_digits.trained(data, SMALL, SMALL.steps)
    assert len(stock.losses) == len(fused.seconds) == SMALL.steps
    assert side_by_side.apart(stock, fused, SMALL.tolerance) == []


def test_one_step_is_a_training(data):
    stock, _ = demo_digits.trained(data, SMALL, 1)
    assert len(stock.losses) == 1


def test_accuracy_is_promised_of_a_full_training():
    full = demo_digits.FULL
    losses = [1.0] * full.steps
    assert demo_digits.inaccurate(finished(losses), finished(losses), full) == []
    assert len(demo_digits.inaccurate(finished(losses, 0.96), finished(losses, 0.96), full)) == 2
    assert demo_digits.inaccurate(finished(losses[1:], 0.5), finished(losses[1:], 0.5), full) == []


def test_a_run_says_both_promises_that_it_broke(monkeypatch):
    runs = finished([1.0] * 400, 0.96), finished([1.1] * 400)
    monkeypatch.setattr(demo_digits, "trained", lambda *_: runs)
    curves, accuracy = demo_digits.run(torch.device("cpu"), False, None).broken
    assert curves.startswith("the loss curves differ by 1.0e-01")
    assert accuracy.startswith("stock gets 96.0%")
