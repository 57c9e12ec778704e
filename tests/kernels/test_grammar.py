"""What a formula may be: refused at once, with its line and column, or traced; and the catalogue's own."""

import inspect
import math
import sys

import numpy as np
import pytest
import torch

import epilogue
from epilogue import ACTIVATIONS, vocabulary
from epilogue.approximations import APPROXIMATIONS, FAST
from epilogue.vocabulary import NUMPY, PRIMITIVES, exp, maximum, tanh, where

pytestmark = pytest.mark.usefixtures("own_activations")

FORMULAS = [
    formula
    for entry in ACTIVATIONS.values()
    for formula in (entry.value, *entry.derivatives.values(), *(formula for formula, *_ in entry.from_output))
]

FAST_FORMS = {form for forms in FAST.values() for form in forms.values()}

WHERE = "chooses with where"
ONE, SLOPES = 1.0, (0.5, 0.25)


@pytest.mark.parametrize(
    ("body", "column", "says"),
    [
        ("return x if x > 0.0 else 0.0", 17, WHERE),
        ("if x > 0.0:\n        return x\n    return 0.0 * x", 8, WHERE),
        ("return max(x, 0.0)", 12, WHERE),
        ("return where(not x, x, 0.0)", 18, WHERE),
        ("return where(x > 0.0 and x < 1.0, x, 0.0)", 18, WHERE),
        ("return where(0.0 < x < 1.0, x, 0.0)", 18, WHERE),
        ("return math.exp(x)", 12, "such as math.exp"),
        ("return float(x) * x", 12, "such as math.exp"),
        ("return np.arctan(x)", 12, "numpy.arctan is not in the vocabulary"),
        ("return np.clip(x, 0.0, 1.0)", 12, "numpy.clip is not in the vocabulary"),
        ("return np.maximum.reduce(x)", 12, "numpy.maximum is not in the vocabulary"),
        ("return torch.sin(x)", 12, "torch's sin takes tensors; call the function of epilogue.vocabulary"),
        ("return torch.nn.functional.silu(x)", 12, "torch's silu takes tensors"),
        ("return x ** 0.5", 12, r"write sqrt\(x\) for x \*\* 0.5"),
        ("return x ** x", 12, "a power must be a whole number"),
        ("return 2.0 ** x", 12, "unsupported operand"),
        ("return x % 2.0", 12, "unsupported operand"),
        ("return x.exp()", 12, r"functions, not methods: exp\(x\), not x.exp\(\)"),
        ("return where((x > 0.0) & (x < 1.0), x, 0.0)", 18, "one `where` within another"),
        ("return where(~(x > 0.0), x, 0.0)", 18, "one `where` within another"),
        (
            "return x * torch.ones(3, requires_grad=True)",
            12,
            r"got tensor\(.*what learns is a parameter of the formula",
        ),
        ("return x + np.ones(3)", 12, r"got array\(.*what learns is a parameter of the formula"),
        ("return x * '2'", 12, "constants are numbers, got '2'"),
        ("return exq(x)", 12, "'exq' is not defined"),
        ("return x * float('nan')", 12, "constants are numbers, got nan"),
        ("return x * True", 12, "constants are numbers, got True"),
        ("return x, x", None, "number"),
        ("y = 2.0 * x", None, "results and constants are numbers, got None"),
    ],
)
def test_what_is_no_formula_is_refused_at_once(body, column, says, tmp_path):
    """The message has the file, the line, the column (which Python 3.10 does not know) and what to write instead."""
    file = tmp_path / "mine.py"
    source = f"def mine(x):\n    {body}\n"
    file.write_text(source)
    namespace = {**NUMPY, "np": np, "torch": torch, "math": math}
    exec(compile(source, file, "exec"), namespace)
    line = 1 if column is None else 2
    at = f", column {column}" if column and sys.version_info >= (3, 11) else ""
    with pytest.raises(
        ValueError, match=rf"mine \(.*mine.py, line {line}{at}\): .*{says}.*straight-line arithmetic.*softplus"
    ):
        epilogue.activation(namespace["mine"])
    assert "mine" not in ACTIVATIONS
    for wrt in ("x", "negative_slope"):
        with pytest.raises(ValueError, match=says):
            epilogue.derivative_of(ACTIVATIONS["leaky_relu"], wrt)(with_slope(namespace["mine"]))


def with_slope(formula):
    def derivative(x, slope):
        return formula(x)

    return derivative


@pytest.mark.parametrize("formula", [lambda x: x, np.tanh, 7], ids=["lambda", "ufunc", "number"])
def test_a_formula_is_a_function_with_a_name(formula):
    with pytest.raises(ValueError, match="with def"):
        epilogue.activation(formula)


def test_arguments_that_are_none_are_refused():
    def rest(x, *more):
        return x

    def keyword(x, *, scale):
        return x

    def named(x, kind="a"):
        return x

    def flagged(x, flag=True):
        return x

    def constant(x):
        return 1.0

    def of_parameters(x, scale=2.0):
        return 2.0 * scale

    def nothing():
        return 1.0

    for formula in (rest, keyword):
        with pytest.raises(ValueError, match="plain arguments"):
            epilogue.activation(formula)
    for formula in (named, flagged):
        with pytest.raises(ValueError, match="must have a number for its default"):
            epilogue.activation(formula)
    for formula in (constant, of_parameters, nothing):
        with pytest.raises(ValueError, match="takes 1 operand"):
            epilogue.activation(formula)
    with pytest.raises(ValueError, match=r"takes the arguments \(x, negative_slope\), got \(x\)"):
        epilogue.derivative_of(ACTIVATIONS["leaky_relu"])(constant)
    with pytest.raises(ValueError, match="no operand or parameter 'y' to derive by; it has: x, negative_slope"):
        epilogue.derivative_of(ACTIVATIONS["leaky_relu"], "y")(of_parameters)


def doubled(x):
    return x + x


def test_what_a_formula_may_look_up():
    """Constants, functions of the user's own, loops over constants, closures, NumPy's names, whole powers, other activations."""
    bend = 0.5

    @epilogue.activation
    def mixture(x, scale=1.0):
        y = 0.0
        for slope in SLOPES:
            y = y * x + slope
        inner = ACTIVATIONS["leaky_relu"](np.tanh(doubled(x)), negative_slope=scale) + vocabulary.softplus(x)
        return y + bend * inner - (x > 0.0) * x**3 + abs(+x) ** -2 + x**1.0 + ONE

    x = np.linspace(-3.0, 3.0, 50)
    t = np.tanh(2.0 * x)
    inner = np.where(t > 0, t, 1.5 * t) + np.log1p(np.exp(x))
    expected = 0.5 * x + 0.25 + 0.5 * inner - np.where(x > 0, x**3, 0.0) + x**-2.0 + x + 1.0
    np.testing.assert_allclose(mixture.value(x, 1.5), expected, rtol=1e-12)
    assert epilogue.check(mixture, scale=1.5)


def test_what_a_formula_looked_up_is_what_it_keeps(monkeypatch):
    @epilogue.activation
    def shifted(x):
        return ONE * tanh(x) + ONE

    monkeypatch.setattr(sys.modules[__name__], "ONE", 5.0)
    x, weight = np.ones((1, 1)), np.ones((1, 1))
    expected = np.tanh(1.0) + 1.0
    assert shifted.derivatives["x"](0.0) == 1.0
    np.testing.assert_allclose(epilogue.linear(x, weight, activation="shifted"), [[expected]])
    assert epilogue.linear(torch.ones(1, 1), torch.ones(1, 1), activation="shifted").item() == pytest.approx(expected)


def test_infinity_is_a_constant():
    @epilogue.activation
    def masked(x):
        return where(x > 0.0, -math.inf, x)

    np.testing.assert_array_equal(masked.value(np.array([-1.0, 1.0])), [-1.0, -np.inf])


def test_an_activation_is_called_like_its_formula():
    leaky, x = ACTIVATIONS["leaky_relu"], np.array([-2.0, 3.0])
    np.testing.assert_allclose(leaky(x), [-0.02, 3.0])
    np.testing.assert_allclose(leaky(x, 0.5), leaky(x, negative_slope=0.5))
    tensor = torch.tensor([-2.0, 3.0], dtype=torch.bfloat16, requires_grad=True)
    assert leaky(tensor, 0.5).tolist() == [-1.0, 3.0]
    assert leaky(tensor).dtype == torch.bfloat16
    assert ACTIVATIONS["gelu"].gated(x, x).shape == (2,)
    for operands, params in (
        ((), {}),
        ((x, 0.5, 0.5), {}),
        ((x, 0.5), {"negative_slope": 0.5}),
        ((x,), {"slope": 0.5}),
    ):
        with pytest.raises(TypeError, match=r"<activation leaky_relu\(x, negative_slope\)> cannot be called with"):
            leaky(*operands, **params)
    with pytest.raises(TypeError, match="cannot be called with 1 operands"):
        ACTIVATIONS["threshold"](x)


@pytest.mark.parametrize("entry", ACTIVATIONS.values(), ids=repr)
def test_record_is_complete(entry):
    takes = [*entry.operands, *entry.params]
    assert list(inspect.signature(entry.written).parameters) == takes
    assert set(entry.operands) <= set(entry.derivatives) <= set(takes), "built-in derivatives are written by hand"
    for formula in entry.derivatives.values():
        assert formula.__code__.co_argcount == len(takes)
    for formula, *_ in entry.from_output:
        assert formula.__code__.co_argcount == 1 + len(entry.params)
    assert inspect.getdoc(entry.value), "the formula and its source"
    assert entry.builtin
    assert entry.own_oracle


def test_the_vocabulary_is_complete():
    assert set(NUMPY) == set(PRIMITIVES)
    assert all(getattr(vocabulary, name) is NUMPY[name] for name in PRIMITIVES)
    assert all(
        form.__code__.co_names and {*form.__code__.co_names} <= {*PRIMITIVES, *APPROXIMATIONS} for form in FAST_FORMS
    )


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.__name__)
def test_a_registered_formula_calls_primitives_alone(formula):
    """So that `bind` moves it to another backend, and Triton reads its source."""
    assert {*formula.__code__.co_names} <= {*PRIMITIVES}
    assert all(formula.__globals__[name] is NUMPY[name] for name in formula.__code__.co_names)
    assert inspect.getsource(formula).startswith("def formula(x0")


def test_a_class_of_the_users_own_is_no_value():
    class Cap:
        def __call__(self, x):
            return maximum(x, 0.0)

    cap = Cap()

    @epilogue.activation
    def capped(x):
        return cap(exp(x))

    np.testing.assert_allclose(capped.value(np.array([1.0])), np.e)
