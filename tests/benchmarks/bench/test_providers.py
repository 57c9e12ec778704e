"""Every provider computes what eager does; those that are not installed are stood in for by their own interfaces in plain torch."""

import importlib.util
import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from epilogue.benchmarks.bench import providers
from epilogue.benchmarks.bench.cases import BOTH, INFERENCE, MODES, SUITES, TRAINING, Case, operands
from epilogue.benchmarks.bench.providers import PROVIDERS, TUNED

GATED = Case("gated_mlp", BOTH, "tiny", 5, 8, 12, "silu", "float32", "ieee", False)
PLAIN = GATED._replace(op="mlp", activation="relu", bias=True)
CASES = [
    case._replace(op=op, mode=mode)
    for case, ops in ((GATED, ("glu", "gated_mlp")), (PLAIN, ("linear", "mlp")))
    for op in ops
    for mode in MODES
]


def assert_as_eager(name, case, device="cpu"):
    assert PROVIDERS[name].refusal(case) is None
    given = operands(case, device)
    found, expected = (PROVIDERS[provider].call(case, given)() for provider in (name, "eager"))
    tolerance = (
        {"rtol": 0.02, "atol": 0.02} if case.dtype == "bfloat16" else {}
    )  # a layer's own operations round less often
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_epilogue(case, device):
    assert_as_eager("epilogue", case, device)
    assert_as_eager("epilogue", case._replace(bias=not case.bias), device)


@pytest.mark.parametrize(("op", "activation"), sorted({(case.op, case.activation) for case in SUITES["full"].cases}))
def test_epilogue_has_every_activation_of_the_suites(op, activation, device):
    assert_as_eager("epilogue", GATED._replace(op=op, activation=activation, bias=True), device)


@pytest.mark.parametrize("case", [case for case in CASES if case.mode == INFERENCE and case.bias], ids=str)
def test_addmm_activation(case, device):
    assert_as_eager("addmm_activation", case, device)


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (PLAIN, "inference only"),
        (GATED._replace(mode=INFERENCE), "relu and gelu_tanh alone"),
        (PLAIN._replace(mode=INFERENCE, activation="gelu"), "relu and gelu_tanh alone"),
        (PLAIN._replace(mode=INFERENCE, bias=False), "needs a bias"),
    ],
)
def test_what_addmm_activation_refuses(case, why):
    assert why in PROVIDERS["addmm_activation"].refusal(case)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_torch_compile(device):
    for case in (GATED, PLAIN._replace(mode=INFERENCE)):
        torch.compiler.reset()
        assert_as_eager("torch.compile", case, device)


def test_torch_compiles_modes_exist():
    from torch._inductor import list_mode_options

    assert "max-autotune-no-cudagraphs" in list_mode_options()
    assert PROVIDERS.keys() > {"torch.compile", TUNED}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cublas_does_the_products_alone(case):
    call = PROVIDERS["cublas"].call(case, operands(case, "cpu"))
    with FlopCounterMode(display=False) as counter:
        results = call()
    assert counter.get_total_flops() == case.flops
    assert not any(result.requires_grad for result in results)


def test_inference_keeps_nothing_and_training_does():
    for mode, kept in ((INFERENCE, False), (TRAINING, True)):
        case = PLAIN._replace(mode=mode)
        given = operands(case._replace(mode=TRAINING), "cpu")
        assert PROVIDERS["eager"].call(case, given)().requires_grad == kept


@pytest.fixture
def installed(monkeypatch):
    """Makes modules importable."""
    find_spec = importlib.util.find_spec

    def install(**modules):
        for name, contents in modules.items():
            module = ModuleType(name.replace("__", "."))
            vars(module).update(contents)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        tops = {name.split("__")[0] for name in modules}
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: SimpleNamespace() if name in tops else find_spec(name)
        )

    return install


def apply(function):
    return SimpleNamespace(apply=function)


LIGER = {
    "LigerSiLUMulFunction": apply(lambda a, b: F.silu(a) * b),
    "LigerGELUMulFunction": apply(lambda a, b: F.gelu(a, approximate="tanh") * b),
}


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("case", CASES[:6], ids=str)
def test_liger(case, activation, installed):
    installed(liger_kernel__ops=LIGER)
    assert_as_eager("liger", case._replace(activation=activation))


@pytest.mark.parametrize("mode", MODES)
def test_ligers_whole_mlp_is_preferred(mode, installed):
    def whole(x, gate, up, down):
        assert x.ndim == 3
        calls.append(mode)
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    calls = []
    installed(liger_kernel__ops={**LIGER, "LigerMLPFunction": apply(whole)})
    assert_as_eager("liger", GATED._replace(mode=mode))
    assert calls == [mode]


ACTIVATIONS = {"relu": F.relu, "swiglu": lambda z: F.silu(z.chunk(2, -1)[0]) * z.chunk(2, -1)[1]}


def quack_layer(x, weight, activation, bias=None, store_preact=True, concat_layout=False):
    assert concat_layout == (activation == "swiglu")
    assert not store_preact
    return None, ACTIVATIONS[activation](F.linear(x, weight, bias))


def quack_mlp(x, weight1, weight2, activation, bias1=None, bias2=None, concat_layout=False):
    assert concat_layout == (activation == "swiglu")
    return F.linear(ACTIVATIONS[activation](F.linear(x, weight1, bias1)), weight2, bias2)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", [case._replace(dtype="bfloat16") for case in CASES], ids=str)
def test_quack(case, bias, installed):
    installed(
        quack__linear={"linear_act_func": quack_layer, "linear_gated_func": quack_layer},
        quack__mlp={"mlp_func": quack_mlp},
    )
    case = case._replace(bias=bias)
    if case.mode != INFERENCE and not case.block:
        assert "single layer" in PROVIDERS["quack"].refusal(case)
    elif case.mode != INFERENCE and bias:
        assert "no bias" in PROVIDERS["quack"].refusal(case)
    else:
        assert_as_eager("quack", case)


def test_what_liger_and_quack_refuse(installed):
    assert {PROVIDERS[name].refusal(GATED) for name in ("liger", "quack")} <= {"not installed", None, "16 bits alone"}
    installed(liger_kernel__ops={}, quack__mlp={})
    assert PROVIDERS["liger"].refusal(PLAIN) == "has gated silu and gelu_tanh alone"
    assert PROVIDERS["liger"].refusal(GATED._replace(bias=True)) == "has no bias"
    assert PROVIDERS["quack"].refusal(GATED) == "16 bits alone"
    assert "alone" in PROVIDERS["quack"].refusal(PLAIN._replace(activation="gelu", dtype="bfloat16"))


def test_versions_of_what_is_compared():
    assert providers.versions().keys() == {"liger_kernel", "quack-kernels"}
    assert all(providers.versions().values())
