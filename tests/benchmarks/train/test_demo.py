"""The demo as a command: what it prints, draws and returns, for each of its models."""

import math
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
from checks import interpreted
from epilogue.benchmarks.train import demo, kernel_step

SIDE = kernel_step.Side(kept=4096, peak=8192, error=2e-7)
STEP = kernel_step.KernelStep("Triton kernels", "batch 2 x 64", SIDE, SIDE._replace(kept=1024, error=3e-7))


def demonstrated(step, monkeypatch, tmp_path, steps=2, **options):
    """Run the demo with this outcome of its second part."""

    def run(model, device, interpret):
        if isinstance(step, Exception):
            raise step
        return step

    monkeypatch.setattr(kernel_step, "run", run)
    return demo.main("digits", interpret=False, steps=steps, out=tmp_path / "new", device=None, **options)


def test_the_full_demo_keeps_its_promises(monkeypatch, tmp_path, capsys):
    assert demonstrated(STEP, monkeypatch, tmp_path, steps=None) == 0
    printed = capsys.readouterr().out
    for row in (
        "runs on",
        "held-out digits right",
        "largest loss difference",
        "time per step",
        "kept in memory for backward",
        "epilogue keeps 75% less for backward in the whole model, and its gradients are 1.50 times as far from float64",
        "gated_mlp 1024 -> 2816, silu",
    ):
        assert row in printed
    assert (tmp_path / "new" / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_where_no_kernel_runs_the_demo_says_so_and_goes_on(monkeypatch, tmp_path, capsys):
    assert demonstrated("triton is not installed", monkeypatch, tmp_path, gpu="rtx 4090") == 0
    printed = capsys.readouterr().out
    assert "Not here: triton is not installed." in printed
    assert "NVIDIA GeForce RTX 4090, 8,192 rows" in printed
    assert (tmp_path / "new" / "demo.png").is_file()


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (STEP._replace(fused=SIDE._replace(error=5e-7)), "gradients are 2.5 times as far from float64 as torch's"),
        (STEP._replace(fused=SIDE._replace(error=math.nan)), "gradients are nan times as far"),
        (RuntimeError("Traceback\nKeyError: 'z'"), "the step through the kernels:\nTraceback\nKeyError: 'z'"),
    ],
)
def test_kernels_that_fail_break_a_promise(step, said, monkeypatch, tmp_path, capsys):
    assert demonstrated(step, monkeypatch, tmp_path) == 1
    assert f"{said}" in capsys.readouterr().out.partition("FAILED: ")[2]
    assert (tmp_path / "new" / "demo.png").is_file()


def test_an_unknown_gpu_is_said_before_anything_runs(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"epilogue demo: gpu must be one of A10, .*, GB200; got 'TPU'"):
        demonstrated(STEP, monkeypatch, tmp_path, gpu="TPU")
    assert capsys.readouterr().out == ""


@interpreted
def test_the_command_restarts_into_the_interpreter(tmp_path):
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "epilogue", "demo", "--interpret", "--steps", "1", "--out", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Triton, interpreted" in result.stdout
    assert [picture.name for picture in tmp_path.iterdir()] == ["demo-interpret.png"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("model", ["digits", "llama", "bert"])
def test_no_gpu_is_said(model, tmp_path):
    with pytest.raises(SystemExit, match="finds no GPU"):
        demo.main(model, interpret=False, steps=1, out=tmp_path, device="cuda")
