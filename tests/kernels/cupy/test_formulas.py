"""Every formula as the kernels compute it, over every float16 there is, against the same formula in NumPy with float64."""

import numpy as np
import pytest

import checks
from epilogue import ACTIVATIONS
from epilogue.applied import Applied, Needs
from epilogue.cupy import launch
from epilogue.cupy.launch import Gradients, Matrices

ml_dtypes = pytest.importorskip("ml_dtypes")
CASES = checks.cases(1)
ALLOWED = {"float32": (4e-7, 4e-6), "float64": (1e-15, 1e-14)}
"""Absolute and relative error allowed, of arithmetic of a dozen steps."""
FLUSHED = 2.0**-118
"""Of results in 16 bits those below may be 0: a factor below 2⁻¹²⁶ is, and the other is x."""


def inputs(dtype):
    with np.errstate(all="ignore"):
        every = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(dtype)  # with infinities and NaN
    return np.concatenate([every, np.linspace(-12.0, 12.0, 4096, dtype=dtype)]).reshape(-1, 1024)


def compare(actual, formula, x, values, dtype):
    with np.errstate(all="ignore"):
        exact = np.broadcast_to(formula(x.astype(np.float64), *values), x.shape).astype(dtype).astype(np.float64)
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(actual[~finite], exact[~finite])
    absolute, relative = ALLOWED[dtype]
    np.testing.assert_allclose(actual[finite], exact[finite], rtol=relative, atol=absolute)


@pytest.mark.parametrize("dtype", ALLOWED)
@pytest.mark.parametrize(("entry", "values"), CASES)
def test_formulas(entry, values, dtype, cupy, library):
    x, applied = inputs(dtype), Applied(entry, values)
    z, y, dz, h = (cupy.asarray(array) for array in (x, *(np.full_like(x, np.nan) for _ in range(3))))
    launch.forward(library, Matrices(z), y, None, applied)
    compare(cupy.asnumpy(y), entry.value, x, values, dtype)
    ones = cupy.asarray(np.ones_like(x))
    launch.backward(library, ones, Matrices(z), None, "input", applied, Gradients(dz, h=h), Needs(h=True))
    compare(cupy.asnumpy(dz), entry.derivatives["x"], x, values, dtype)
    compare(cupy.asnumpy(h), entry.value, x, values, dtype)
    if entry.output_derivative(values):
        with np.errstate(all="ignore"):
            of = np.asarray(entry.value(x.astype(np.float64), *values)).astype(dtype)
        into = Gradients(cupy.asarray(np.full_like(x, np.nan)))
        found = launch.backward(library, ones, Matrices(cupy.asarray(of)), None, "output", applied, into, Needs())
        compare(cupy.asnumpy(found.dz), entry.output_derivative(values), of, values, dtype)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "silu", "gelu", "gelu_tanh", "elu", "softplus", "mish"])
def test_every_number_of_16_bits(name, dtype, cupy, library):
    """The fast primitives, through the activations that use them: 1.2 units in the last place."""
    entry = ACTIVATIONS[name]
    values, limits = tuple(entry.params.values()), ml_dtypes.finfo(dtype)
    x = np.arange(2**16, dtype=np.uint16).view(dtype).reshape(-1, 1024)
    y, applied = cupy.asarray(np.zeros_like(x)), Applied(entry, values)
    launch.forward(library, Matrices(cupy.asarray(x)), y, None, applied)
    with np.errstate(all="ignore"):
        exact = entry.value(x.astype(np.float64), *values)
        expected, actual = exact.astype(dtype).astype(np.float64), cupy.asnumpy(y).astype(np.float64)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    actual, exact = actual[finite], exact[finite]
    size, error = abs(exact), abs(actual - exact)
    ulp = float(limits.eps) * 2.0 ** np.floor(np.log2(np.maximum(size, float(limits.tiny))))
    assert (error / ulp)[size >= FLUSHED].max() <= 1.2
    assert error[size < FLUSHED].max(initial=0.0) <= FLUSHED
