"""What a formula computes, written down: each value once, in order, and printed in another language."""

import pytest

from epilogue.trace import PYTHON, printed, traced
from epilogue.vocabulary import exp, where


def twice(x, a):
    return exp(a * x) * (a * x) + exp(a * x)


def signs(x):
    return where(x > 0.0, x * 0.0, x * -0.0)


def chooses(x):
    return x if x > 0.0 else 0.0


def test_the_same_operation_is_one_value():
    arguments, values, result = traced(twice)
    assert [value.operation for value in values] == ["*", "exp", "*", "+"]
    assert values[0].operands == (arguments[1], arguments[0])
    assert result is values[-1]


def test_zeros_of_two_signs_are_two_numbers():
    assert printed(signs, PYTHON) == (["x0"], ["t0 = x0 * 0.0", "t1 = x0 * -0.0", "t2 = where(x0 > 0.0, t0, t1)"], "t2")


def test_a_number_is_a_result():
    assert printed(lambda x: 1.0, PYTHON) == (["x0"], [], "1.0")


def test_a_formula_is_straight_line():
    with pytest.raises(TypeError, match="it chooses with where"):
        traced(chooses)
