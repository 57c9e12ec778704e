"""The roles of a method's expressions: what each is for one module, before a call."""

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

from ..plain import is_linear
from .grid import computed
from .recognition import recognised
from .source import Computed, captured, value_of
from .trees import names


@functools.cache
def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


class Roles:
    """The roles that a method's expressions have for one module, by their text.

    notes: what was seen and not taken, by kind. "between": what stands between linear layers; "activated": the activations in it;
    "unknown": what is in the place of an activation; "used": expressions that need something that is used elsewhere too; "scope": those in
    a scope of their own.
    """

    def __init__(self, function: types.FunctionType, owner: Any, known: dict[str, str] | None = None) -> None:
        """known: the roles that were asked for so far, to which is added. Without an owner no others can be asked for."""
        self.function, self.owner, self.known = function, owner, {} if known is None else known
        self.notes: dict[str, list[str]] = defaultdict(list)
        self.prefix = f"{function.__module__}.{function.__qualname__}: "

    def __call__(self, node: ast.expr) -> str:
        """Return the role of a callee or factor.

        It is "linear", "dropout" (a module), "F.dropout", "identity", "torch" (a function of torch or math), "one" (the number), "number",
        "true", "false", "own" (the module or a method of it), "computed" (a property), "?" (only the call knows) or "other".
        """
        return self._asked(node, "", self._role)

    def act(self, node: ast.expr) -> str:
        """Return the role of a callee that may be an activation, which may be called to see: "act", "pair" (F.glu), "computed", "?" or
        "other"."""
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
        """Ask for the roles that were asked for of another module."""
        for key in asked:
            if key.startswith(self.prefix):
                text = key.removeprefix(self.prefix)
                if text.startswith("act "):
                    self.act(_parsed(text.removeprefix("act ")))
                else:
                    self(_parsed(text))

    def _is_held(self, node: ast.expr) -> bool:
        """Return whether the expression is the module or something that it holds."""
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and node.id == self.function.__code__.co_varnames[0]

    def value(self, node: ast.expr) -> Any:
        return value_of(node, self.function, self.owner)

    def activation(self, act: ast.expr) -> Any:
        """Return the activation that a site is given, without keywords that only the call knows."""
        if not isinstance(act, ast.Call):
            return self.value(act)
        numbers: dict[Any, Any] = {}
        for keyword in act.keywords:
            with contextlib.suppress(LookupError, AttributeError):
                numbers[keyword.arg] = self.value(keyword.value)
        return functools.partial(self.value(act.args[0]), **numbers)

    def holds(self, musts: list[tuple[str, ast.expr]]) -> ast.expr | None:
        """Return the first condition that is known to hold, for which the site does not run; None if there is none."""
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
        if known is None:
            return "other"
        return "act" if known.entry.arity == 1 else "pair"

    def parameters(self, act: ast.expr) -> list[str]:
        """Return the names of an activation's parameters, which follow its input."""
        known = recognised(self.value(act), True)
        return [] if known is None else list(known.entry.params)

    def formula(self, function: ast.Lambda) -> Activation | None:
        """Return the activation that a function of one tensor computes, or None."""
        code = compile(ast.fix_missing_locations(ast.Expression(function)), "formula", "eval")
        local = dict.fromkeys((*self.function.__code__.co_varnames, *self.function.__code__.co_cellvars))
        return computed(eval(code, {**self.function.__globals__, **captured(self.function), **local}))
