"""The step through the kernels: what is counted and held against float64, in this process and in the interpreter's."""

import copy
import json
import subprocess

import pytest
import torch
from torch import nn

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
from checks import interpreted
from epilogue import triton
from epilogue.benchmarks.train import kernel_step
from epilogue.benchmarks.train.kernel_step import StepCase

CPU = torch.device("cpu")


def loss_of(model, x, labels):
    return (model(x) - labels).square().mean()


@pytest.fixture
def case():
    stock = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    return StepCase(stock, copy.deepcopy(stock), loss_of, torch.randn(32, 8), torch.randn(32, 4))


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setattr(kernel_step, "backend", lambda model: ("some kernels", None))


@pytest.mark.usefixtures("served")
def test_the_same_layers_measure_alike(case):
    step = kernel_step.measured(case)
    assert (step.ran, step.batch) == ("some kernels", "batch 32 x 8")
    assert step.stock == step.fused
    assert step.stock.kept == 4 * 32 * (8 + 2 * 16 + 4)  # x, z and h, and what the loss squares; no parameters
    assert step.stock.peak > step.stock.kept
    assert 0 < step.stock.error < 1e-6
    assert set(step.ratios.values()) == {1.0}


@pytest.mark.usefixtures("served")
def test_a_wrong_gradient_is_far_from_float64(case):
    case.fused[0].weight.register_hook(lambda gradient: 1.01 * gradient)
    (said,) = kernel_step.broken(kernel_step.measured(case))
    assert "times as far from float64 as torch's" in said


def test_without_a_kernel_the_reason(case, monkeypatch):
    monkeypatch.setattr(kernel_step, "backend", lambda model: ("plain torch", "the GPU is old"))
    assert kernel_step.measured(case) == "the GPU is old"


def test_the_peak_is_what_lives_at_one_time():
    def call():
        first = torch.ones(1000)
        second = first + 1
        del first
        third = torch.ones(500)
        return second.sum() + third.sum()

    assert 8000 <= kernel_step.peak_on_cpu(call) < 8500


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run compiled here")
@pytest.mark.skipif(triton.INTERPRET, reason="no process is started")
@pytest.mark.parametrize("name", ["missing", "interpreter_refusal"])
def test_where_the_interpreter_cannot_run(name, monkeypatch):
    monkeypatch.setattr(kernel_step.triton, name, lambda: "it needs numpy<2.4")
    assert kernel_step.run("digits", CPU, interpret=True) == "it needs numpy<2.4"


@interpreted
@pytest.mark.skipif(triton.INTERPRET, reason="no process is started")
def test_the_interpreters_process_measures_the_kernels():
    pytest.importorskip("sklearn")
    step = kernel_step.run("digits", CPU, interpret=True)
    assert step.ran == "Triton, interpreted"
    assert step.fused.kept < step.stock.kept
    assert kernel_step.broken(step) == []


@pytest.fixture
def ended(monkeypatch):
    """Lets the interpreter's process end so."""
    if triton.INTERPRET:
        pytest.skip("no process is started")
    for name in ("missing", "interpreter_refusal"):
        monkeypatch.setattr(kernel_step.triton, name, lambda: None)

    def end(code, out="", err=""):
        monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: subprocess.CompletedProcess([], code, out, err))

    return end


def test_a_crash_of_the_process_is_raised(ended):
    ended(1, err="no C compiler\n")
    with pytest.raises(RuntimeError, match="no C compiler"):
        kernel_step.run("digits", CPU, interpret=True)


def test_the_process_may_have_no_kernel_either(ended):
    ended(0, out='"no kernel"\n')
    assert kernel_step.run("digits", CPU, interpret=True) == "no kernel"


@pytest.mark.usefixtures("served")
def test_what_the_process_prints_is_read_again(case, monkeypatch, capsys):
    monkeypatch.setattr(kernel_step, "case_of", lambda *_: case)
    kernel_step.show("digits", False)
    ran, batch, *sides = json.loads(capsys.readouterr().out)
    assert kernel_step.KernelStep(ran, batch, *(kernel_step.Side(*side) for side in sides)).fused.kept > 0
