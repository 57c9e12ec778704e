"""The demo as a command: what it prints, draws and returns, for each of its models."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
from checks import interpreted
from epilogue.benchmarks.train import demo


def test_the_full_demo_keeps_its_promises(tmp_path, capsys):
    assert demo.main("digits", interpret=False, steps=None, out=tmp_path / "new", device=None) == 0
    printed = capsys.readouterr().out
    for row in ("backend", "held-out digits right", "largest loss difference", "time per step", "kept for backward"):
        assert row in printed
    assert (tmp_path / "new" / "demo.png").read_bytes().startswith(b"\x89PNG")


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
