"""The catalogue's formulas printed as CUDA C, and the source of the kernels around them (pointwise.cu).

A formula is bound to a vocabulary whose primitives write down what they are called with, and called once: what it computes, statement by
statement, is its body in C. Its source text is not needed, nor is there a second copy of it.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..approximations import APPROXIMATIONS, FAST
from ..vocabulary import NUMPY, PRIMITIVES, bind

STORED = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "SINGLE", "float64": "DOUBLE"}


def _written(template: str, *operands: Any) -> "Value":
    """The value of the template with the operands' texts in it, as a statement of its own."""
    statements = next(operand.statements for operand in operands if isinstance(operand, Value))
    value = Value(f"t{len(statements)}", statements)
    statements.append(f"const real {value.text} = {template.format(*map(_text, operands))};")
    return value


def _text(operand: Any) -> str:
    return operand.text if isinstance(operand, Value) else f"(real){float(operand)!r}"


def _operator(template: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The operator and its reflection."""
    return lambda a, b: _written(template, a, b), lambda b, a: _written(template, a, b)


def _comparison(sign: str) -> Callable[..., Any]:
    """A condition, which `where` takes: a text, no statement."""
    return lambda a, b: Value(f"{_text(a)} {sign} {_text(b)}", a.statements)


class Value:
    """A number that the generated function computes. Arithmetic on it writes a statement and gives that statement's value."""

    def __init__(self, text: str, statements: list[str]) -> None:
        self.text, self.statements = text, statements

    def __bool__(self) -> bool:
        raise TypeError("a formula is straight-line: it chooses with where(condition, a, b), not with if, and, or")

    __add__, __radd__ = _operator("{} + {}")
    __sub__, __rsub__ = _operator("{} - {}")
    __mul__, __rmul__ = _operator("{} * {}")
    __truediv__, __rtruediv__ = _operator("{} / {}")
    __lt__, __le__, __gt__, __ge__, __eq__, __ne__ = map(_comparison, ("<", "<=", ">", ">=", "==", "!="))

    def __neg__(self) -> "Value":
        return _written("-{}", self)


def _primitive(name: str) -> Callable[..., Any]:
    def write(*operands: Any) -> Any:
        if not any(isinstance(operand, Value) for operand in operands):
            return NUMPY[name](*operands)
        return _written(f"{name}_({', '.join('{}' for _ in operands)})", *operands)

    return write


PRINTING: dict[str, Any] = {
    **{name: _primitive(name) for name in (*PRIMITIVES, *APPROXIMATIONS)},
    "where": lambda condition, a, b: _written("{} ? {} : {}", condition, a, b),
}


def vocabulary(dtype: str) -> dict[str, Any]:
    """The printing primitives for results of that dtype: the fast forms of 16 bits write themselves out."""
    return {**PRINTING, **{name: bind(primitive, PRINTING) for name, primitive in FAST.get(dtype, {}).items()}}


def function(name: str, formula: Callable, dtype: str) -> str:
    """The formula for results of that dtype as a C function of that name: `real` arguments, `real` result."""
    statements: list[str] = []
    count = formula.__code__.co_argcount
    result = bind(formula, vocabulary(dtype))(*(Value(f"x{i}", statements) for i in range(count)))
    body = "".join(f"  {statement}\n" for statement in statements)
    arguments = ", ".join(f"real x{i}" for i in range(count))
    return f"INLINE real {name}({arguments}) {{\n{body}  return {_text(result)};\n}}\n"


@functools.cache
def source(
    dtype: str, wide: bool, arrays: tuple[bool, ...], gated: bool, pair: bool, value: Callable, grad: Callable | None = None,
    grad_up: Callable | None = None, grad_param: Callable | None = None,
) -> str:  # fmt: skip
    """The whole source for arrays of that dtype and an activation of these parameters, arrays or numbers; the derivative kernel where there
    is a `grad`.

    wide: z is in the kernels' arithmetic, float32 or float64, whatever the dtype.
    """
    formulas = {"value": value, "grad": grad, "grad_up": grad_up, "grad_param": grad_param}
    flags = {STORED[dtype]: True, "WIDE": wide, "PAIR": pair, "GATED": gated, "BACKWARD": grad, "LEARNED": grad_param}
    taken, loaded, values = "", "", ""
    for i, array in enumerate(arrays):
        taken += f", const real* array{i}, offset stride{i}" if array else f", real number{i}"
        loaded += (
            f"real values{i}[WIDTH]; load_parameter(array{i}, stride{i}, col, count, values{i}); " if array else ""
        )
        values += f", values{i}[i]" if array else f", number{i}"
    return "\n".join(
        [
            *(f"#define {flag}" for flag, given in flags.items() if given),
            f"#define REALS {', real' * (len(arrays) + pair)}",
            f"#define PARAMETERS {taken}",
            f"#define LOAD_PARAMETERS {loaded}",
            f"#define VALUES {values}",
            Path(__file__).with_name("pointwise.cu").read_text(encoding="ascii"),
            *(function(name, formula, dtype) for name, formula in formulas.items() if formula),
        ]
    )
