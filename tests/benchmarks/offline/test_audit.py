"""The audit: its rows, its rule of what is clean, which kernels it picks. That every kernel is clean is test_offline's matter."""

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("tqdm")
from epilogue.benchmarks import cli
from epilogue.benchmarks.offline import audit
from epilogue.benchmarks.offline.compiler import CHIPS, KernelCase, Resources, shipped
from epilogue.catalogue import ACTIVATIONS
from epilogue.triton import INTERPRET

pytestmark = pytest.mark.skipif(INTERPRET, reason="Triton compiles nothing while it interprets")

BACKWARD = KernelCase("act_bwd", None, torch.bfloat16, "relu", False)
FORWARD = next(case for case in shipped("sm_90") if case.kernel == "linear_fwd_tma" and not case.gated)
CLEAN = Resources(registers=200, stack=0, spills=0, shared=1024, sass="HGMMA.64x256x16 UTMALDG.2D UTMASTG.2D")


def test_what_is_clean():
    assert audit.faults(FORWARD, "sm_90", CLEAN) == []
    assert audit.faults(FORWARD, "sm_100", replace(CLEAN, sass="UTCHMMA UTMALDG UTMASTG")) == []
    backward = replace(FORWARD, kernel="linear_dact_tma")  # stores by pointers
    assert audit.faults(backward, "sm_90", replace(CLEAN, sass="HGMMA UTMALDG")) == []
    assert audit.faults(BACKWARD, "sm_90", replace(CLEAN, sass="")) == []


@pytest.mark.parametrize(
    ("doctored", "fault"),
    [
        ({"spills": 3}, "3 spills"),
        ({"stack": 16}, "16 bytes of stack"),
        ({"shared": CHIPS["sm_90"].shared_bytes + 1}, "232449 bytes of shared memory, a block may have 232448"),
        ({"sass": "HMMA UTMALDG UTMASTG"}, "no asynchronous matrix instruction"),
        ({"sass": "HGMMA UTMASTG"}, "no TMA load"),
        ({"sass": "HGMMA UTMALDG"}, "no TMA store"),
    ],
)
def test_what_is_not(doctored, fault):
    assert audit.faults(FORWARD, "sm_90", replace(CLEAN, **doctored)) == [fault]


@pytest.mark.parametrize("arch", CHIPS)
def test_every_activation_meets_every_kernel(arch):
    cases = list(shipped(arch))
    picked = list(audit.every_activation(cases))
    kernels = {case.kernel for case in cases}
    for kernel in kernels - {kernel.removesuffix("_tma") for kernel in kernels if kernel.endswith("_tma")}:
        for gated in (True,) if kernel.startswith("linear_dact") else (False, True):
            names = [case.activation for case in picked if (case.kernel, case.gated) == (kernel, gated)]
            assert names == [name for name, act in ACTIVATIONS.items() if gated or act.arity == 1]
    tiles = {case.config.BLOCK_M * case.config.BLOCK_N for case in picked if case.kernel == "linear_fwd_tma"}
    assert tiles == (set() if arch == "sm_80" else {128 * 128, 128 * 64})


def test_a_kernel_costs_what_it_computes():
    def names(*case):
        return [formula.__name__ for formula in audit.formulas_of(KernelCase(*case))]

    assert names("linear_fwd", None, torch.bfloat16, "silu") == ["silu"]
    assert names("linear_fwd", None, torch.bfloat16, "silu", True) == ["silu"]
    assert names("act_bwd", None, torch.bfloat16, "silu") == ["silu_grad"]
    assert names("act_bwd", None, torch.bfloat16, "silu", True) == ["silu_grad", "silu"]
    assert names("linear_dact", None, torch.bfloat16, "tanh") == ["tanh_grad", "tanh_"]
    assert len(names("act_bwd", None, torch.bfloat16, "maxout", True)) == 2
    assert len(names("linear_dact", None, torch.bfloat16, "maxout", True)) == 3


@pytest.fixture
def few(monkeypatch):
    """An audit of one backward kernel and two activations, in this process."""
    monkeypatch.setattr(audit, "shipped", lambda arch: [BACKWARD])
    monkeypatch.setattr(audit, "every_activation", lambda cases: [BACKWARD, replace(BACKWARD, activation="silu")])
    monkeypatch.setattr(audit, "measure_all", lambda jobs: [audit.measure(*job) for job in jobs])


@pytest.mark.usefixtures("few")
def test_json(capsys):
    assert cli.main(["audit", "--arch", "sm_90", "--json"]) == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    for row, activation, config in zip(
        rows, ("relu", "relu", "silu"), ("8x128 w4", "8x128 w4 no bias", "8x128 w4"), strict=True
    ):
        assert (row["arch"], row["activation"], row["config"]) == ("sm_90", activation, config)
        assert (row["kernel"], row["dtype"]) == ("act_bwd", "bfloat16")
        assert all(type(row[name]) is int for name in ("registers", "stack", "spills", "shared", "wgmma", "tma"))
        assert all(isinstance(row[name], float) for name in ("instructions_per_element", "mufu_per_element"))
        assert row["registers"] > 0
        assert (row["stack"], row["spills"], row["wgmma"], row["tma"], row["faults"]) == (0, 0, 0, 0, [])
    relu, _, silu = rows
    assert relu["mufu_per_element"] == 0 < silu["mufu_per_element"]
    assert relu["instructions_per_element"] < silu["instructions_per_element"]
    assert "clean: 3 kernels" in printed.err


@pytest.mark.usefixtures("few")
def test_tables_and_verdict(capsys, monkeypatch):
    assert cli.main(["audit", "--arch", "sm_90"]) == 0
    printed = capsys.readouterr().out
    assert "act_bwd  relu        bfloat16  8x128 w4" in printed
    assert printed.endswith("clean: 3 kernels for sm_90, no stack, no spills, within shared memory\n")
    monkeypatch.setattr(audit, "compile_case", lambda case, arch: replace(CLEAN, spills=3))
    assert cli.main(["audit", "--arch", "sm_90"]) == 1
    assert "FAILED: sm_90 act_bwd-relu-bfloat16-tf32: 3 spills" in capsys.readouterr().out


def test_processes_keep_the_order():
    cases = [BACKWARD, replace(BACKWARD, activation="silu"), replace(BACKWARD, dropout=True)]  # of two groups
    rows = audit.measure_all([(case, "sm_90") for case in cases])
    assert [(row.activation, row.config) for row in rows] == [
        ("relu", "8x128 w4"), ("silu", "8x128 w4"), ("relu", "8x128 w4 dropout"),
    ]  # fmt: skip


def test_what_does_not_compile_is_named(monkeypatch):
    def refuse(case, arch):
        raise ValueError("ptxas is gone")

    monkeypatch.setattr(audit, "compile_case", refuse)
    with pytest.raises(RuntimeError, match="sm_90 act_bwd-relu-bfloat16-tf32 does not compile: ptxas is gone"):
        audit.measure(BACKWARD, "sm_90")


def test_an_unknown_architecture(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["audit", "--arch", "sm_70"])
    assert stopped.value.code == 2
    assert "invalid choice: 'sm_70'" in capsys.readouterr().err


def test_the_interpreter_compiles_nothing(monkeypatch):
    monkeypatch.setattr("epilogue.triton.INTERPRET", True)
    with pytest.raises(SystemExit, match="TRITON_INTERPRET"):
        cli.main(["audit"])
