"""What a formula computes, written down: each value once, in order, and printed in another language."""

import numpy as np
import pytest

from epilogue.trace import PYTHON, TORCH, printed, traced
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
    assert printed(traced(signs), PYTHON) == (
        ["x0"],
        ["t0 = x0 * 0.0", "t1 = x0 * -0.0", "t2 = where(x0 > 0.0, t0, t1)"],
        "t2",
    )


def test_a_number_is_a_result():
    assert printed(traced(lambda x: 1.0), PYTHON) == (["x0"], [], "1.0")


def test_a_formula_is_straight_line():
    with pytest.raises(TypeError, match="it chooses with where"):
        traced(chooses)


def unused(x, a):
    exp(a)
    return where(x > 1.0, a * x, x * float("-inf"))


def test_what_the_result_does_not_need_is_left_out():
    text = printed(traced(unused), PYTHON)
    assert text == (["x0", "x1"], ["t0 = x1 * x0", "t1 = x0 * -1e999", "t2 = where(x0 > 1.0, t0, t1)"], "t2")
    assert printed(traced(unused), TORCH)[1][-1] == "t2 = where(x0 > 1.0, t0, t1, x0)"


def numbers_on_the_left(x):
    return np.float64(2.0) * x + np.float32(0.5) - (np.float64(1.0) < x)


def test_a_number_of_numpys_is_a_number():
    assert printed(traced(numbers_on_the_left), PYTHON)[1] == [
        "t0 = 2.0 * x0",
        "t1 = t0 + 0.5",
        "t2 = where(1.0 < x0, 1.0, 0.0)",
        "t3 = t1 - t2",
    ]


def condition(x):
    return x > 0.0


def truth(x):
    return where(x, 1.0, where(1.0 > 0.0, 2.0, x))


def test_a_condition_is_1_or_0_and_a_value_is_true_unless_0():
    assert printed(traced(condition), PYTHON)[1:] == (["t0 = where(x0 > 0.0, 1.0, 0.0)"], "t0")
    assert printed(traced(truth), PYTHON)[1:] == (["t0 = where(x0 != 0.0, 1.0, 2.0)"], "t0")
