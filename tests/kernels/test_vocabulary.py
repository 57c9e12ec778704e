"""The NumPy primitives that NumPy itself lacks, in their tails; and formulas moved to another vocabulary."""

import math

import mpmath
import numpy as np
import pytest
import torch

from checks import cases
from epilogue import ACTIVATIONS, torch_vocabulary
from epilogue.vocabulary import NUMPY, PRIMITIVES, bind, erf, normal_cdf, rsqrt, sigmoid, softplus

X = np.concatenate([np.linspace(-38.0, 38.0, 305), [-700.0, -100.0, -1e-300, 0.0, 1e-300, 100.0, 700.0]])


def logistic(x: float) -> mpmath.mpf:
    return 1 / (1 + mpmath.exp(-mpmath.mpf(x)))


@pytest.mark.parametrize(
    ("primitive", "exact", "dtype", "lowest", "rtol"),
    [
        (sigmoid, logistic, np.float64, -700.0, 1e-15),
        (sigmoid, logistic, np.float32, -80.0, 3e-7),
        (erf, mpmath.erf, np.float64, -700.0, 1e-15),
        (erf, mpmath.erf, np.float32, -80.0, 1e-7),
        (softplus, lambda x: mpmath.log1p(mpmath.exp(mpmath.mpf(x))), np.float64, -700.0, 1e-15),
        (softplus, lambda x: mpmath.log1p(mpmath.exp(mpmath.mpf(x))), np.float32, -80.0, 3e-7),
        (normal_cdf, mpmath.ncdf, np.float64, -37.0, 3e-13),  # x / √2 is rounded before the square in the exponent
        (normal_cdf, mpmath.ncdf, np.float32, -12.5, 1e-7),
    ],
)
def test_tails_keep_their_relative_accuracy(primitive, exact, dtype, lowest, rtol):
    x = X[lowest <= X].astype(dtype)
    with mpmath.workdps(60):
        expected = np.array([float(exact(float(v))) for v in x])
    y = primitive(x)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, expected, rtol=rtol)


@pytest.mark.parametrize("primitive", [sigmoid, normal_cdf])
def test_limits(primitive):
    np.testing.assert_array_equal(primitive(np.array([-np.inf, np.inf, np.nan, 0.0])), [0.0, 1.0, np.nan, 0.5])


@pytest.mark.parametrize("name", sorted({*PRIMITIVES} - {"where", "maximum", "minimum"}))
def test_torchs_primitives_are_numpys(name):
    """In float64, with their derivatives' dtype, and numbers in the dtype of the tensor beside them."""
    x = torch.linspace(0.1, 3.0, 30, dtype=torch.float64)
    np.testing.assert_allclose(getattr(torch_vocabulary, name)(x).numpy(), NUMPY[name](x.numpy()), rtol=1e-14)


@pytest.mark.parametrize("name", ["erf", "expm1", "normal_cdf", "sigmoid", "softplus", "tanh"])
def test_torchs_tails_keep_their_relative_accuracy(name):
    x = torch.linspace(-35.0, -1.0, 100, dtype=torch.float64)
    np.testing.assert_allclose(getattr(torch_vocabulary, name)(x).numpy(), NUMPY[name](x.numpy()), rtol=1e-12)


def test_torchs_choices_keep_a_numbers_digits():
    x = torch.linspace(-1.0, 1.0, 4, dtype=torch.float64)
    for name in ("maximum", "minimum"):
        found = [getattr(torch_vocabulary, name)(*pair) for pair in ((x, 0.1), (0.1, x))]
        for y in found:
            np.testing.assert_array_equal(y.numpy(), NUMPY[name](x.numpy(), 0.1))
    y = torch_vocabulary.where(x > 0.0, 0.1, 0.2, x)
    assert (y.dtype, y.tolist()) == (torch.float64, [0.2, 0.2, 0.1, 0.1])


def test_rsqrt():
    np.testing.assert_allclose(rsqrt(np.array([4.0, 0.25, np.inf])), [0.5, 2.0, 0.0])


@pytest.mark.parametrize("primitive", [sigmoid, normal_cdf])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3)])
def test_shapes(primitive, shape):
    y = primitive(np.full(shape, 0.0))
    assert y.shape == shape
    assert (y == 0.5).all()


SCALARS = {
    "absolute": abs,
    "cos": math.cos,
    "erf": math.erf,
    "exp": math.exp,
    "expm1": math.expm1,
    "log": math.log,
    "log1p": math.log1p,
    "maximum": max,
    "minimum": min,
    "normal_cdf": lambda x: 0.5 * math.erfc(-x / math.sqrt(2.0)),
    "reciprocal": lambda x: 1.0 / x,
    "sigmoid": lambda x: 1.0 / (1.0 + math.exp(-x)),
    "rsqrt": lambda x: 1.0 / math.sqrt(x),
    "sin": math.sin,
    "softplus": lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))),
    "sqrt": math.sqrt,
    "tanh": math.tanh,
    "where": lambda condition, yes, no: yes if condition else no,
}


@pytest.mark.parametrize(("entry", "values"), cases())
def test_bound_to_pythons_own_floats_formulas_mean_the_same(entry, values):
    assert set(SCALARS) == set(PRIMITIVES)
    points = np.array([-7.0, -2.5, -0.7, -0.1, 0.0, 0.1, 0.4, 1.3, 3.5, 8.0])
    operands = (points, points[::-1])[: entry.arity]
    for formula in (entry.value, *(entry.derivatives[name] for name in entry.operands)):
        bound = bind(formula, SCALARS)
        actual = [bound(*(float(v) for v in point), *values) for point in zip(*operands, strict=True)]
        expected = np.broadcast_to(formula(*operands, *values), points.shape)
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-15)


def test_bound_formula_sees_that_vocabulary_alone():
    silu = ACTIVATIONS["silu"].value
    bound = bind(silu, {"sigmoid": lambda x: 10.0})
    assert bound(3.0) == 30.0
    assert silu(np.array(0.0)) == 0.0  # the original is as it was
    assert (bound.__code__, bound.__name__, bound.__module__, bound.__doc__) == (
        silu.__code__, "silu", "epilogue.activations", silu.__doc__,
    )  # fmt: skip
    with pytest.raises(NameError):
        bind(silu, {})(3.0)


@pytest.mark.parametrize("name", sorted({*PRIMITIVES} - {"where", "maximum", "minimum"}))
def test_a_whole_number_is_a_number(name):
    """`x * erf(1)` in a formula, where NumPy alone would give the whole number 0."""
    for whole in (2, np.array([1, 2])):
        np.testing.assert_array_equal(NUMPY[name](whole), NUMPY[name](np.multiply(whole, 1.0)))
