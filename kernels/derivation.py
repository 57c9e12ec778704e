"""Derivatives of formulas by forward mode: a formula is called once with dual numbers, a value and its derivative each.

Both are values of a trace, so the derivative is straight-line arithmetic over the vocabulary, as a formula is.
Griewank & Walther 2008, Evaluating Derivatives, chapter 3.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .trace import COMPARISONS, Trace, Traced, Value, recorded
from .vocabulary import absolute, cos, exp, sigmoid, sin, where

PARTIALS: dict[str, Callable[..., tuple]] = {
    "+": lambda y, a, b: (1.0, 1.0),
    "-": lambda y, a, b: (1.0, -1.0),
    "*": lambda y, a, b: (b, a),
    "/": lambda y, a, b: (1.0 / b, -(y / b)),
    "negative": lambda y, a: (-1.0,),
    "absolute": lambda y, a: (where(a > 0.0, 1.0, where(a < 0.0, -1.0, 0.0)),),
    "cos": lambda y, a: (-sin(a),),
    "erf": lambda y, a: (1.1283791670955126 * exp(-a * a),),
    "exp": lambda y, a: (y,),
    "expm1": lambda y, a: (exp(a),),
    "log": lambda y, a: (1.0 / a,),
    "log1p": lambda y, a: (1.0 / (1.0 + a),),
    "maximum": lambda y, a, b: (_larger(a, b), _larger(b, a)),
    "minimum": lambda y, a, b: (_larger(b, a), _larger(a, b)),
    "normal_cdf": lambda y, a: (exp(-0.5 * a * a - 0.9189385332046727),),
    "reciprocal": lambda y, a: (-y * y,),
    "rsqrt": lambda y, a: (-0.5 * y * y * y,),
    "sigmoid": lambda y, a: (_bell(sigmoid(-absolute(a))),),
    "sin": lambda y, a: (cos(a),),
    "softplus": lambda y, a: (sigmoid(a),),
    "sqrt": lambda y, a: (0.5 / y,),
    "tanh": lambda y, a: (4.0 * _bell(sigmoid(-2.0 * absolute(a))),),
}
"""Primitive or operator -> its derivatives by each operand, from its result and its operands."""


def _larger(a: Any, b: Any) -> Any:
    """The share of the gradient that maximum(a, b) passes to a. A tie shares it, as torch.maximum does."""
    return where(a > b, 1.0, where(a < b, 0.0, 0.5))


def _bell(s: Any) -> Any:
    """σ' from the smaller of σ(x) and σ(-x), which keeps its relative accuracy."""
    return s * (1.0 - s)


class Dual(Traced):
    """A value, and its derivative: a value or a number."""

    def __init__(self, value: Value, derivative: Any = 0.0) -> None:
        self.value, self.derivative = value, derivative

    def then(self, operation: str, *operands: Any) -> Any:
        primals = values_of(operands)
        if operation == "where" and not isinstance(primals[0], Value):
            return operands[1] if primals[0] else operands[2]
        y = next(primal for primal in primals if isinstance(primal, Value)).then(operation, *primals)
        if operation in COMPARISONS:
            return Dual(y)
        if operation == "where":
            a, b = map(derivative_of, operands[1:])
            return Dual(y, a if isinstance(a, float) and _is(b, a) else y.then("where", primals[0], a, b))
        return Dual(y, chain(PARTIALS[operation](y, *primals), operands))


def values_of(operands: Iterable[Any]) -> list[Any]:
    return [operand.value if isinstance(operand, Dual) else operand for operand in operands]


def derivative_of(operand: Any) -> Any:
    return operand.derivative if isinstance(operand, Dual) else 0.0


def chain(partials: Iterable[Any], operands: Iterable[Any]) -> Any:
    """Σ ∂y/∂operand · operand': the chain rule, without products with 0 and 1."""
    total: Any = 0.0
    for partial, operand in zip(partials, operands, strict=True):
        derivative = derivative_of(operand)
        if _is(derivative, 0.0) or _is(partial, 0.0):
            continue
        if _is(derivative, 1.0):
            term = partial
        elif _is(partial, 1.0):
            term = derivative
        elif _is(partial, -1.0):
            term = -derivative
        else:
            term = partial * derivative
        total = term if _is(total, 0.0) else total + term
    return total


def applied(value: Callable, partials: Sequence[Callable], operands: Sequence[Any]) -> "Dual | float":
    """A function of dual numbers, by the functions that compute its value and its derivative by each operand."""
    primals = values_of(operands)
    y = value(*primals)
    if not isinstance(y, Value):  # a number, where a condition on other numbers decides
        return y
    varying = [not _is(derivative_of(operand), 0.0) for operand in operands]
    found = [partial(*primals) if varies else 0.0 for partial, varies in zip(partials, varying, strict=True)]
    return Dual(y, chain(found, operands))


def _is(number: Any, constant: float) -> bool:
    return isinstance(number, float) and number == constant


def derived(formula: Callable, names: Sequence[str], by: str) -> Trace:
    """The trace of the derivative of a formula with these arguments, by one of them."""

    def derivative(*arguments: Value) -> Any:
        duals = (Dual(value, float(name == by)) for name, value in zip(names, arguments, strict=True))
        return derivative_of(formula(*duals))

    return recorded(derivative, names)
