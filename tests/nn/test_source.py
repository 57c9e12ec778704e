"""A function's source, read and compiled again: proven on the standard library's methods, refused where it is not what runs."""

import argparse
import ast
import configparser
import email.message
import fractions
import functools
import inspect
import json.decoder
import linecache
import logging
import statistics
import tarfile
import textwrap
import types
import zipfile

import pytest

from epilogue.nn.surgery import source

MODULES = [
    argparse,
    ast,
    configparser,
    email.message,
    fractions,
    inspect,
    json.decoder,
    logging,
    statistics,
    tarfile,
    textwrap,
    zipfile,
]
SUSPENDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_a_librarys_methods(module):
    """Private names, super(), closures, decorators and globals that are imported or not among them; by their steps, all the same code."""
    classes = [cls for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == module.__name__]
    methods = [each for cls in classes for each in vars(cls).values() if isinstance(each, types.FunctionType)]
    read, refused = 0, []
    for method in methods:
        function = source.innermost(method)
        if function.__code__.co_flags & SUSPENDS:
            continue
        try:
            rebuilt = source.rebuilt(source.parsed(function), function, {})
        except source.Unreadable:
            refused.append(function.__qualname__)
            continue
        read += 1
        assert rebuilt.__globals__ is function.__globals__
        assert inspect.signature(rebuilt) == inspect.signature(function)
        assert rebuilt.__code__.co_firstlineno == function.__code__.co_firstlineno
    assert read
    assert len(refused) <= 1  # Python 3.10 compiles ZipFile.open otherwise within a module


def written(tmp_path, text, name="f"):
    path = tmp_path / "written.py"
    path.write_text(text)
    namespace = {"functools": functools}
    exec(compile(text, str(path), "exec"), namespace)
    return path, namespace[name]


def test_a_source_that_was_edited_since(tmp_path):
    path, function = written(tmp_path, "def f(self, x):\n    return x + 1\n")
    assert ast.unparse(source.parsed(function).body[0]) == "return x + 1"
    path.write_text("def f(self, x):\n    return x + 2\n")
    linecache.checkcache()
    with pytest.raises(source.Unreadable, match="its source is not what runs"):
        source.parsed(function)


def test_decorators_are_put_around_it_again(tmp_path):
    text = """
def doubled(function):
    @functools.wraps(function)
    def wrapper(*args):
        return 2 * function(*args)
    return wrapper

@doubled
@doubled
def f(self, x):
    return x + 1
"""
    _, function = written(tmp_path, text)
    inner = source.innermost(function)
    definition = source.parsed(inner)
    definition.body = ast.parse("return x + 10").body
    for node in ast.walk(definition):
        node.lineno = getattr(node, "lineno", definition.lineno)
    other = source.redecorated(function, source.rebuilt(ast.fix_missing_locations(definition), inner, {}))
    assert (function(None, 1), other(None, 1)) == (8, 44)
    assert other.__wrapped__.__wrapped__ is source.innermost(other)


def test_a_decorator_that_does_not_hold_what_it_wraps():
    def wrapper():
        return None

    wrapper.__wrapped__ = written
    with pytest.raises(source.Unreadable, match="a decorator of it"):
        source.innermost(wrapper)


@pytest.mark.parametrize("function", [len, functools.partial(print), staticmethod(len)], ids=["C", "partial", "static"])
def test_what_is_no_function(function):
    with pytest.raises(source.Unreadable, match="not a function of Python"):
        source.innermost(function)
