"""Every shipped kernel x config compiles clean for sm_80, sm_90 and sm_100, without a GPU; on sm_90 every activation does."""

import inspect
import itertools
import math
from dataclasses import replace

import pytest
import torch

import epilogue

pytest.importorskip("tqdm")
from epilogue.applied import Applied, Needs
from epilogue.benchmarks.offline.audit import every_activation, faults
from epilogue.benchmarks.offline.compiler import CHIPS, absent_gpu, compile_case, epilogue_cost, forms, shipped
from epilogue.catalogue import ACTIVATIONS
from epilogue.operands import Layer
from epilogue.triton.dact import linear_dact
from epilogue.triton.linear import linear_fwd
from epilogue.triton.plan.configs import DACT, GLU, LINEAR, TABLE
from epilogue.triton.plan.cost import cost_of, epilogue_formulas

DEAREST = ("gelu", "gelu_tanh", "mish", "softplus", "tanhshrink", "celu")


def tried(arch):
    """Every kernel and config once per architecture, in one of its forms in turn; `epilogue audit` tries all of them.

    Not the pointer kernels on sm_100, and their backward with dropout on sm_80 alone; float16's descriptor kernels on sm_90 alone, lean.
    Lean too is a backward without dropout on sm_100, or with a twin that has it. On sm_90 backward's descriptor tiles are tried full and
    lean. float32's backward with dropout takes half a minute on sm_100: not there.
    """
    every = list(shipped(arch))
    for case in every:
        full, _, lean = forms(case)
        backward, tma = case.kernel.startswith("linear_dact"), case.kernel.endswith("_tma")
        twin = backward and not case.dropout and replace(case, dropout=True) in every
        slow = backward and case.dropout and case.dtype == torch.float32
        pointers = case.config is not None and not tma
        if pointers and (arch == "sm_100" or (arch == "sm_90" and backward and case.dropout)):
            tries = []
        elif case.dtype == torch.float16:
            tries = [lean] if arch == "sm_90" and not pointers else []
        elif case.config is None:
            tries = [case]
        elif twin or (arch == "sm_100" and (slow or (backward and not case.dropout))):
            tries = [lean]
        elif tma and case.dtype == torch.bfloat16 and backward and not case.dropout:
            tries = [full, lean]
        else:
            tries = [full]
        yield from tries


def every_formula():
    """Every activation in the gated forward's tiles in turn, the dearest in the widest of all three kernels, on sm_90; backward without
    biases, as gated MLPs usually are."""
    tiles = TABLE[GLU, True, 2]
    for i, case in enumerate(every_activation(shipped("sm_90"))):
        if case.kernel.endswith("_tma") and case.activation in DEAREST:
            yield replace(case, bias=False) if case.kernel.startswith("linear_dact") else case
        elif case.kernel == "linear_fwd_tma" and case.gated:
            yield replace(case, config=tiles[i % len(tiles)])


CASES = [
    pytest.param(case, arch, id=f"{arch}-{case}")
    for arch in CHIPS
    for case in dict.fromkeys([*tried(arch), *(every_formula() if arch == "sm_90" else ())])
]


@pytest.mark.parametrize(("case", "arch"), CASES)
def test_kernel_is_clean(case, arch, monkeypatch):
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")  # a fifth of the time, and the same registers
    assert faults(case, arch, compile_case(case, arch)) == []


def test_a_persistent_loop_is_compiled_once():
    """Of two nested loops Triton makes one, and a second version for an inner loop without a step, unless it knows that there is one."""
    x = torch.empty(128, 128, dtype=torch.bfloat16)
    applied, needs = Applied(ACTIVATIONS["silu"], (), False), Needs(h=True)
    with absent_gpu("sm_90") as compiled:
        linear_fwd(Layer(x, x), applied, "nothing", TABLE[LINEAR, True, 2][0])
        linear_dact(x, x, x, "input", applied, needs, TABLE[DACT, True, 2][-1])
    assert [kernel.asm["ttgir"].count("scf.for") for kernel in compiled] == [1, 1]


BUDGETS = {"sigmoid_": 5, "gelu": 12, "gelu_tanh": 9, "gelu_grad": 15, "softplus": 14, "mish": 14}
"""Formula -> instructions per element of an epilogue, of results in 16 bits."""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("formula", BUDGETS)
def test_cost_of_a_formula(formula, dtype):
    """What the compiler makes of it is within the budget, and what the dispatcher takes it to cost."""
    entry, function = next(
        (entry, function)
        for entry in ACTIVATIONS.values()
        for function in (entry.value, *entry.derivatives.values())
        if function.__name__ == formula
    )
    instructions, special = epilogue_cost(function, tuple(entry.params.values()), dtype, "sm_90")
    assert 4 <= instructions <= BUDGETS[formula]
    assert 1 <= special <= 3
    assert cost_of(function, 1, dtype) == (pytest.approx(instructions, abs=2.5), pytest.approx(special, abs=0.25))


@pytest.mark.slow
def test_cost_of_every_formula():
    """The weights of cost.py are as near to what the compiler makes of the catalogue as they are said to be."""
    errors = []
    for entry in ACTIVATIONS.values():
        values = tuple(1.0 if value is inspect.Parameter.empty else value for value in entry.params.values())
        for formula, dtype in itertools.product(epilogue_formulas(entry, backward=True), epilogue.operands.DTYPES):
            counted = epilogue_cost(formula, values, dtype, "sm_90", entry.arity)
            errors.append(cost_of(formula, entry.arity, dtype)[0] - counted[0])
    assert max(map(abs, errors)) < 8
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) < 1


def test_cost_of_a_pair():
    pair = ACTIVATIONS["bilinear"]
    assert epilogue_cost(pair.value, (), torch.bfloat16, "sm_90", arity=2) == (1, 0)


def test_a_graph_made_on_a_gpu_runs_on_the_cpu():
    """The operator has a plain implementation for CPU tensors; here Triton does not interpret."""

    from torch.nn.functional import linear, silu

    from epilogue import autograd  # noqa: F401  registers it

    x, weight, bias = torch.randn(2, 3, 8), torch.randn(12, 8), torch.randn(12)
    y, z = torch.ops.epilogue.linear_fwd(
        x, weight, None, bias, None, None, None, "silu", [], [], True, 0.0, "input", "triton"
    )
    torch.testing.assert_close(z, linear(x, weight, bias).flatten(0, 1))
    torch.testing.assert_close(y.flatten(0, 1), silu(z[:, :6]) * z[:, 6:])
    down = torch.randn(5, 6)
    call = (x, weight, None, bias, None, None, down, None, None, "silu", [], [], True, 0.0)
    y_mlp, _ = torch.ops.epilogue.mlp_fwd(*call, "nothing", "triton")
    torch.testing.assert_close(y_mlp, linear(y, down))
    y_mlp, kept = torch.ops.epilogue.mlp_fwd(*call, "input", "triton")
    torch.testing.assert_close(y_mlp, linear(y, down))
    torch.testing.assert_close(kept, z)
    seeded = (*call[:8], torch.zeros(1, dtype=torch.int64), *call[9:-1], 0.5)
    with pytest.raises(NotImplementedError, match="epilogue::dropout_mask"):
        torch.ops.epilogue.mlp_fwd(*seeded, "input", "triton")
