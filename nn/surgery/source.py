"""From a function to its syntax tree and back: a method is read from its source, and compiled again with another body.

All that surrounds the body stays: globals, closure, defaults, decorators, the lines that a traceback shows. A source is refused if it does
not compile to the very code that runs (edited since, changed by an import hook).
"""

import __future__

import ast
import bisect
import contextlib
import dis
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

_FUTURES = functools.reduce(
    int.__or__, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)


class Computed(LookupError):
    """Raised for a property, which runs at every look-up."""


class Unreadable(Exception):
    """Raised if a function's source cannot be read; the message says why."""


def innermost(function: Any) -> types.FunctionType:
    """Return the function that decorators wrap; each of them must hold it in its closure."""
    while isinstance(function, types.FunctionType) and hasattr(function, "__wrapped__"):
        _cell(function)
        function = function.__wrapped__
    if not isinstance(function, types.FunctionType):
        raise Unreadable(f"it is a {type(function).__name__}, not a function of Python")
    return function


def _cell(wrapper: Any) -> int:
    """Return the index, in the wrapper's closure, of the function that it wraps."""
    for at, cell in enumerate(wrapper.__closure__ or ()):
        if cell.cell_contents is wrapper.__wrapped__:
            return at
    raise Unreadable(f"a decorator of it ({wrapper.__code__.co_name}) does not hold what it wraps")


def parsed(function: types.FunctionType) -> ast.FunctionDef:
    """Return the definition that the function was compiled from, with its own line numbers; Unreadable if that cannot be shown."""
    try:
        source = inspect.getsource(function.__code__)  # a wrapper's own
        indented = source[:1].isspace()
        tree = ast.parse("class _:\n" + source if indented else source)
    except (OSError, TypeError, SyntaxError, IndexError, ValueError) as error:
        raise Unreadable(f"its source is not to be had ({type(error).__name__})") from error
    definition, *more = tree.body[0].body if indented else tree.body  # type: ignore[attr-defined]
    if more or not isinstance(definition, ast.FunctionDef):
        raise Unreadable("it is a lambda or a coroutine")
    ast.increment_lineno(definition, function.__code__.co_firstlineno - (2 if indented else 1))
    definition.decorator_list = []
    owner = _owner(function).lstrip("_")
    for node in ast.walk(definition):  # the compiler's spelling of private names
        if owner and isinstance(node, ast.Attribute) and node.attr.startswith("__") and not node.attr.endswith("__"):
            node.attr = f"_{owner}{node.attr}"
    if _steps(_compiled(definition, function, ())) != _steps(function.__code__):
        raise Unreadable("its source is not what runs")
    return definition


def _owner(function: types.FunctionType) -> str:
    """Return the name of the class that the function was written in, by which private names are mangled; "" outside of one."""
    name = function.__qualname__.rpartition(".")[0].rpartition(".")[2]
    return name if name.isidentifier() else ""


def _compiled(definition: ast.FunctionDef, function: types.FunctionType, names: tuple[str, ...]) -> types.CodeType:
    """Return the definition's code, in which `names` are free variables beside the function's own."""
    code, owner = function.__code__, _owner(function)
    around = ", ".join((*names, *(name for name in code.co_freevars if name != "__class__")))
    named = f" global {owner}\n" if owner and owner not in code.co_freevars else ""  # the method may name its class
    module: Any = ast.parse(f"def _({around}):\n{named} class {owner or '_'}: pass")
    (module.body[0].body[-1] if owner else module.body[0]).body = [definition]
    found = compile(
        ast.fix_missing_locations(module), code.co_filename, "exec", code.co_flags & _FUTURES, dont_inherit=True
    )
    for inner in codes_within(found):
        if (inner.co_name, inner.co_firstlineno) == (code.co_name, definition.lineno):
            return inner
    raise Unreadable("its name is not the one in its source")


def codes_within(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the code of all functions within, at any depth."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from codes_within(constant)


def _steps(code: types.CodeType) -> tuple:
    """Return what the code does, in a form that does not depend on where it was written.

    How a method of a global is called depends on whether the module imports that name, which a function alone does not show. Both ways are
    therefore made the same.
    """
    kept = [
        step
        for step in dis.get_instructions(code)
        if step.opname not in ("PUSH_NULL", "PRECALL", "EXTENDED_ARG", "NOP")
    ]
    places = [step.offset for step in kept]
    steps = []
    for step in kept:
        value = step.argval
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            value = bisect.bisect_left(places, value)
        elif isinstance(value, types.CodeType):
            value = _steps(value)
        steps.append(
            (step.opname.replace("LOAD_METHOD", "LOAD_ATTR").replace("CALL_METHOD", "CALL_FUNCTION"), repr(value))
        )
    return (code.co_varnames, code.co_cellvars, set(code.co_freevars), steps)


def rebuilt(definition: ast.FunctionDef, function: types.FunctionType, known: dict[str, Any]) -> types.FunctionType:
    """Return the function with the definition's body, in which the names in `known` are those objects."""
    code = _compiled(definition, function, tuple(known))
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    closure = tuple(cells[name] if name in cells else types.CellType(known[name]) for name in code.co_freevars)
    return _like(function, code.replace(co_firstlineno=function.__code__.co_firstlineno), closure)


def _like(function: types.FunctionType, code: types.CodeType, closure: tuple) -> types.FunctionType:
    other = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    other.__kwdefaults__, other.__doc__ = function.__kwdefaults__, function.__doc__
    other.__module__, other.__qualname__ = function.__module__, function.__qualname__
    other.__annotations__ = function.__annotations__
    other.__dict__.update(function.__dict__)
    return other


def redecorated(function: Any, inner: types.FunctionType) -> types.FunctionType:
    """Return the function with another innermost one, around which each decorator's wrapper is made again."""
    if not hasattr(function, "__wrapped__"):
        return inner
    at, within = _cell(function), redecorated(function.__wrapped__, inner)
    closure = tuple(types.CellType(within) if i == at else cell for i, cell in enumerate(function.__closure__))
    other = _like(function, function.__code__, closure)
    other.__wrapped__ = within  # type: ignore[attr-defined]
    return other


def value_of(node: ast.AST, function: types.FunctionType, owner: Any) -> Any:
    """Return the value of an expression of names, attributes and constant items, before a call of the method on `owner`.

    LookupError if only the call knows it. No code of the user's runs: no property, no __getattr__.
    """
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        code = function.__code__
        if node.id == code.co_varnames[0]:
            return owner
        if node.id in code.co_varnames or node.id in code.co_cellvars:
            raise LookupError(node.id)
        if node.id in code.co_freevars:
            return captured(function)[node.id]
        builtins = function.__builtins__ if hasattr(function, "__builtins__") else {}
        return function.__globals__[node.id] if node.id in function.__globals__ else builtins[node.id]
    if isinstance(node, ast.Attribute):
        return _attribute(value_of(node.value, function, owner), node.attr)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return -node.operand.value  # type: ignore[operator]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        held, key = value_of(node.value, function, owner), node.slice.value
        modules = vars(held).get("_modules") if hasattr(held, "__dict__") else None
        if modules is not None:  # of an nn.ModuleList, nn.Sequential or nn.ModuleDict
            return list(modules.values())[key] if isinstance(key, int) else modules[key]
        if type(held) in (list, tuple, dict):
            return held[key]
    raise LookupError(ast.unparse(node))


def captured(function: types.FunctionType) -> dict[str, Any]:
    """Return the variables of the function's closure that have a value by now."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):
            found[name] = cell.cell_contents
    return found


def _attribute(held: Any, name: str) -> Any:
    if isinstance(held, types.ModuleType):
        return vars(held)[name]
    own = vars(held) if hasattr(held, "__dict__") else {}
    for place in (own, own.get("_modules", {}), own.get("_parameters", {}), own.get("_buffers", {})):
        if isinstance(place, dict) and name in place:
            return place[name]
    if isinstance(held, type):
        raise LookupError(name)
    found = inspect.getattr_static(type(held), name)
    if isinstance(found, types.FunctionType):
        return types.MethodType(found, held)
    if isinstance(found, staticmethod):
        return found.__func__
    if hasattr(type(found), "__get__"):
        raise (Computed if isinstance(found, property) else LookupError)(name)
    return found
