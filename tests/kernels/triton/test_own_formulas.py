"""A user's formulas as device code: from a prompt or `exec`, without a source; and two of one name."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import epilogue
from checks import arguments, assert_trains, each, every_primitive, fused
from epilogue.catalogue import formulas
from epilogue.triton import INTERPRET
from epilogue.triton.plan.configs import OPTIONS
from epilogue.triton.vocabulary import device_function, device_functions
from epilogue.vocabulary import PRIMITIVES, exp, sigmoid, tanh, where

pytestmark = pytest.mark.usefixtures("own_activations")

CELL = """
import epilogue
from epilogue.vocabulary import absolute, exp, maximum, tanh, where

@epilogue.activation(oracle=lambda F, x, scale: F.tanh(x) * scale)
def probe(x, scale=2.0):
    t = where(x < -0.5, tanh(x), tanh(absolute(x)) * where(x >= 0.0, 1.0, -1.0))
    return scale * (1.0 - (1.0 - t)) / 1.0

@epilogue.derivative_of(probe)
def _(x, scale):
    t = tanh(x)
    return scale * (1.0 - t * t)

@epilogue.derivative_of(probe, "scale")
def _(x, scale):
    return -(-tanh(x)) + 0.0
"""


def probe():
    namespace = {"__name__": "__main__"}
    exec(CELL, namespace)
    return namespace["probe"]


@triton.jit
def both_kernel(x_ptr, y_ptr, scale, first: tl.constexpr, second: tl.constexpr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    tl.store(y_ptr + tl.arange(0, BLOCK), first(x, scale))
    tl.store(y_ptr + BLOCK + tl.arange(0, BLOCK), second(x, scale))


def ptx(first, second):
    constants = {"first": first, "second": second, "BLOCK": 128}
    signature = {"x_ptr": "*fp32", "y_ptr": "*fp32", "scale": "fp32", **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(both_kernel, signature, constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=OPTIONS).asm["ptx"]


compiles = pytest.mark.skipif(INTERPRET, reason="Triton compiles nothing while it interprets")
runs = pytest.mark.skipif(not INTERPRET and not torch.cuda.is_available(), reason="needs a GPU, or the interpreter")


@compiles
def test_two_derivatives_of_one_name_are_two(monkeypatch, tmp_path):
    """Each by its constant: Triton merges jitted functions of one module and name."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # whose keys do not hold the names

    @epilogue.activation(oracle=lambda F, x, scale: scale * x)
    def two(x, scale=1.0):
        return scale * x

    @epilogue.derivative_of(two)
    def _(x, scale):
        return scale * 1234.5

    @epilogue.derivative_of(two, "scale")
    def _(x, scale):
        return x * 4321.5

    found = formulas(two, (np.ones(3),), "input")
    code = ptx(*(device_function(formula, torch.float32) for formula in (found["grad"], *found["grad_params"])))
    for constant in (1234.5, 4321.5):
        assert f"0f{np.float32(constant).view(np.uint32):08X}" in code


@compiles
def test_a_formula_without_a_source_compiles():
    entry = probe()
    code = ptx(device_function(entry.value, torch.float32), device_function(entry.derivatives["x"], torch.float32))
    assert re.search("mul.*f32", code)


@runs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_formula_without_a_source_runs(dtype, device):
    """Plain and through a layer with its gradients, the parameter's too."""
    entry = probe()
    x = torch.linspace(-4.0, 4.0, 128, device=device)
    y = torch.empty(256, device=device)
    functions = {
        "first": device_function(entry.value, dtype),
        "second": device_function(entry.derivatives["scale"], dtype),
    }
    both_kernel[(1,)](x, y, 3.0, **functions, BLOCK=128)
    torch.testing.assert_close(y[:128], 3.0 * x.tanh(), rtol=2e-3 if dtype != torch.float32 else 1e-5, atol=1e-6)
    torch.testing.assert_close(y[128:], x.tanh(), rtol=2e-3 if dtype != torch.float32 else 1e-5, atol=1e-6)
    if dtype == torch.float32:
        x, weight = (torch.randn(*shape, device=device, requires_grad=True) for shape in ((5, 8), (16, 8)))
        scale = torch.full((16,), 2.0, device=device, requires_grad=True)
        found = epilogue.linear(x, weight, activation="probe", scale=scale)
        expected = scale * (x @ weight.T).tanh()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        dy = torch.randn_like(found)
        for ours, torchs in zip(
            *(torch.autograd.grad(out, (x, weight, scale), dy) for out in (found, expected)), strict=True
        ):
            torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-5)


one, other = (lambda x: exp(x) * 2.0), (lambda x: exp(x) * 3.0)  # of one line, where Triton would find no `def`


def stacked(formula):
    return formula


@stacked
@stacked
def decorated(x):
    # a comment
    return where(x > 0.0, tanh(x), sigmoid(x))


@runs
def test_lambdas_and_decorated_formulas(device):
    x = torch.linspace(-4.0, 4.0, 128, device=device)
    y = torch.empty(256, device=device)
    kernel = one_argument_kernel[(1,)]
    kernel(x, y, device_function(one, torch.float32), device_function(other, torch.float32), BLOCK=128)
    torch.testing.assert_close(y[:128], 2.0 * x.exp())
    torch.testing.assert_close(y[128:], 3.0 * x.exp())
    kernel(x, y, device_function(decorated, torch.float32), device_function(one, torch.float32), BLOCK=128)
    torch.testing.assert_close(y[:128], torch.where(x > 0, x.tanh(), x.sigmoid()))


@triton.jit
def one_argument_kernel(x_ptr, y_ptr, first: tl.constexpr, second: tl.constexpr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    tl.store(y_ptr + tl.arange(0, BLOCK), first(x))
    tl.store(y_ptr + BLOCK + tl.arange(0, BLOCK), second(x))


@runs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", ["linear", "glu", "mlp", "gated_mlp"])
def test_a_formula_of_every_primitive(op, dtype, device, rng):
    """Without an oracle or a derivative, with two tensors that learn: the kernels against the formula on torch in float64."""
    assert {*every_primitive.__code__.co_names} == {*PRIMITIVES}
    entry = epilogue.activation(every_primitive)
    args = each(lambda array: torch.tensor(array, dtype=dtype, device=device), arguments(op, rng, (64,), (8, 32, 16)))
    values = (torch.full((32,), 0.7, device=device, dtype=dtype), torch.full((32,), 1.3, device=device, dtype=dtype))
    dy = torch.tensor(rng.standard_normal((64, 32 if op in ("linear", "glu") else 16)), dtype=dtype, device=device)

    def ours(args, values):
        y = fused(op, args, entry, values)
        assert y.grad_fn.name() in ("_LinearBackward", "_MLPBackward")  # the kernels ran
        return y

    assert_trains(ours, op, args, entry, values, dy)


@compiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_formula_of_every_primitive_compiles(dtype):
    entry = epilogue.activation(every_primitive)
    function = device_functions((entry.value, entry.derivatives["x"], *map(entry.derivatives.__getitem__, "pq")), dtype)
    constants = {"function": function, "BLOCK": 128}
    signature = {"x_ptr": "*fp32", "y_ptr": "*fp32", "a": "fp32", "b": "fp32", **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(four_kernel, signature, constants)
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=OPTIONS).asm["ptx"]
    assert ("lg2.approx" in code) == (dtype == torch.bfloat16)


@triton.jit
def four_kernel(x_ptr, y_ptr, a, b, function: tl.constexpr, BLOCK: tl.constexpr):
    results = function(tl.load(x_ptr + tl.arange(0, BLOCK)), a, b)
    for i in tl.static_range(len(results)):
        tl.store(y_ptr + i * BLOCK + tl.arange(0, BLOCK), results[i])


@compiles
def test_the_identity_is_the_same_in_every_process():
    """Triton's disk cache is keyed by it."""
    code = f"import torch; from epilogue.triton.vocabulary import device_function\nexec({CELL!r})\n"
    code += "f = device_function(probe.derivatives['scale'], torch.bfloat16); print(f.__module__, f.cache_key)"
    printed = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(printed) == 1
    assert "bfloat16" in printed.pop()
