"""What the expressions of a method are for one module, before it is called."""

import ast
import contextlib
import functools
import types
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import nn

from epilogue.catalogue import Activation

from .plain import is_linear
from .recognition import computed, recognised
from .source import Computed, captured, value_of
from .trees import names


@functools.cache
def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


class Roles:
    """What a method's expressions are for one module (see reading.Roles), by their text."""

    def __init__(self, function: types.FunctionType, owner: Any, known: dict[str, str] | None = None) -> None:
        """known: what has been asked so far, to which is added; without an owner nothing else can be."""
        self.function, self.owner, self.known = function, owner, {} if known is None else known
        self.notes: dict[str, list[str]] = defaultdict(list)
        self.prefix = f"{function.__module__}.{function.__qualname__}: "

    def __call__(self, node: ast.expr) -> str:
        return self._asked(node, "", self._role)

    def act(self, node: ast.expr) -> str:
        return self._asked(node, "act ", self._act)

    def _asked(self, node: ast.expr, kind: str, answer: Any) -> str:
        key = f"{self.prefix}{kind}{ast.unparse(node)}"
        if key not in self.known:
            try:
                self.known[key] = answer(self.value(node), self._is_held(node))
            except Computed:
                self.known[key] = "computed"
            except (LookupError, AttributeError, TypeError):
                self.known[key] = "?"
        return self.known[key]

    def ask_again(self, asked: Iterable[str]) -> None:
        """What was asked of another module."""
        for key in asked:
            if key.startswith(self.prefix):
                text = key.removeprefix(self.prefix)
                self.act(_parsed(text[4:])) if text.startswith("act ") else self(_parsed(text))

    def _is_held(self, node: ast.expr) -> bool:
        """Whether the module holds it."""
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and node.id == self.function.__code__.co_varnames[0]

    def value(self, node: ast.expr) -> Any:
        return value_of(node, self.function, self.owner)

    def activation(self, act: ast.expr) -> Any:
        """What a site is given as its activation; keywords that only the call knows are left out."""
        if not isinstance(act, ast.Call):
            return self.value(act)
        numbers: dict[Any, Any] = {}
        for keyword in act.keywords:
            with contextlib.suppress(LookupError, AttributeError):
                numbers[keyword.arg] = self.value(keyword.value)
        return functools.partial(self.value(act.args[0]), **numbers)

    def holds(self, musts: list[tuple[str, ast.expr]]) -> ast.expr | None:
        """The condition that is known to hold, so that the site does not run."""
        values = {
            **self.function.__globals__,
            **captured(self.function),
            self.function.__code__.co_varnames[0]: self.owner,
        }
        local = self.function.__code__.co_varnames[1:]
        for kind, test in musts:
            if kind == "condition" and not any(name.id in local for name in names(test)):
                with contextlib.suppress(Exception):  # only the call knows
                    code = compile(ast.fix_missing_locations(ast.Expression(test)), "condition", "eval")
                    if eval(code, values):
                        return test
        return None

    def _role(self, value: Any, held: bool) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if value is self.owner or (isinstance(value, types.MethodType) and value.__self__ is self.owner):
            return "own"
        if isinstance(value, (int, float)):
            return "one" if value == 1 else "number"
        if value is F.dropout:
            return "F.dropout"
        if is_linear(value):
            return "linear"
        if type(value) in (nn.Dropout, nn.Identity):
            return type(value).__name__.lower()
        home = getattr(value, "__module__", None) or ""
        return "torch" if callable(value) and not held and home.partition(".")[0] in ("", "torch", "math") else "other"

    def _act(self, value: Any, held: bool) -> str:
        known = recognised(value, held)
        return "other" if known is None else "act" if known[0].arity == 1 else "pair"

    def parameters(self, act: ast.expr) -> list[str]:
        known = recognised(self.value(act), True)
        return [] if known is None else list(known[0].params)

    def formula(self, function: ast.Lambda) -> Activation | None:
        code = compile(ast.fix_missing_locations(ast.Expression(function)), "formula", "eval")
        local = dict.fromkeys((*self.function.__code__.co_varnames, *self.function.__code__.co_cellvars))
        return computed(eval(code, {**self.function.__globals__, **captured(self.function), **local}))
