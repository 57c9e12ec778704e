"""A formula printed in another language: called once with values that write down what is done with them, statement by statement.

Its source text is not needed, nor is there a second copy of it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .approximations import APPROXIMATIONS
from .vocabulary import NUMPY, PRIMITIVES, bind


class Language(NamedTuple):
    """Templates: a statement of (name, expression), a number of a float, a call of (primitive, operands), a choice."""

    statement: str
    number: str
    call: str
    where: str


C = Language("const real {} = {};", "(real){!r}", "{}_({})", "{} ? {} : {}")
PYTHON = Language("{} = {}", "{!r}", "{}({})", "where({}, {}, {})")


class Value:
    """A number that the printed function computes. Arithmetic on it writes a statement and gives that statement's value."""

    def __init__(self, text: str, statements: list[str], language: Language) -> None:
        self.text, self.statements, self.language = text, statements, language

    def __bool__(self) -> bool:
        raise TypeError("a formula is straight-line: it chooses with where(condition, a, b), not with if, and, or")

    def write(self, template: str, *operands: Any) -> "Value":
        """The value of the template with the operands' texts in it, as a statement of its own."""
        value = Value(f"t{len(self.statements)}", self.statements, self.language)
        expression = template.format(*(self.text_of(operand) for operand in operands))
        self.statements.append(self.language.statement.format(value.text, expression))
        return value

    def text_of(self, operand: Any) -> str:
        return operand.text if isinstance(operand, Value) else self.language.number.format(float(operand))

    @staticmethod
    def _operator(template: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The operator and its reflection."""
        return lambda a, b: a.write(template, a, b), lambda b, a: b.write(template, a, b)

    @staticmethod
    def _comparison(sign: str) -> Callable[..., Any]:
        """A condition, which `where` takes: a text, no statement."""
        return lambda a, b: Value(f"{a.text} {sign} {a.text_of(b)}", a.statements, a.language)

    __add__, __radd__ = _operator("{} + {}")
    __sub__, __rsub__ = _operator("{} - {}")
    __mul__, __rmul__ = _operator("{} * {}")
    __truediv__, __rtruediv__ = _operator("{} / {}")
    __lt__, __le__, __gt__, __ge__, __eq__, __ne__ = map(_comparison, ("<", "<=", ">", ">=", "==", "!="))

    def __neg__(self) -> "Value":
        return self.write("-{}", self)


def _primitive(name: str) -> Callable[..., Any]:
    def write(*operands: Any) -> Any:
        first = next((operand for operand in operands if isinstance(operand, Value)), None)
        if first is None:
            return NUMPY[name](*operands)
        template = first.language.call.format(name, ", ".join("{}" for _ in operands))
        return first.write(template, *operands)

    return write


PRINTING: dict[str, Any] = {
    **{name: _primitive(name) for name in (*PRIMITIVES, *APPROXIMATIONS)},
    "where": lambda condition, a, b: condition.write(condition.language.where, condition, a, b),
}
"""The vocabulary, printing itself."""


def printed(
    formula: Callable, language: Language, vocabulary: Mapping[str, Any] = PRINTING
) -> tuple[list[str], list[str], str]:
    """(the names of the arguments, the statements, the result) of a formula bound to a printing vocabulary."""
    statements: list[str] = []
    arguments = [f"x{i}" for i in range(formula.__code__.co_argcount)]
    result = bind(formula, vocabulary)(*(Value(name, statements, language) for name in arguments))
    return arguments, statements, result.text if isinstance(result, Value) else language.number.format(float(result))
