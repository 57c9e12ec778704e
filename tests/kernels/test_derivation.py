"""Derivatives that follow from a formula, against those written by hand, differences, and torch."""

import inspect

import numpy as np
import pytest
import torch

import epilogue
from checks import cases, slope
from epilogue import ACTIVATIONS
from epilogue.derivation import PARTIALS, derived
from epilogue.formula import function_of
from epilogue.trace import PYTHON, printed
from epilogue.vocabulary import NUMPY, exp, maximum, minimum, sigmoid, sin, tanh, where

pytestmark = pytest.mark.usefixtures("own_activations")


def derivative(entry, wrt):
    trace = derived(entry.written, (*entry.operands, *entry.params), wrt)
    return function_of(trace, "derivative", __name__, None)


@pytest.mark.parametrize(("entry", "values"), cases())
def test_is_the_one_written_by_hand(entry, values):
    """Beside the kinks, where a tie of maximum or minimum shares the gradient and torch's own functions take a side."""
    x = np.linspace(-30.01, 30.0, 2401)
    operands = (x, 0.7 * x[::-1])[: entry.arity]
    with np.errstate(all="ignore"):
        for wrt in entry.derivatives:
            found = derivative(entry, wrt)(*operands, *values)
            expected = entry.derivatives[wrt](*operands, *values)
            np.testing.assert_allclose(*np.broadcast_arrays(found, expected), rtol=1e-11, atol=1e-13, err_msg=wrt)


PRIMITIVES = {
    **NUMPY,
    "maximum": lambda x: maximum(x, 1.313), "minimum": lambda x: minimum(0.913, x), "where": lambda x: where(x < 1.113, x * x, 3.0),
    "+": lambda x: x + x * 2.0, "-": lambda x: 1.0 - x, "*": lambda x: x * x * 3.0, "negative": lambda x: -x,
    "/": lambda x: 2.0 / x + x / 3.0 + x / (x + 1.0), "power": lambda x: x**5 + x**-3 + x**0 + x**1,
}  # fmt: skip


@pytest.mark.parametrize("name", PRIMITIVES)
def test_each_primitives_rule(name):
    assert {*PARTIALS} | {"where", "power"} == {*PRIMITIVES}
    primitive, x = PRIMITIVES[name], np.linspace(0.2, 2.5, 47)

    def formula(x):
        return primitive(2.0 * x) * 3.0

    found = function_of(derived(formula, ["x"], "x"), "derivative", __name__, None)(x)
    np.testing.assert_allclose(np.broadcast_to(found, x.shape), slope(formula, x), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("primitive", "tie"), [(maximum, 0.5), (minimum, 0.5)])
def test_a_tie_is_shared_as_torch_shares_it(primitive, tie):
    def formula(x):
        return primitive(x, 2.0)

    found = function_of(derived(formula, ["x"], "x"), "derivative", __name__, None)(np.array([2.0]))
    x = torch.tensor([2.0], requires_grad=True)
    getattr(torch, primitive.__name__)(x, torch.tensor(2.0)).backward()
    assert found == x.grad.item() == tie


def test_tails_keep_their_relative_accuracy():
    """1 - tanh² would be 0 from 19 on, σ(1-σ) from 37 on."""
    x = np.array([-40.0, 40.0])
    for formula, expected in ((tanh_of, 4.0 * np.exp(-80.0)), (sigmoid_of, np.exp(-40.0))):
        found = function_of(derived(formula, ["x"], "x"), "derivative", __name__, None)(x)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def tanh_of(x):
    return tanh(x)


def sigmoid_of(x):
    return sigmoid(x)


def test_products_with_0_and_1_and_choices_between_equals_are_left_out():
    def formula(x, a):
        return a * x + a + 1.0

    def step(x):
        return where(x > 0.0, 1.0, -1.0)

    assert printed(derived(step, ["x"], "x"), PYTHON) == (["x0"], [], "0.0")
    assert printed(derived(formula, ["x", "a"], "x"), PYTHON) == (["x0", "x1"], [], "x1")
    assert printed(derived(formula, ["x", "a"], "a"), PYTHON) == (["x0", "x1"], ["t0 = x0 + 1.0"], "t0")


def test_mish_of_mish():
    """Three lines in place of twenty. The inner derivative is mish's own, which was written by hand."""

    @epilogue.activation
    def mish_of_mish(x):
        mish = ACTIVATIONS["mish"]
        return mish(mish(x))

    x = torch.linspace(-30.0, 30.0, 301, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.mish(torch.nn.functional.mish(x))
    y.sum().backward()
    np.testing.assert_allclose(mish_of_mish.value(x.detach().numpy()), y.detach().numpy(), rtol=1e-12)
    found = mish_of_mish.derivatives["x"](x.detach().numpy())
    np.testing.assert_allclose(found, x.grad.numpy(), rtol=1e-10, atol=1e-16)
    assert epilogue.check(mish_of_mish)
    assert "reciprocal" in inspect.getsource(mish_of_mish.derivatives["x"])  # which only the one by hand has so


def test_a_parameter_is_handed_on():
    """With its derivative, given or derived, of the inner activation."""

    @epilogue.activation
    def bent(x, slope=0.3, beta=1.2):
        return ACTIVATIONS["swish"](ACTIVATIONS["leaky_relu"](x, negative_slope=slope), beta=beta * slope)

    report = epilogue.check(bent)
    assert report
    assert [claim.what.split(",")[0] for claim in report.claims[:3]] == [
        f"derivative by {n}" for n in ("x", "slope", "beta")
    ]


def test_a_derivative_that_is_added_later_is_taken():
    @epilogue.activation
    def cube(x):
        return x**3

    x = np.array([2.0])
    assert cube.derivatives["x"](x) == cube.gated.derivatives["a"](x, 1.0) == 12.0

    @epilogue.derivative_of(cube)
    def cube_grad(x):
        return 3.0 * (x * x)

    assert "3.0" in inspect.getsource(cube.derivatives["x"])
    assert cube.gated.derivatives["a"](x, 2.0) == 24.0
    assert cube.learnable == ()


def test_the_derivative_is_of_the_formula_as_it_was_registered():
    """A number or an activation that it looks up may be another one by the time a gradient is asked for."""
    scope = {"epilogue": epilogue, "sin": sin, "scale": 2.0, "__name__": "a_notebook"}
    cell = "@epilogue.activation\ndef wave(x):\n    return {} * sin(x)"
    exec(cell.format("1.0"), scope)
    exec("@epilogue.activation\ndef waves(x):\n    return scale * wave(x)", scope)
    scope["scale"] = 5.0
    exec(cell.format("7.0"), scope)
    x = np.array([0.5])
    np.testing.assert_allclose(ACTIVATIONS["waves"](x), 2.0 * np.sin(x))
    np.testing.assert_allclose(ACTIVATIONS["waves"].derivatives["x"](x), 2.0 * np.cos(x))


def test_a_call_that_is_a_number():
    """A condition on a parameter's number may choose one in place of a value."""

    @epilogue.activation
    def switched(x, on=1.0):
        return where(on, x, 0.5)

    @epilogue.activation
    def outer(x):
        return x * exp(switched(x, on=0.0)) + switched(x)

    assert epilogue.check(outer)
    np.testing.assert_allclose(outer.derivatives["x"](np.array([3.0])), np.exp(0.5) + 1.0)
