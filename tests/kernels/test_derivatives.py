"""Derivatives of the formulas against central differences and each other, those of gated pairs against autograd."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from checks import H, cases, slope
from epilogue import ACTIVATIONS

GRID = np.linspace(-9.0, 9.0, 600)  # 0 is not among them: relu_squared and celu bend there


def away_from_kinks(entry, values, x, distance=3 * H):
    kinks = np.array([*entry.kinks(*values), np.inf])
    return x[np.abs(x[:, None] - kinks).min(1) > distance]


@pytest.mark.parametrize(("entry", "values"), cases(1))
def test_derivative_is_the_slope(entry, values):
    x = away_from_kinks(entry, values, GRID)
    assert x.size > 500
    np.testing.assert_allclose(
        np.broadcast_to(entry.derivatives["x"](x, *values), x.shape),
        slope(lambda x: entry.value(x, *values), x),
        rtol=1e-9,
        atol=2e-10,
    )


@pytest.mark.parametrize(("entry", "values"), cases(1))
def test_derivative_jumps_at_the_kinks_alone(entry, values):
    x = np.linspace(-45.0, 45.0, 90_001)
    gradient = np.broadcast_to(entry.derivatives["x"](x, *values), x.shape)
    jumps = np.abs(np.diff(gradient)) > 4e-3 * np.maximum(1.0, np.abs(gradient[1:]))
    kinks = np.array([*entry.kinks(*values), np.inf])
    assert np.abs(x[:-1][jumps][:, None] - kinks).min(1).max(initial=0.0) < 2.1e-3


@pytest.mark.parametrize(
    ("entry", "values"), [case for case in cases(1) if case.values[0].output_derivative(case.values[1])]
)
def test_derivative_from_the_output_is_the_one_from_the_input(entry, values):
    small = np.array([1e-3, 1e-5, 1e-10, 1e-300])
    x = np.concatenate([np.linspace(-40.0, 40.0, 4001), small, -small, entry.kinks(*values), [1e4, -1e4, np.inf]])
    with np.errstate(all="ignore"):
        from_input = entry.derivatives["x"](x, *values)
        from_output = entry.output_derivative(values)(entry.value(x, *values), *values)
    # softplus is itself from the threshold on, where 1 - e^-20 and 1 are equal to within float32
    tolerance = 2.1e-9 if entry.name == "softplus" else 4e-16
    np.testing.assert_allclose(from_output, np.broadcast_to(from_input, x.shape), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "values", "saves"),
    [
        ("relu", (), "output"),
        ("step", (), "output"),
        ("tanh", (), "output"),
        ("sigmoid", (), "output"),
        ("hardtanh", (-1.0, 1.0), "output"),
        ("leaky_relu", (0.01,), "output"),
        ("leaky_relu", (0.0,), "output"),
        ("leaky_relu", (-0.2,), "input"),
        ("elu", (1.0,), "input"),
        ("elu", (-0.5,), "input"),
        ("elu", (0.0,), "input"),
        ("celu", (2.0,), "input"),
        ("celu", (-1.0,), "input"),
        ("celu", (0.0,), "input"),
        ("softplus", (1.0, 20.0), "output"),
        ("softplus", (1.0, 5.0), "input"),
        ("softplus", (-1.0, 20.0), "input"),
        ("softplus", (0.0, 20.0), "input"),
        ("prelu", (0.25,), "input"),
        ("prelu", (np.ones(3),), "input"),
        ("silu", (), "input"),
        ("gelu", (), "input"),
        ("mish", (), "input"),
        ("hardswish", (), "input"),
        ("relu_squared", (), "input"),
        ("threshold", (0.5, 2.0), "input"),
    ],
)
def test_what_backward_keeps(name, values, saves):
    assert ACTIVATIONS[name].saves(values) == saves


@pytest.mark.parametrize("entry", [entry for entry in ACTIVATIONS.values() if entry.learnable], ids=repr)
@pytest.mark.parametrize("value", [0.25, -0.5, 1.7])
def test_derivatives_of_learnable_parameters_are_slopes(entry, value):
    for name in entry.learnable:
        given = {**entry.params, name: value}
        np.testing.assert_allclose(
            entry.derivatives[name](GRID, *given.values()),
            slope(lambda value: entry.value(GRID, *{**given, name: value}.values()), value),  # noqa: B023
            rtol=1e-9,
            atol=1e-10,
        )


def test_the_learnable_ones():
    assert {entry.name: entry.learnable for entry in ACTIVATIONS.values() if entry.learnable} == {
        "prelu": ("slope",),
        "swish": ("beta",),
        "xielu": ("alpha_p", "alpha_n"),
    }


@pytest.mark.parametrize(("entry", "values"), cases())
def test_pairs_and_gated_variants_are_torchs(entry, values, rng):
    gated = entry.gated
    assert (gated.arity, gated.operands, gated.gated) == (2, ("a", "b"), gated)
    a, b = rng.standard_normal((2, 400)) * 3
    tensors = [torch.tensor(array, requires_grad=True) for array in (a, b)]
    given = dict(zip(entry.params, values, strict=True))
    given |= {
        name: torch.full((400,), given[name], dtype=torch.float64, requires_grad=True) for name in entry.learnable
    }
    learned = [given[name] for name in entry.learnable]
    first, second = tensors
    y = entry.oracle(F, first, *given.values()) * second if entry.arity == 1 else entry.oracle(F, first, second)
    y.sum().backward()
    np.testing.assert_allclose(gated.value(a, b, *values), y.detach().numpy(), rtol=1e-12, atol=1e-14)
    for name, tensor in zip((*gated.operands, *gated.learnable), tensors + learned, strict=True):
        gradient = np.broadcast_to(gated.derivatives[name](a, b, *values), a.shape)
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=4e-8, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("entry", [entry for entry in ACTIVATIONS.values() if entry.arity == 2], ids=repr)
def test_pairs_at_ties_infinities_and_nan_are_torchs(entry):
    special = np.array([0.0, -0.0, 1.0, 2.0, -3.0, np.inf, -np.inf, np.nan])
    a, b = (grid.ravel() for grid in np.meshgrid(special, special))
    tensors = [torch.tensor(array, requires_grad=True) for array in (a, b)]
    y = entry.oracle(F, *tensors)
    y.sum().backward()
    with np.errstate(invalid="ignore"):
        found = [formula(a, b) for formula in (entry.value, *(entry.derivatives[name] for name in entry.operands))]
    for actual, expected in zip(found, (y.detach(), *(tensor.grad for tensor in tensors)), strict=True):
        np.testing.assert_allclose(actual, expected.numpy(), rtol=4e-15, atol=0)
