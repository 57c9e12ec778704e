"""The cases: what they count, what they draw, and that the suites hold every kind of them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from epilogue.benchmarks.bench import cases, providers
from epilogue.benchmarks.bench.cases import BOTH, INFERENCE, MODES, SUITES, Case, operands

OPS = ("linear", "glu", "mlp", "gated_mlp")
TINY = Case("gated_mlp", BOTH, "tiny", 5, 8, 12, "silu", "float32", "ieee", True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", OPS)
def test_the_counts_are_those_of_the_operation(op, mode, bias):
    case = TINY._replace(op=op, mode=mode, bias=bias)
    given = operands(case, "cpu")
    call = providers.eager(case, given)
    with FlopCounterMode(display=False) as counter:
        result = call()
    assert counter.get_total_flops() == case.flops
    results = result if isinstance(result, tuple) else (result,)
    read = [*given.leaves.values(), *([given.dy] if mode == BOTH else [])]
    assert sum(tensor.nbytes for tensor in (*read, *results)) == case.bytes


@pytest.mark.parametrize("op", ["glu", "gated_mlp"])
def test_gate_and_up_are_the_halves_of_one_weight(op, device):
    given = operands(TINY._replace(op=op), device)
    torch.testing.assert_close(torch.cat([given.gate, given.up]), given.packed, rtol=0, atol=0)
    assert given.gate.untyped_storage().data_ptr() == given.packed.untyped_storage().data_ptr()
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in given.leaves.values())


def test_operands_are_the_same_each_time_and_of_variance_one(device):
    case = TINY._replace(mode=INFERENCE, tokens=400, d=64, hidden=96)
    first, second = operands(case, device), operands(case, device)
    torch.testing.assert_close(first.leaves, second.leaves, rtol=0, atol=0)
    assert not any(tensor.requires_grad for tensor in first.leaves.values())
    assert (first.x @ first.up.t()).var().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_has_no_case_twice_and_every_kind(name):
    found = SUITES[name].cases
    assert len(set(found)) == len(found)
    assert {case.op for case in found} == set(OPS)
    assert {case.mode for case in found} == set(MODES)
    assert {case.dtype for case in found} == {"bfloat16", "float16", "float32"}
    assert len({str(case) for case in found}) == len(found)


def test_the_suites_grow():
    assert set(SUITES["headline"].cases) <= set(SUITES["full"].cases)
    assert set(cases.CLASSES) <= {case.activation for case in SUITES["headline"].cases}
    assert {case.tokens for case in SUITES["full"].cases} == set(cases.TOKENS)
    assert {case.model for case in SUITES["full"].cases} == {shape.model for shape in cases.TIMED}
    assert {case.precision for case in SUITES["full"].cases} == {"tf32", "ieee"}
