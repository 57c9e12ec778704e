"""The command: what it takes, and what it would measure without a GPU. The measuring itself is in tests/kernels/triton/test_tuning.py."""

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("tqdm")
from epilogue.benchmarks import cli
from epilogue.benchmarks.machine import tune
from epilogue.triton.plan import tuned
from epilogue.triton.plan.chips import CHIPS

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="would measure for minutes")


def test_lists_what_it_would_measure(capsys):
    assert cli.main(["tune", "--shapes", "linear:100x64x96", "mlp:100x64x96", "--activation", "relu"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("no GPU here; on one, 3 products would be measured")
    # relu keeps h rather than z, so inference and training share a forward
    assert sorted(line.strip().split(": ")[0] for line in lines) == [
        "backward of an MLP, 128 x 64 -> 96, relu, bfloat16",
        "backward of an MLP, 128 x 64 -> 96, relu, bfloat16, dropout",
        "forward, 128 x 64 -> 96, relu, bfloat16",
    ]


def test_a_models_dimensions(capsys):
    assert cli.main(["tune", "--model-dims", "64", "96"]) == 0
    printed = capsys.readouterr().out
    for tokens in tune.TOKENS:
        assert (
            printed.count(f" {tokens} x 64 -> 96, silu, bfloat16") == 4
        )  # forward twice, backward with and without dropout


def test_the_least_certain_first():
    chip = CHIPS["H200"]
    shapes = [("gated_mlp", 4096, 768, 3072), ("gated_mlp", 256, 4096, 14336)]
    problems = tune.to_measure(shapes, None, torch.bfloat16, chip)
    doubts = [tune.doubt(problem, chip) for problem in problems]
    assert doubts == sorted(doubts)
    assert len(problems) == len(set(problems)) == 8
    assert problems[0].m == 256


def test_what_was_measured_comes_last(monkeypatch):
    shapes = [("linear", m, 4096, 14336) for m in (16, 256, 4096)]
    problems = tune.to_measure(shapes, None, torch.bfloat16, CHIPS["H200"])
    monkeypatch.setattr(tuned, "load", lambda chip: {problems[0]: ("unfused", 1.0)})
    assert tune.to_measure(shapes, None, torch.bfloat16, CHIPS["H200"]) == [*problems[1:], problems[0]]


@pytest.mark.parametrize("text", ["conv:1x2x3", "linear:1x2", "linear:0x2x3", "linear:axbxc", "linear"])
def test_what_is_no_shape(text, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["tune", "--shapes", text])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "such as linear:8192x4096x14336" in said or "a size is 1 or more" in said


def test_a_typo_in_the_activation():
    with pytest.raises(SystemExit, match="epilogue tune: unknown activation 'gleu'"):
        cli.main(["tune", "--model-dims", "64", "96", "--activation", "gleu"])


def test_what_runs_no_kernel_is_not_measured():
    with pytest.raises(SystemExit, match="identity: without an activation the product is cuBLAS's"):
        cli.main(["tune", "--shapes", "linear:8x8x8", "--activation", "identity"])
