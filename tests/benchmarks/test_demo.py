"""The demo: both classifiers are one network, they train alike, and what it prints of them is true."""

import math
import os
import subprocess
import sys

import pytest
import torch

from epilogue import triton
from epilogue.benchmarks import demo

SMALL = demo.Scale(width=16, batch=16, steps=3, learning_rate=2e-3, tolerance=1e-5)


@pytest.fixture(scope="module")
def data(device):
    return demo.digits(torch.device(device))


def finished(losses, accuracy=1.0):
    run = demo.begin(demo.Classifier(demo.STOCK, 8), len(losses), 1e-3)
    run.losses, run.accuracy = losses, accuracy
    return run


def test_weights_go_both_ways():
    stock, fused = demo.Classifier(demo.STOCK, 16), demo.Classifier(demo.FUSED, 16)
    fused.load_state_dict(stock.state_dict(), strict=True)
    stock.load_state_dict(fused.state_dict(), strict=True)


def test_the_same_seed_gives_the_same_weights():
    torch.manual_seed(1)
    stock = demo.Classifier(demo.STOCK, 16).state_dict()
    torch.manual_seed(1)
    fused = demo.Classifier(demo.FUSED, 16).state_dict()
    assert all(torch.equal(stock[name], fused[name]) for name in stock)


def test_the_split_holds_out_every_digit(data):
    assert len(data.labels) + len(data.held_out_labels) == 1797
    assert len(data.held_out_labels) == demo.HELD_OUT
    assert data.held_out_labels.bincount().min() >= 34
    assert data.images.amax() == 1
    assert torch.equal(demo.digits(data.images.device).held_out_labels, data.held_out_labels)


def test_both_train_alike(data):
    stock, fused = demo.train(data, SMALL, SMALL.steps)
    assert len(stock.losses) == len(fused.seconds) == SMALL.steps
    assert demo.broken_promises(stock, fused, SMALL) == []
    assert 0 < fused.kept <= stock.kept


def test_one_step_is_a_training(data):
    stock, _ = demo.train(data, SMALL, 1)
    assert len(stock.losses) == 1


def test_backend_tells_the_refusal(monkeypatch):
    x = torch.randn(2, 2)
    monkeypatch.setattr(triton, "refusal", lambda x, weight: "no GPU")
    assert demo.backend(x, x) == ("plain torch", "no GPU")
    monkeypatch.setattr(triton, "refusal", lambda x, weight: None)
    assert demo.backend(x, x)[1] is None


def test_promises():
    full = [1.0] * demo.FULL.steps
    assert demo.broken_promises(finished(full), finished(full), demo.FULL) == []
    assert len(demo.broken_promises(finished(full, 0.96), finished(full, 0.96), demo.FULL)) == 2
    assert demo.broken_promises(finished(full[1:], 0.5), finished(full[1:], 0.5), demo.FULL) == []
    (apart,) = demo.broken_promises(finished([1.0, 2.0]), finished([1.0, 2.1]), demo.FULL)
    assert "differ by 1.0e-01" in apart
    assert demo.broken_promises(finished([1.0]), finished([math.nan]), demo.FULL)


def test_the_full_demo_keeps_its_promises(tmp_path, capsys):
    assert demo.main(interpret=False, steps=None, out=tmp_path / "new", device=None) == 0
    printed = capsys.readouterr().out
    for row in ("backend", "held-out digits right", "largest loss difference", "time per step", "kept for backward"):
        assert row in printed
    assert (tmp_path / "new" / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_interpret_trains_through_the_kernels(tmp_path):
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "epilogue", "demo", "--interpret", "--steps", "2", "--out", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Triton, interpreted" in result.stdout
    assert (tmp_path / "demo-interpret.png").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_said(tmp_path):
    with pytest.raises(SystemExit, match="finds no GPU"):
        demo.main(interpret=False, steps=1, out=tmp_path, device="cuda")
