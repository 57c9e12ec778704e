"""Tracing of formulas: a formula is called once with values that record every operation on them.

This needs neither the formula's source text nor a second copy of it. The record is printed in another language, or its cost is counted.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .approximations import APPROXIMATIONS, FAST
from .vocabulary import NUMPY, PRIMITIVES, bind

COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")


class Value:
    """A number that a formula computes: an argument, or an operation on other values. Arithmetic on it makes further values.

    operation: "argument", an operator's sign, "negative" or a primitive's name. The same operation on the same operands is the same value.
    """

    def __init__(self, operation: str, operands: tuple, known: dict[tuple, "Value"]) -> None:
        self.operation, self.operands, self.known, self.place = operation, operands, known, len(known)

    def __bool__(self) -> bool:
        raise TypeError("a formula is straight-line: it chooses with where(condition, a, b), not with if, and, or")

    def then(self, operation: str, *operands: Any) -> "Value":
        """The value of an operation on these operands, values or numbers."""
        numbered = tuple(operand if isinstance(operand, Value) else float(operand) for operand in operands)
        key = operation, *(operand.place if isinstance(operand, Value) else repr(operand) for operand in numbered)
        if key not in self.known:
            self.known[key] = Value(operation, numbered, self.known)
        return self.known[key]

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

    def __neg__(self) -> "Value":
        return self.then("negative", self)


def _primitive(name: str) -> Callable[..., Any]:
    def call(*operands: Any) -> Any:
        first = next((operand for operand in operands if isinstance(operand, Value)), None)
        return NUMPY[name](*operands) if first is None else first.then(name, *operands)

    return call


TRACING: dict[str, Any] = {name: _primitive(name) for name in (*PRIMITIVES, *APPROXIMATIONS)}
"""The primitives by name, as functions that record their calls."""


def vocabulary(dtype: str) -> dict[str, Any]:
    """The recording primitives for results of that dtype. The fast forms for 16 bits record the operations they are made of."""
    return {**TRACING, **{name: bind(primitive, TRACING) for name, primitive in FAST.get(dtype, {}).items()}}


def traced(formula: Callable, vocabulary: Mapping[str, Any] = TRACING) -> tuple[list[Value], list[Value], Any]:
    """(the arguments, the values computed from them in order, the result) of a formula. The result is a value or a number."""
    known: dict[tuple, Value] = {}
    for name in formula.__code__.co_varnames[: formula.__code__.co_argcount]:
        known["argument", name] = Value("argument", (), known)
    arguments = list(known.values())
    result = bind(formula, vocabulary)(*arguments)
    return arguments, list(known.values())[len(arguments) :], result


class Language(NamedTuple):
    """Templates: a statement from (name, expression), a number from a float, a call from (primitive, operands), and `where`."""

    statement: str
    number: str
    call: str
    where: str


C = Language("const real {} = {};", "(real){!r}", "{}_({})", "{} ? {} : {}")
PYTHON = Language("{} = {}", "{!r}", "{}({})", "where({}, {}, {})")


def printed(
    formula: Callable, language: Language, vocabulary: Mapping[str, Any] = TRACING
) -> tuple[list[str], list[str], str]:
    """(the names of the arguments, the statements, the result) of a formula bound to a tracing vocabulary."""
    arguments, values, result = traced(formula, vocabulary)
    texts = {argument.place: f"x{i}" for i, argument in enumerate(arguments)}
    statements: list[str] = []

    def text_of(operand: Any) -> str:
        return texts[operand.place] if isinstance(operand, Value) else language.number.format(float(operand))

    for value in values:
        expression = _expression(value.operation, [text_of(operand) for operand in value.operands], language)
        if value.operation in COMPARISONS:  # a condition, which `where` takes as it stands
            texts[value.place] = expression
        else:
            texts[value.place] = f"t{len(statements)}"
            statements.append(language.statement.format(texts[value.place], expression))
    return list(texts.values())[: len(arguments)], statements, text_of(result)


def _expression(operation: str, operands: list[str], language: Language) -> str:
    if operation == "where":
        return language.where.format(*operands)
    if operation == "negative":
        return f"-{operands[0]}"
    if operation.isidentifier():
        return language.call.format(operation, ", ".join(operands))
    return f" {operation} ".join(operands)
