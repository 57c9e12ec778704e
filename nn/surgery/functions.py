"""Reading a function's bytecode: the values that it reads beside its input, and whether it only computes."""

import ast
import dis
import functools
import types
from typing import Any, NamedTuple

import torch

from .source import Unreadable, captured, parsed

NARROW = {"relu", "square", "sigmoid", "tanh", "silu", "gelu"}
"""Functions that autocast leaves in the narrow dtype. Other functions that spell out an activation may run in float32."""
WIDE = {
    "pow",
    "exp",
    "expm1",
    "log",
    "log10",
    "log1p",
    "log2",
    "softplus",
    "reciprocal",
    "rsqrt",
    "sinh",
    "cosh",
    "tan",
    "sum",
    "prod",
}
"""Functions that autocast runs in float32 (CUDA's list)."""

_SCALARS = (bool, int, float, str, type(None), torch.dtype)
_BUILTINS = {"abs", "bool", "float", "int", "isinstance", "max", "min", "pow", "round"}
"""Python's functions that an activation may call."""
_CHANGES = (
    "STORE_ATTR",
    "STORE_GLOBAL",
    "STORE_DEREF",
    "STORE_SUBSCR",
    "DELETE_",
    "YIELD",
    "RETURN_GENERATOR",
    "IMPORT",
    "MAKE_FUNCTION",
)
"""The beginnings of instructions with which a function does more than compute."""


class Reads(NamedTuple):
    """The attributes of its module and the globals that a function reads. widens: autocast may run a part of it in float32."""

    attributes: tuple[str, ...]
    globals: tuple[str, ...]
    widens: bool


def reads_of(function: types.FunctionType, owner: Any) -> Reads | None:
    """Return what a function reads, as a method of `owner` unless that is None; or None if that cannot be said or it does more."""
    steps = list(dis.get_instructions(function))
    builtin = {step.argval for step in steps if step.opname == "LOAD_GLOBAL"} - function.__globals__.keys()
    if builtin - _BUILTINS or any(step.opname.startswith(_CHANGES) for step in steps):
        return None
    attributes: dict[str, None] = {}
    if owner is not None:
        try:
            definition = parsed(function)
        except Unreadable:
            return None
        me = definition.args.args[0].arg
        own = [
            node.attr for node in ast.walk(definition) if isinstance(node, ast.Attribute) and _is_name(node.value, me)
        ]
        if len(own) != sum(_is_name(node, me) for node in ast.walk(definition)):
            return None
        attributes = dict.fromkeys(own)
    others = [name for name in _globals(function) if not _is_torch_module(function.__globals__[name])]
    widens = any(
        step.argval in WIDE or step.opname == "BINARY_POWER" or step.argrepr in ("**", "**=") for step in steps
    )
    return Reads(tuple(attributes), tuple(others), widens)


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def holds_constants(function: types.FunctionType) -> bool:
    """Return whether all that the function holds (closure and defaults) is fixed. A table of ours would keep a held module alive."""
    cells = captured(function)
    return len(cells) == len(function.__closure__ or ()) and all(
        map(is_fixed, (*cells.values(), *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()))
    )


def is_fixed(value: Any) -> bool:
    """Return whether a value always does the same: a number, a string, what torch defines, or a function that only computes.

    What another function or class of a user does may change, and may be more than to compute.
    """
    if isinstance(value, _SCALARS) or _is_torch_module(value):
        return True
    if isinstance(value, functools.partial):
        return all(map(is_fixed, (value.func, *value.args, *value.keywords.values())))
    if _is_of_torch(value):
        return True
    if isinstance(value, types.MethodType):  # one that does not look at its object
        me = value.__func__.__code__.co_varnames[0]
        read = [step.argval for step in dis.get_instructions(value.__func__)]
        looks = any(me == name or (isinstance(name, tuple) and me in name) for name in read)
        return not looks and _only_computes(value.__func__)
    if isinstance(value, type) and issubclass(value, torch.autograd.Function):
        return all(map(_only_computes, (value.forward, value.backward)))
    return _only_computes(value)


def _is_of_torch(value: Any) -> bool:
    home = getattr(value, "__module__", None) or "torch"
    kinds = (type, types.FunctionType, types.BuiltinFunctionType)
    return isinstance(value, kinds) and home.partition(".")[0] == "torch"


def _only_computes(function: Any, within: tuple = ()) -> bool:
    """Return whether a function reads only torch and functions that do so too; a number that it read could change."""
    if not isinstance(function, types.FunctionType) or function in within or not holds_constants(function):
        return False
    reads = reads_of(function, None)
    if reads is None:
        return False
    held = [function.__globals__[name] for name in reads.globals]
    within = (*within, function)
    return not any(isinstance(value, _SCALARS) for value in held) and all(
        _is_of_torch(value)
        or _only_computes(value, within)
        or (not isinstance(value, types.FunctionType) and is_fixed(value))
        for value in held
    )


def calls_only_torch(function: types.FunctionType) -> bool:
    """Return whether the function has no closure, and its globals are numbers and modules of torch and math."""
    known = [function.__globals__[name] for name in _globals(function)]
    return not function.__closure__ and all(
        isinstance(value, (int, float)) or _is_torch_module(value) for value in known
    )


def _globals(function: types.FunctionType) -> list[str]:
    read = [step.argval for step in dis.get_instructions(function) if step.opname == "LOAD_GLOBAL"]
    return [name for name in dict.fromkeys(read) if name in function.__globals__]


def _is_torch_module(value: Any) -> bool:
    return isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] in ("torch", "math")
