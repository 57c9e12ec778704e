"""Formulas as the rest of the package takes them: functions over the primitives alone, printed from a trace of what the user wrote.

What the user's function looks up (a constant, another activation, a function of their own) is looked up once, when it is registered, so
that every backend computes the same for ever after.
"""

import hashlib
import inspect
import linecache
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from .trace import COMPARISONS, GRAMMAR, PYTHON, TORCH, Trace, printed, recorded
from .vocabulary import NUMPY, PRIMITIVES


def trace_of(formula: Callable) -> Trace:
    """The trace of what the user wrote. ValueError, with the line and column, for what is no formula."""
    names = arguments_of(formula)
    try:
        return recorded(formula, names)
    except Exception as error:
        raise ValueError(f"{_place(formula, error)}: {error}. {GRAMMAR}") from error


def frozen(formula: Callable) -> Callable[..., Any]:
    """The formula as a function over the primitives, with a source that Triton can read."""
    return function_of(trace_of(formula), formula.__name__, formula.__module__, formula.__doc__)


def arguments_of(formula: Callable) -> list[str]:
    """The names of a formula's arguments. ValueError where they are not plain ones."""
    if not inspect.isfunction(formula):
        raise ValueError(f"a formula must be a function, written with def; got {formula!r}")
    parameters = inspect.signature(formula).parameters.values()
    for parameter in parameters:
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            raise ValueError(f"{formula.__name__}: a formula has plain arguments, without *, ** and /; got {parameter}")
    return [parameter.name for parameter in parameters]


def function_of(trace: Trace, name: str, module: str, doc: str | None) -> Callable[..., Any]:
    """The function that computes what the trace recorded, over NumPy's primitives."""
    arguments, statements, result = printed(trace, PYTHON)
    function = compiled(arguments, [*statements, f"return {result}"])
    function.__name__, function.__module__, function.__doc__ = name, module, doc
    return function


def on_torch(trace: Trace) -> Callable[..., Any]:
    """The function `(F, x, …)` that computes what the trace recorded on torch tensors, and numbers beside them. It is differentiable, with
    gradients of 0 where a kernel's are 0: by arguments that nothing but conditions use.
    """
    arguments, statements, result = printed(trace, TORCH)
    names = ", ".join(sorted({value.operation for value in trace.used()} & {*PRIMITIVES}))
    first, *others = arguments
    differentiable = trace.needed(but=COMPARISONS)
    for name, argument in zip(arguments, trace.arguments, strict=True):
        if argument.place not in differentiable:
            result = f"tied({result}, {name})"
    head = [
        f"from epilogue.torch_vocabulary import number, tied, wide{names and f', {names}'}",
        f"{first} = wide({first})",
        *(f"{other} = number({other}, {first}).to({first}.dtype)" for other in others),
    ]
    return compiled(["F", *arguments], [*head, *statements, f"return {result}"])


def compiled(arguments: Sequence[str], lines: Sequence[str]) -> Any:
    """The function with these arguments and lines, over NumPy's primitives. Its source is in linecache, under a name that tells it from
    others.
    """
    source = "\n".join((f"def formula({', '.join(arguments)}):", *(f"    {line}" for line in lines), ""))
    file = f"<epilogue formula {hashlib.sha256(source.encode()).hexdigest()[:16]}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace: dict[str, Any] = dict(NUMPY)
    exec(compile(source, file, "exec"), namespace)
    return namespace["formula"]


def _place(formula: Callable, error: Exception) -> str:
    """Where the formula left the grammar: the innermost line of its file in the error's traceback. Python 3.10 knows no columns."""
    file, line, column = formula.__code__.co_filename, formula.__code__.co_firstlineno, None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == file:
            line, column = frame.lineno or line, getattr(frame, "colno", None)
    return f"{formula.__name__} ({file}, line {line}{'' if column is None else f', column {column + 1}'})"
