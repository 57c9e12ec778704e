"""Tracing of formulas: a formula is called once with values that record every operation on them.

This needs neither the formula's source text nor a second copy of it. The record is printed in another language, or its cost is counted.
What a formula calls on its way (another activation, a function of the user's, a loop over constants) leaves its operations in the record.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .approximations import APPROXIMATIONS, FAST
from .vocabulary import NUMPY, PRIMITIVES, bind

COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")

GRAMMAR = (
    "A formula is straight-line arithmetic: + - * /, whole powers, comparisons, other activations, and the functions of "
    f"epilogue.vocabulary: {', '.join(PRIMITIVES)}."
)

_SIGNS = {
    "add": "+", "subtract": "-", "multiply": "*", "divide": "/", "negative": "negative", "less": "<", "less_equal": "<=",
    "greater": ">", "greater_equal": ">=", "equal": "==", "not_equal": "!=",
}  # fmt: skip
"""NumPy's name of an operator -> the operator. A NumPy number on an operator's left side calls it."""


class Traced:
    """The arithmetic of values that record it. `then(operation, *operands)`, which subclasses have, is a further value."""

    def then(self, operation: str, *operands: Any) -> "Traced":
        raise NotImplementedError

    @staticmethod
    def _operator(sign: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """(the operator, its reflection)."""
        return lambda a, b: a.then(sign, a, b), lambda b, a: b.then(sign, a, b)

    @staticmethod
    def _comparison(sign: str) -> Callable[..., Any]:
        return lambda a, b: a.then(sign, a, b)

    __add__, __radd__ = _operator("+")
    __sub__, __rsub__ = _operator("-")
    __mul__, __rmul__ = _operator("*")
    __truediv__, __rtruediv__ = _operator("/")
    __lt__, __le__, __gt__, __ge__, __eq__, __ne__ = map(_comparison, COMPARISONS)

    def __neg__(self) -> "Traced":
        return self.then("negative", self)

    def __pos__(self) -> "Traced":
        return self

    def __abs__(self) -> "Traced":
        return self.then("absolute", self)

    def __pow__(self, exponent: Any) -> Any:
        """Repeated multiplication, for whole numbers."""
        if isinstance(exponent, Traced) or exponent != int(exponent):
            raise TypeError("a power must be a whole number: write sqrt(x) for x ** 0.5, exp(p * log(x)) for x ** p")
        if exponent < 0:
            return 1.0 / self**-exponent
        power, square, left = None, self, int(exponent)
        while left:
            if left % 2:
                power = square if power is None else power * square
            left //= 2
            square = square * square if left else square
        return 1.0 if power is None else power

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *operands: Any, **options: Any) -> "Traced":
        name = _SIGNS.get(ufunc.__name__, ufunc.__name__)
        if (name not in PRIMITIVES and name not in _SIGNS.values()) or method != "__call__" or options:
            raise TypeError(f"numpy.{ufunc.__name__} is not in the vocabulary")
        return self.then(name, *operands)

    def __array_function__(self, function: Callable, types: Any, operands: tuple, options: dict) -> "Traced":
        if function is not np.where or options or len(operands) != 3:
            raise TypeError(f"numpy.{function.__name__} is not in the vocabulary")
        return self.then("where", *operands)

    @classmethod
    def __torch_function__(cls, function: Callable, types: Any, operands: tuple = (), options: Any = None) -> Any:
        raise TypeError(f"torch's {function.__name__} takes tensors; call the function of epilogue.vocabulary")

    def __bool__(self) -> bool:
        raise TypeError(
            "a formula is straight-line: it chooses with where(condition, a, b), not with if, and, or, not, min or max"
        )

    def __float__(self) -> float:
        raise TypeError(
            "a function of numbers, such as math.exp, cannot be traced; call the one of epilogue.vocabulary"
        )

    __int__ = __index__ = __float__

    def __and__(self, other: Any = None) -> "Traced":
        raise TypeError("conditions are combined by one `where` within another: where(a, where(b, x, y), y) for a & b")

    __rand__ = __or__ = __ror__ = __invert__ = __and__

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a formula calls functions, not methods: {name}(x), not x.{name}()")

    __hash__ = None  # type: ignore[assignment]


class Value(Traced):
    """A number that a formula computes: an argument, or an operation on other values. Arithmetic on it makes further values.

    operation: "argument", an operator's sign, "negative" or a primitive's name. The same operation on the same operands is the same value.
    """

    def __init__(self, operation: str, operands: tuple, known: dict[tuple, "Value"]) -> None:
        self.operation, self.operands, self.known, self.place = operation, operands, known, len(known)

    def then(self, operation: str, *operands: Any) -> Any:
        """The value of an operation on these operands, values or numbers. A condition counts as 1 or 0, except where `where` takes it."""
        if operation == "where":
            condition, *chosen = operands
            if not isinstance(condition, Value):
                return chosen[0] if condition else chosen[1]
            condition = condition if condition.operation in COMPARISONS else condition.then("!=", condition, 0.0)
            numbered = condition, *map(_number, chosen)
        else:
            numbered = tuple(map(_number, operands))
        key = operation, *(operand.place if isinstance(operand, Value) else repr(operand) for operand in numbered)
        if key not in self.known:
            self.known[key] = Value(operation, numbered, self.known)
        return self.known[key]


def _number(operand: Any) -> "Value | float":
    if not isinstance(operand, Value):
        if isinstance(operand, np.ndarray) and operand.ndim == 0:  # as NumPy hands a number on
            operand = operand.item()
        if (
            isinstance(operand, bool)
            or not isinstance(operand, (int, float, np.integer, np.floating))
            or math.isnan(operand)
        ):
            learns = "; what learns is a parameter of the formula" if hasattr(operand, "shape") else ""
            raise TypeError(f"a formula's results and constants are numbers, got {operand!r}{learns}")
        return float(operand)
    return operand.then("where", operand, 1.0, 0.0) if operand.operation in COMPARISONS else operand


def _approximation(name: str) -> Callable[[Value], Any]:
    return lambda x: x.then(name, x)


TRACING: dict[str, Any] = {**NUMPY, **{name: _approximation(name) for name in APPROXIMATIONS}}
"""The primitives and approximations by name, as functions that record their calls."""


def vocabulary(dtype: str) -> dict[str, Any]:
    """The recording primitives for results of that dtype. The fast forms for 16 bits record the operations they are made of."""
    return {**TRACING, **{name: bind(primitive, TRACING) for name, primitive in FAST.get(dtype, {}).items()}}


class Trace(NamedTuple):
    """A formula's arguments, the values that it computes from them, in order, and its result, a value or a number."""

    arguments: list[Value]
    values: list[Value]
    result: "Value | float"

    def needed(self, but: tuple[str, ...] = ()) -> set[int]:
        """The places of the values and arguments that the result needs. but: operations whose operands do not count."""
        places = {self.result.place} if isinstance(self.result, Value) else set()
        for value in reversed(self.values):
            if value.place in places and value.operation not in but:
                places |= {operand.place for operand in value.operands if isinstance(operand, Value)}
        return places

    def used(self) -> list[Value]:
        """The values that the result needs."""
        needed = self.needed()
        return [value for value in self.values if value.place in needed]


def traced(formula: Callable, vocabulary: Mapping[str, Any] | None = None) -> Trace:
    """The trace of a formula. vocabulary: the primitives in place of NumPy's, for a formula that calls primitives alone."""
    names = formula.__code__.co_varnames[: formula.__code__.co_argcount]
    return recorded(bind(formula, vocabulary) if vocabulary else formula, names)


def recorded(function: Callable, names: Iterable[str]) -> Trace:
    """The trace of a function whose arguments have these names."""
    known: dict[tuple, Value] = {}
    for name in names:
        known["argument", name] = Value("argument", (), known)
    arguments = list(known.values())
    result = _number(function(*arguments))
    return Trace(arguments, list(known.values())[len(arguments) :], result)


class Language(NamedTuple):
    """Templates: a statement from (name, expression), a number from its text, a call from (primitive, operands), and `where`."""

    statement: str
    number: str
    call: str
    where: str


C = Language("const real {} = {};", "(real){}", "{}_({})", "{} ? {} : {}")
PYTHON = Language("{} = {}", "{}", "{}({})", "where({}, {}, {})")
TORCH = PYTHON._replace(where="where({}, {}, {}, x0)")


def printed(trace: Trace, language: Language) -> tuple[list[str], list[str], str]:
    """(the names of the arguments, the statements, the result) of a formula, without the values that its result does not need."""
    texts = {argument.place: f"x{i}" for i, argument in enumerate(trace.arguments)}
    statements: list[str] = []

    def text_of(operand: Value | float) -> str:
        if isinstance(operand, Value):
            return texts[operand.place]
        return language.number.format(repr(operand).replace("inf", "1e999"))

    for value in trace.used():
        expression = _expression(value.operation, [text_of(operand) for operand in value.operands], language)
        if value.operation in COMPARISONS:  # a condition, which `where` takes as it stands
            texts[value.place] = expression
        else:
            texts[value.place] = f"t{len(statements)}"
            statements.append(language.statement.format(texts[value.place], expression))
    return list(texts.values())[: len(trace.arguments)], statements, text_of(trace.result)


def _expression(operation: str, operands: list[str], language: Language) -> str:
    if operation == "where":
        return language.where.format(*operands)
    if operation == "negative":
        return f"-{operands[0]}"
    if operation.isidentifier():
        return language.call.format(operation, ", ".join(operands))
    return f" {operation} ".join(operands)
