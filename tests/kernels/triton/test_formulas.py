"""Every formula as device code, in each vocabulary, against the same formula in NumPy with float64."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

import checks
from epilogue import ACTIVATIONS
from epilogue.triton.vocabulary import device_function

FORMULAS = [
    pytest.param(formula, entry, values, id=f"{case.id}-{formula.__name__}")
    for case in checks.cases(1)
    for entry, values in [case.values]
    for formula in (entry.value, *entry.derivatives.values(), entry.output_derivative(values))
    if formula
]
# Absolute and relative error allowed, by the dtype of the result: float32 arithmetic of a dozen steps; half a unit in the last place.
ALLOWED = {torch.float32: (4e-7, 4e-6), torch.float16: (4e-7, 2.0**-12), torch.bfloat16: (4e-7, 2.0**-9)}
# Where gelu's derivative Φ(x) + x φ(x) crosses zero, the error of the fast Φ (6e-5 and 5.2e-4, relative) stays: there Φ is 0.23.
CROSSING = {torch.float32: 4e-7, torch.float16: 0.23 * 6e-5, torch.bfloat16: 0.23 * 5.2e-4}


@triton.jit
def apply_kernel(x_ptr, y_ptr, numbers, function: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + index)
    tl.store(y_ptr + index, function(x, *numbers) + tl.zeros((BLOCK,), tl.float32))


def apply(formula, x, values, dtype):
    y = torch.full_like(x, float("nan"))
    apply_kernel[(x.numel() // 4096,)](x, y, values, function=device_function(formula, dtype), BLOCK=4096)
    return y


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize(("formula", "entry", "values"), FORMULAS)
def test_formula(formula, entry, values, dtype, device):
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.float16).float()  # every float16 there is, with infinities and NaN
    x = torch.cat([x, torch.linspace(-12.0, 12.0, 4096)])
    with np.errstate(all="ignore"):
        if formula is entry.output_derivative(values):
            x = torch.as_tensor(entry.value(x.double().numpy(), *values)).float()
        exact = torch.as_tensor(np.asarray(formula(x.double().numpy(), *values))).expand_as(x).float().double()
    actual = apply(formula, x.to(device), tuple(values), dtype).double().cpu()
    finite = exact.isfinite()
    torch.testing.assert_close(actual[~finite], exact[~finite], rtol=0, atol=0, equal_nan=True)
    absolute, relative = ALLOWED[dtype]
    absolute = CROSSING[dtype] if formula.__name__ in ("gelu_grad", "gelu_10_grad") else absolute
    if formula.__name__ == "xielu_grad_alpha_n":  # e^x - 1 - x: the error of the fast e^x - 1 stays
        absolute = 2.0 * absolute
    torch.testing.assert_close(actual[finite], exact[finite], rtol=relative, atol=absolute)


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
def test_the_kernels_column_of_what_is_not_finite(dtype, device):
    for (name, at), (_, value, _, gradient) in checks.not_finite().items():
        entry = ACTIVATIONS[name]
        x = torch.full((4096,), float(at), device=device)
        for formula, cell in ((entry.value, value), (entry.derivatives["x"], gradient)):
            actual = apply(formula, x, tuple(entry.params.values()), dtype)[0].item()
            (expected,) = map(float, cell)
            assert actual == pytest.approx(expected, rel=1e-3, nan_ok=True), (name, at, formula.__name__)
