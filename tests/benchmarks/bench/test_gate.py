"""The gate: its parts in float64 are those of the whole result, and it sees what is wrong."""

import math

import pytest
import torch

from epilogue.benchmarks.bench import gate
from epilogue.benchmarks.bench.cases import BOTH, MODES, Case, operands
from epilogue.benchmarks.bench.providers import eager

CASE = Case("gated_mlp", BOTH, "tiny", 11, 8, 12, "silu", "bfloat16", "ieee", True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", ["linear", "glu", "mlp", "gated_mlp"])
def test_the_parts_are_those_of_the_whole(op, mode, bias, monkeypatch, device):
    monkeypatch.setattr(gate, "ROWS", 4)
    monkeypatch.setattr(gate, "UNITS", 3)
    case = CASE._replace(op=op, mode=mode, bias=bias, dtype="float64")
    given = operands(case, device)
    whole = gate.parts(case, given, eager(case, given)())
    exact = gate.exact(case, given)
    assert whole.keys() == exact.keys() == ({"y", *given.leaves} if mode == BOTH else {"y"})
    assert whole["y"].shape[0] == 4
    torch.testing.assert_close(exact, whole)


@pytest.fixture
def judged(device):
    """(the name of a result, what is done to it) -> the gate's verdict."""
    given = operands(CASE, device)
    stock, exact = gate.parts(CASE, given, eager(CASE, given)()), gate.exact(CASE, given)

    def judge(name, change):
        return gate.failure({**stock, name: change(stock[name], exact[name])}, stock, exact, torch.bfloat16)

    return judge


@pytest.mark.parametrize("name", ["y", "x", "gate", "up", "down", "gate_bias", "up_bias", "down_bias"])
def test_it_sees_what_is_wrong(name, judged):
    of = "y" if name == "y" else f"the gradient of {name}"
    assert judged(name, lambda stock, exact: stock) is None
    assert judged(name, lambda stock, exact: exact + 1.9 * (stock - exact)) is None
    assert judged(name, lambda stock, exact: 1.1 * stock).startswith(f"{of}: ")
    assert judged(name, lambda stock, exact: stock * math.nan).startswith(f"{of}: largest")


def test_it_sees_many_small_errors(judged):
    def everywhere(stock, exact):
        """Nearly the largest error that is allowed, but at every element."""
        return exact + 1.9 * (stock - exact).abs().max() + 0.9 * torch.finfo(torch.bfloat16).eps * exact.abs().max()

    assert judged("y", everywhere).startswith("y: RMS")
