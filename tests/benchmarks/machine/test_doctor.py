"""The doctor: its table agrees with what the operations do, its check finds what is wrong."""

import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import epilogue
from epilogue import cupy, triton
from epilogue.benchmarks.machine import doctor
from epilogue.benchmarks.provenance import versions
from epilogue.benchmarks.report import table
from epilogue.cupy import epilogues
from epilogue.triton.plan import tuned
from epilogue.triton.plan.chips import CHIPS


def test_a_healthy_machine(capsys):
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    assert "GPU: " in printed
    if torch.cuda.is_available() or not (triton.missing() or triton.interpreter_refusal()):
        assert printed.count(" ok") == len(doctor.DTYPES)


def test_every_kind_of_array_has_its_row():
    rows = {array: (backend, reason) for array, backend, reason in doctor.backends()}
    assert len(rows) == 8 or cupy.missing() is None
    assert rows["torch.Tensor, CUDA, float64"][0] == doctor.EAGER
    assert rows["cupy.ndarray"][0] == ("nothing" if cupy.missing() else "CuPy kernels and cuBLAS")
    assert all(reason for _, reason in rows.values())


def test_the_epilogues_that_are_cublaslts(monkeypatch):
    """One row for each reason."""

    def refusal(activation, dtype, device, backward):
        return "its NaN" if (activation, dtype) == ("relu", "float16") else None

    monkeypatch.setattr(epilogues, "refusal", refusal)
    rest = "identity, forward; identity, backward; {}gelu_tanh, forward; gelu_tanh, backward"
    good = "cuBLASLt's epilogues", "they compute what the reference does"
    assert list(doctor._epilogues()) == [
        (f"on CuPy, float16: {rest.format('')}", *good),
        ("on CuPy, float16: relu, forward; relu, backward", "CuPy kernels", "its NaN"),
        (f"on CuPy, bfloat16: {rest.format('relu, forward; relu, backward; ')}", *good),
    ]


def test_what_the_choice_of_a_kernel_rests_on():
    printed = doctor.choices()
    assert "products measured, the others predicted by a model of the chip" in printed
    assert ("an NVIDIA H200 (there is none here)" in printed) != torch.cuda.is_available()
    assert "cuBLAS and a pointwise kernel" in printed  # IEEE float32
    assert printed.count("gated_mlp, 8192 x 4096 -> 14336 -> 4096, silu, bfloat16, training") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="it asks for the GPU that is here")
def test_a_backend_without_a_choice():
    with epilogue.backend("eager"):
        assert doctor.choices() == "Every call runs plain torch operations: eager was chosen."
        row = ("torch.Tensor, CUDA, float16", "plain torch operations", "eager was chosen; not here: no GPU")
        assert row in doctor.backends()


@pytest.mark.parametrize("path", ["somewhere/tuned.json", None])
def test_how_to_measure_more(path, monkeypatch):
    monkeypatch.setattr(tuned, "load", lambda chip: {})
    monkeypatch.setattr(tuned, "user_path", lambda chip: path)
    end = f"into {path}." if path else "once platformdirs is installed."
    assert doctor.basis(CHIPS["H200"], here=True).endswith(
        f"0 products measured, the others predicted by a model of the chip. `epilogue tune` measures them, {end}"
    )


def test_without_triton(monkeypatch, capsys):
    monkeypatch.setattr(triton, "missing", lambda: "triton is not installed")
    assert doctor.check() == 0
    assert "triton is not installed" in capsys.readouterr().out
    rows = {array: rest for array, *rest in doctor.backends()}
    assert rows["torch.Tensor, CPU, TRITON_INTERPRET=1"] == [doctor.EAGER, "triton is not installed"]


def test_an_interpreter_that_does_not_work_is_said(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(triton, "missing", lambda: None)
    monkeypatch.setattr(triton, "interpreter_refusal", lambda: "it needs numpy<2.4")
    assert doctor.check() == 0
    assert "no kernel can run without a GPU here: it needs numpy<2.4" in capsys.readouterr().out
    rows = {array: rest for array, *rest in doctor.backends()}
    assert rows["torch.Tensor, CPU, TRITON_INTERPRET=1"] == [doctor.EAGER, "it needs numpy<2.4"]
    assert rows["torch.Tensor, CUDA, float16"][0] == doctor.KERNELS


def test_the_table_says_what_serves(monkeypatch):
    monkeypatch.setattr(doctor, "serving", lambda x, weight: ("cupy", "triton is not installed"))
    assert ("torch.Tensor, CPU, float32", "CuPy kernels", "triton is not installed") in doctor.backends()


def test_a_choice_that_cannot_be_is_said(monkeypatch):
    def serving(x, weight):
        raise RuntimeError("EPILOGUE_BACKEND: 'cupy' cannot run here: CuPy finds no GPU or no driver")

    monkeypatch.setattr(doctor, "serving", serving)
    backend, reason = doctor._backend(torch.empty(1, 1))
    assert backend == "nothing"
    assert "cannot run here: CuPy finds no GPU" in reason


@pytest.mark.parametrize(("error", "status"), [(2e-7, 0), (1e-2, 1), (math.nan, 1)])
def test_the_verdict_holds_the_kernel_against_torch(error, status, capsys):
    assert doctor.verdict({"float32": {"refusal": None, "epilogue": error, "torch": 2e-7}}) == status
    assert ("FAILED" in capsys.readouterr().out) == bool(status)


def test_a_refusal_is_no_failure(capsys):
    assert doctor.verdict({"float16": {"refusal": "the GPU is old"}}) == 0
    assert "not run: the GPU is old" in capsys.readouterr().out


def test_a_crash_is_a_finding(monkeypatch, capsys):
    crashed = SimpleNamespace(returncode=-11, stdout="", stderr="no C compiler")
    monkeypatch.setattr(triton, "missing", lambda: None)
    monkeypatch.setattr(triton, "interpreter_refusal", lambda: None)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: crashed)
    assert doctor.check() == 1
    assert "no C compiler" in capsys.readouterr().out


def test_the_error_is_relative_and_sees_nan():
    operands = [torch.randn(size).requires_grad_() for size in ((3, 4), (5, 4), (5,), (3, 5))]

    def worse(x, weight, bias):
        return 1.1 * torch.nn.functional.gelu(torch.nn.functional.linear(x, weight, bias))

    assert doctor._error(worse, *operands) == pytest.approx(0.1, rel=1e-3)
    assert math.isnan(doctor._error(lambda *layer: worse(*layer) * math.nan, *operands))


def test_versions_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    found = versions()
    assert found["torch"] == torch.__version__
    assert found["cupy"] == "not installed"


def test_columns_align():
    assert table([("a", "b"), ("long", "x")]) == "a     b\n----  -\nlong  x"
