"""Values and gradients of the NumPy formulas against torch's own functions, over the whole float range."""

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from checks import as_cell, cases, not_finite
from epilogue import ACTIVATIONS

MAGNITUDES = np.array(
    [
        5e-324, 1e-310, 1e-45, 1.2e-38, 1e-30, 1e-20, 1e-10, 1e-7, 1e-5, 1e-3, 0.01, 0.1, 0.5, 1, 2, 3, 5, 6, 10, 19.9,
        20, 20.1, 30, 40, 87, 88, 89, 100, 104, 150, 700, 709, 710, 746, 1e3, 1e4, 1e5, 1e10, 1.8e19, 1e20, 1e30, 3e38,
    ]
)  # fmt: skip
GRID = np.concatenate([np.linspace(-30.0, 30.0, 2401), MAGNITUDES, -MAGNITUDES, [0.0, -0.0]])
SPECIAL = (0.0, -0.0, np.inf, -np.inf, np.nan)
LIMITS = {
    ("softsign", np.inf),
    ("softsign", -np.inf),
    ("gelu_10", np.inf),
    ("sqrtsoftplus", -np.inf),
    ("xielu", -np.inf),
}
"""Where a derivative is its limit and torch's composite NaN, as its docstring says."""
# torch's derivative of hardsigmoid has 1/6 as a float32 number, also in float64.
COARSE = {"hardsigmoid": 4e-8}


def ours(entry, values, x):
    with np.errstate(all="ignore"):
        value = np.asarray(entry.value(x, *values))
        return value, np.broadcast_to(np.asarray(entry.derivatives["x"](x, *values)), x.shape)


def torchs(entry, values, x):
    x = torch.tensor(x, requires_grad=True)
    y = entry.oracle(F, x, *values)
    y.backward(torch.ones_like(y))
    return y.detach().numpy(), x.grad.numpy()


def assert_close(actual, expected, **tolerance):
    """Close wherever torch's result is a number: there ours is one too."""
    number = ~np.isnan(expected)
    np.testing.assert_allclose(actual[number], expected[number], **tolerance)


@pytest.mark.parametrize(("entry", "values"), cases(1))
def test_float64_is_torchs(entry, values):
    for actual, expected in zip(ours(entry, values, GRID), torchs(entry, values, GRID), strict=True):
        assert_close(actual, expected, rtol=max(1e-12, COARSE.get(entry.name, 0.0)), atol=1e-14)


@pytest.mark.parametrize(("entry", "values"), cases(1))
def test_float32_is_float64_rounded(entry, values):
    x = GRID[np.abs(GRID) < 3.4e38].astype(np.float32)
    exact = torchs(entry, values, x.astype(np.float64))
    for actual, torch32, expected in zip(ours(entry, values, x), torchs(entry, values, x), exact, strict=True):
        with np.errstate(over="ignore"):
            expected = np.where(np.isnan(torch32), np.nan, expected).astype(np.float32)
            actual = actual.astype(np.float32)
        assert_close(actual, expected, rtol=2e-6, atol=5e-7)


@pytest.mark.parametrize(("entry", "values"), cases(1))
def test_at_and_beside_the_kinks_torchs_side_is_taken(entry, values):
    kinks = np.array([*entry.kinks(*values), 0.0])
    x = np.concatenate([kinks, np.nextafter(kinks, np.inf), np.nextafter(kinks, -np.inf)])
    for actual, expected in zip(ours(entry, values, x), torchs(entry, values, x), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=max(1e-12, COARSE.get(entry.name, 0.0)), atol=1e-15)


@pytest.mark.parametrize("x", SPECIAL)
@pytest.mark.parametrize(("entry", "values"), cases(1))
def test_zeros_infinities_and_nan_are_torchs(entry, values, x):
    value, gradient = ours(entry, values, np.array([x]))
    # One element takes torch's scalar code, many its vector code. At NaN the gradients of the two differ.
    few_value, few_gradient = torchs(entry, values, np.full(1, x))
    many_value, many_gradient = torchs(entry, values, np.full(64, x))
    if (entry.name, x) == ("xielu", -np.inf):
        assert np.isnan([few_value[0], many_value[0]]).all()
        assert value[0] == np.inf  # as its docstring says
    else:
        np.testing.assert_allclose(value, few_value, rtol=1e-12)
        np.testing.assert_allclose(value, many_value[:1], rtol=1e-12)
    if (entry.name, x) in LIMITS:
        assert np.isnan(few_gradient[0])
        np.testing.assert_allclose(gradient, ours(entry, values, np.array([np.sign(x) * 1e300]))[1], atol=1e-150)
        return
    options = np.array([few_gradient[0], many_gradient[0]] if np.isnan(x) else [few_gradient[0]])
    assert np.isclose(options, gradient[0], rtol=1e-7, equal_nan=True).any()


@pytest.mark.parametrize(
    ("entry", "values", "x"),
    [
        pytest.param(*case.values, x, id=f"{case.id}-{as_cell(x)}")
        for case in cases(1, every=False)
        for x in (np.inf, -np.inf, np.nan, 1e20, -1e20)
        if np.isinf(x) or np.isnan(x) or (case.values[0].name, as_cell(x)) in not_finite()
    ],
)
def test_the_table_of_what_is_not_finite(entry, values, x):
    """Every cell, in float32; and what is not in the table is the same on every path."""
    few, many = (torchs(entry, values, np.full(n, x, np.float32)) for n in (1, 64))
    own = [array[0] for array in ours(entry, values, np.array([x], np.float32))]
    theirs = [{as_cell(few[i][0]), as_cell(many[i][0])} for i in (0, 1)]
    row = not_finite().get((entry.name, as_cell(x)))
    if row:
        value, own_value, gradient, own_gradient = row
        assert theirs[0] <= value  # what is oneDNN's depends on the machine
        assert theirs[1] == gradient
        assert ({as_cell(own[0])}, {as_cell(own[1])}) == (own_value, own_gradient)
        assert (value, gradient) != (own_value, own_gradient)
    else:
        for both, actual in zip(zip(few, many, strict=True), own, strict=True):
            for expected in both:
                np.testing.assert_allclose(actual, expected[0], rtol=1e-6)


def test_the_table_names_what_there_is():
    assert len(not_finite()) == 17
    assert {name for name, _ in not_finite()} <= set(ACTIVATIONS)


def test_the_derivative_of_gelu_tanh_stays_a_number_where_torchs_overflows():
    x = np.array([1e155, 1e300, -1e155, -1e300])
    entry = ACTIVATIONS["gelu_tanh"]
    assert np.isnan(torchs(entry, (), x)[1]).all()
    np.testing.assert_array_equal(ours(entry, (), x)[1], [1.0, 1.0, 0.0, 0.0])


def softplus(x):
    return mpmath.log(1 + mpmath.exp(x))


EXACT = {
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "logsigmoid": lambda x: -softplus(-x),
    "tanh": mpmath.tanh,
    "softsign": lambda x: x / (1 + abs(x)),
    "elu": lambda x: x if x > 0 else mpmath.expm1(x),
    "gelu": lambda x: x * mpmath.ncdf(x),
    "gelu_tanh": lambda x: x * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + mpmath.exp(-mpmath.mpf("1.702") * x)),
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "swish": lambda x: x / (1 + mpmath.exp(-x)),
    "mish": lambda x: x * mpmath.tanh(softplus(x)),
    "softplus": softplus,
}


@pytest.mark.parametrize("name", EXACT)
def test_tails_keep_their_relative_accuracy(name):
    entry, exact = ACTIVATIONS[name], EXACT[name]
    x = np.array([-26.0, -14.0, -9.0, -7.0, -5.5, -4.0, -3.0, -1e-3, -1e-7, 1e-7, 1e-3, 0.5, 2.0, 5.0, 9.0, 19.0])
    value, gradient = ours(entry, tuple(entry.params.values()), x)
    with mpmath.workdps(400):
        expected = [float(exact(mpmath.mpf(v))) for v in x]
        slope = [float(mpmath.diff(exact, mpmath.mpf(v), h=mpmath.mpf(10) ** -60)) for v in x]
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    np.testing.assert_allclose(gradient, slope, rtol=5e-13 if "gelu" in name else 1e-13)


@pytest.mark.parametrize("slope", [0.25, -0.3, 0.0])
def test_prelu_is_torchs_prelu(slope):
    x = torch.tensor(GRID, requires_grad=True)
    weight = torch.tensor([slope], dtype=torch.float64, requires_grad=True)
    F.prelu(x, weight).sum().backward()
    entry = ACTIVATIONS["prelu"]
    value, gradient = ours(entry, (slope,), GRID)
    np.testing.assert_array_equal(value, F.prelu(x, weight).detach().numpy())
    np.testing.assert_array_equal(gradient, x.grad.numpy())
    moderate = GRID[np.abs(GRID) < 1e3]
    x = torch.tensor(moderate)
    (expected,) = torch.autograd.grad(F.prelu(x, weight).sum(), weight)
    np.testing.assert_allclose(entry.derivatives["slope"](moderate, slope).sum(), expected.item(), rtol=1e-12)


def test_prelu_per_channel_is_torchs_prelu(rng):
    x = rng.standard_normal((6, 5))
    slope = rng.standard_normal(5)
    tensors = [torch.tensor(array, requires_grad=True) for array in (x, slope)]
    y = F.prelu(*tensors)
    y.sum().backward()
    entry = ACTIVATIONS["prelu"]
    np.testing.assert_array_equal(entry.value(x, slope), y.detach().numpy())
    np.testing.assert_array_equal(np.broadcast_to(entry.derivatives["x"](x, slope), x.shape), tensors[0].grad.numpy())
    np.testing.assert_allclose(entry.derivatives["slope"](x, slope).sum(0), tensors[1].grad.numpy(), rtol=1e-14)


def test_swish_with_beta_one_is_silu():
    x = torch.tensor(GRID, requires_grad=True)
    F.silu(x).sum().backward()
    value, gradient = ours(ACTIVATIONS["swish"], (1.0,), GRID)
    np.testing.assert_allclose(value, F.silu(x).detach().numpy(), rtol=1e-13, atol=1e-300)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("step", lambda x: (x > 0).double()),
        ("sign", torch.sign),
        ("relu_squared", lambda x: torch.where(x > 0, x * x, 0.0)),
        ("quick_gelu", lambda x: x / (1 + torch.exp(-1.702 * x))),
        ("identity", lambda x: x),
    ],
)
def test_what_torch_has_no_function_for(name, exact):
    x = np.linspace(-6.0, 6.0, 241)
    np.testing.assert_allclose(ours(ACTIVATIONS[name], (), x)[0], exact(torch.tensor(x)).numpy(), rtol=1e-14)


def test_every_name_of_the_plan_is_in_the_catalogue():
    assert set(ACTIVATIONS) == {
        "identity", "step", "sign", "sigmoid", "hardsigmoid", "logsigmoid", "tanh", "hardtanh", "tanhshrink",
        "softsign", "relu", "relu6", "relu_squared", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "gelu_tanh",
        "quick_gelu", "silu", "swish", "mish", "hardswish", "softplus", "softshrink", "hardshrink", "threshold",
        "gelu_10", "sqrtsoftplus", "laplace", "xielu", "bilinear", "maxout", "glu_gate_last",
    }  # fmt: skip
