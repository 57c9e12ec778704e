"""Every activation through the kernels, forward and backward, as accurate as torch's own unfused layers of the same dtype."""

import pytest
import torch

import checks
import epilogue
from epilogue.triton import refusal

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = {
    "pointer": (37, 29, 19),
    "descriptor": (40, 48, 32),
    "unfused": (37, 29, 19),
}  # M, N, K: primes; multiples of 16 bytes
FORMS = {1: ("linear", "glu packed", "glu"), 2: ("glu packed", "glu")}
EVERY = [
    pytest.param(form, *case.values, id=f"{form}-{case.id}")
    for arity, forms in FORMS.items()
    for form in forms
    for case in checks.cases(arity, every=form == "linear")
]


def compare(op, args, entry, values, dy):
    def function(args, values):
        return checks.fused(op, args, entry, values)

    assert refusal(args["x"], args["weight"]) is None
    checks.assert_trains(function, op, args, entry, values, dy)


def tensors(op, rng, shape, dtype, device):
    m, n, k = shape
    args = checks.arguments(op, rng, (m,), (k, n, 1))
    return checks.each(lambda a: torch.as_tensor(a).to(device, dtype), args)


@pytest.mark.parametrize(("op", "entry", "values", "dtype", "kernel"), checks.dealt(EVERY, DTYPES, SHAPES))
def test_activation(op, entry, values, dtype, kernel, rng, device):
    args = tensors(op, rng, SHAPES[kernel], dtype, device)
    dy = torch.randn(SHAPES[kernel][:2], dtype=torch.float64).to(device, dtype)
    compare(op, args, entry, values, dy)


@pytest.mark.parametrize("kernel", ["pointer", "unfused"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", ["scalar", "one", "channel"])
@pytest.mark.parametrize("op", ["linear", "glu packed", "glu"])
@pytest.mark.parametrize("name", [name for name, entry in epilogue.ACTIVATIONS.items() if entry.learnable])
def test_learnable(name, op, size, dtype, kernel, rng, device):
    shape = SHAPES[kernel]
    args = tensors(op, rng, shape, dtype, device)
    slope = 0.5 + torch.rand({"scalar": (), "one": (1,), "channel": (shape[1],)}[size], device=device).to(dtype)
    dy = torch.rand(shape[:2], device=device).to(dtype)
    if op != "linear":  # up is positive, as dy is: a sum whose terms cancel would measure luck
        weight, bias, n = args["weight"], args["bias"], shape[1]
        for tensor in (args["x"], *((weight[1], bias[1]) if op == "glu" else (weight[n:], bias[n:]))):
            tensor.detach().abs_()
    entry = epilogue.ACTIVATIONS[name]
    compare(op, args, entry, (slope, *list(entry.params.values())[1:]), dy)
