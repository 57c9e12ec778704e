"""Rewriting a method, so that its expressions call their sites. An expression within one statement becomes

    (y if (y := site(x := e, act, up, …)) is not None else <the original, of x>)

and one that takes several statements becomes `if (y := site(…)) is not None: <the last statement, of y>`, `else: <the originals>`. Smaller
expressions within an original have sites of their own.
"""

import ast
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .expressions import Found
from .reading import Reader
from .roles import Roles
from .trees import INPUT, changed, loads, names, pure, replaced, stored, text

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_KINDS: dict[type, str] = {
    **dict.fromkeys(COMPREHENSIONS, "a comprehension"),
    **dict.fromkeys((ast.FunctionDef, ast.AsyncFunctionDef), "an inner function"),
    ast.Lambda: "a lambda",
    ast.ClassDef: "an inner class",
}
SCOPES = tuple(_KINDS)
CATCHES = (ast.Try, getattr(ast, "TryStar", ast.Try), ast.With, ast.AsyncWith)
"""Statements after which a forward may go on although something was raised within."""
LOOPS = (ast.For, ast.AsyncFor, ast.While, *CATCHES[:2])
"""Statements in which something may be executed again, or in which what follows in the source may not be executed next."""

Path = tuple[tuple[Sequence[ast.stmt], int], ...]
"""The suites from the function's body inwards, and the number of the statement in each."""


class Rewriter:
    """Replaces the expressions in a definition's own scope, in the copy `definition`; `found` are their sites."""

    def __init__(self, definition: ast.FunctionDef, role: Roles) -> None:
        self.role = role
        self.found: list[Found] = []
        self._taken: set[tuple] = set()  # the places of expressions that have a site
        self._within: Found | None = None  # the site in whose original this is
        inner = [node for node in ast.walk(definition) if isinstance(node, SCOPES) and node is not definition]
        declared = [node for node in ast.walk(definition) if isinstance(node, (ast.Global, ast.Nonlocal))]
        # Names that other scopes may read too.
        self._shared = {name.id for node in inner for name in names(node)}.union(*(node.names for node in declared))
        self.definition = ast.fix_missing_locations(changed(definition, body=self._suite(definition.body, ())))

    def _suite(self, suite: Sequence[ast.stmt], path: Path) -> list[ast.stmt]:
        result: list[ast.stmt] = []
        at = len(suite) - 1
        while at >= 0:  # backwards, since the last statement of an expression tells where it begins
            grouped = self._group(suite, at, path)
            statement, number = (self._statement(suite[at], suite, at, path), 1) if grouped is None else grouped
            result.insert(0, statement)
            at -= number
        return result

    def _statement(self, node: Any, suite: Sequence[ast.stmt], at: int, path: Path) -> Any:
        if isinstance(node, list):
            if node and isinstance(node[0], ast.stmt):
                return self._suite(node, (*path, (suite, at)))
            return [self._statement(item, suite, at, path) for item in node]
        if isinstance(node, ast.expr):
            return self._expression(node, suite, at)
        if not isinstance(node, ast.AST) or isinstance(node, ast.pattern):
            return node
        if isinstance(node, SCOPES):
            return self._left_alone(node)
        return changed(node, **{name: self._statement(value, suite, at, path) for name, value in ast.iter_fields(node)})

    def _left_alone(self, scope: Any) -> Any:
        """Return an inner scope as it is, and note the first expression in it that would have been replaced."""
        for node in ast.walk(scope):
            if isinstance(node, ast.expr) and Reader([ast.Expr(node)], self.role).found(node, 0):
                self.role.notes["scope"].append(
                    f"`{text(node)}` is in {_KINDS[type(scope)]}, which has a scope of its own"
                )
                break
        return scope

    def _expression(self, node: Any, suite: Sequence[ast.stmt], at: int) -> Any:
        if isinstance(node, list):
            return [self._expression(item, suite, at) for item in node]
        if not isinstance(node, ast.AST):
            return node
        if isinstance(node, SCOPES):
            return self._left_alone(node)
        found = self._find(node, suite, at)
        if found is None or len(found.statements) > 1:
            return changed(node, **{name: self._expression(value, suite, at) for name, value in ast.iter_fields(node)})
        y, call, original = self._call(found, node, self._expression(found.argument, suite, at))
        with self._original_of(found):
            return ast.copy_location(ast.IfExp(call, y, self._expression(original, suite, at)), node)

    def _group(self, suite: Sequence[ast.stmt], at: int, path: Path) -> tuple[ast.stmt, int] | None:
        """Return the statement that replaces an expression of several statements, the last of them at that place, and their number."""
        last, here = suite[at], (*path, (suite, at))
        if not isinstance(last, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return, ast.Expr)) or last.value is None:
            return None
        if isinstance(last, ast.AugAssign) and not pure(last.target):  # the target is evaluated first
            return None
        for node in _before_calls(last.value):
            found = self._find(node, suite, at)
            if found is None or len(found.statements) == 1:
                continue
            first = at + 1 - len(found.statements)
            defined = set().union(*map(stored, suite[first:at]))
            if defined & self._shared or any(_read_later(name, found, here) for name in defined):
                self.role.notes["used"].append(text(node))
                continue
            y, test, originals = self._call(found, found.statements, self._expression(found.argument, suite, first))
            with self._original_of(found):
                group = ast.If(test, [replaced(last, {node: y})], self._suite(originals, here))
            return ast.copy_location(group, suite[first]), len(found.statements)
        return None

    @contextmanager
    def _original_of(self, found: Found) -> Iterator[None]:
        outer, self._within = self._within, found
        yield
        self._within = outer

    def _find(self, node: Any, suite: Sequence[ast.stmt], at: int) -> Found | None:
        if not isinstance(node, ast.expr) or _place(node) in self._taken:
            return None
        return Reader(suite, self.role).found(node, at)

    def _call(self, found: Found, original: Any, argument: ast.expr) -> tuple[ast.Name, ast.Compare, Any]:
        """Return (y, `(y := site(x := argument, …)) is not None`, the original with x in place of its argument)."""
        self.found.append(found)
        self._taken.add(_place(found.node))
        found.name, found.within = f"_epilogue_{len(self.found)}", self._within
        x, y = f"{found.name}_x", f"{found.name}_y"
        if isinstance(found.argument, ast.Name):
            x = found.argument.id
        else:
            original = replaced(original, {found.argument: ast.copy_location(ast.Name(x, ast.Load()), found.argument)})
            argument = ast.NamedExpr(ast.Name(x, ast.Store()), argument)
        slots = [found.slots.get(name, ast.Constant(None)) for name in ("act", "up", "gate", "down", "dropout")]
        musts: list[ast.expr] = []
        for kind, value in found.musts:
            inputs = {load: ast.Name(x, ast.Load()) for load in names(value) if load.id == INPUT}
            value = _looked_up(value) if kind.endswith("cast") else replaced(value, inputs)
            musts.append(ast.Tuple([ast.Constant(kind), value], ast.Load()))
        while not musts and isinstance(slots[-1], ast.Constant):
            slots.pop()
        call = ast.Call(ast.Name(found.name, ast.Load()), [argument, *slots, *musts], [])
        test = ast.Compare(ast.NamedExpr(ast.Name(y, ast.Store()), call), [ast.IsNot()], [ast.Constant(None)])
        return ast.copy_location(ast.Name(y, ast.Load()), found.node), ast.copy_location(test, found.node), original


def _place(node: ast.expr) -> tuple:
    """Return a key for an expression that its copies share."""
    return type(node), node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


def _looked_up(node: ast.expr) -> ast.expr:
    """Return an expression that is None for an attribute that is absent, since a condition may have asked whether it is there."""
    if not isinstance(node, ast.Attribute):
        return node
    getter = ast.Name("_epilogue_getattr", ast.Load())
    return ast.Call(getter, [_looked_up(node.value), ast.Constant(node.attr), ast.Constant(None)], [])


def _read_later(name: str, found: Found, path: Path) -> bool:
    """Return whether the value that the site's statements leave in a name may be read after the last of them."""
    last = found.statements[-1]
    caught = any(isinstance(suite[at], CATCHES) for suite, at in path[:-1])
    if name in _assigned(last) and (not caught or last.value is found.node):  # type: ignore[attr-defined]
        return False  # nothing is called between the site and that
    if isinstance(last, ast.Return) and not caught:
        return False
    given = {id(load) for node in (found.argument, *found.slots.values()) for load in names(node)}
    given |= {id(load) for _, must in found.musts for load in names(must)}
    own = {id(load) for statement in found.statements for load in loads(statement)} - given
    in_order = not caught
    for depth in reversed(range(len(path))):
        suite, at = path[depth]
        for statement in suite[at + 1 :]:
            if any(load.id == name for load in loads(statement)):
                return True
            in_order = in_order and not any(isinstance(node, (ast.Break, ast.Continue)) for node in ast.walk(statement))
            if in_order and (name in _assigned(statement) or isinstance(statement, (ast.Return, ast.Raise))):
                return False
        outer = path[depth - 1][0][path[depth - 1][1]] if depth else None
        if isinstance(outer, LOOPS) and any(load.id == name and id(load) not in own for load in loads(outer)):
            return True
    return False


def _assigned(statement: ast.stmt) -> set[str]:
    """Return the names that a statement certainly binds."""
    found = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign) and statement.value:
        found = [statement.target]
    targets = [target for target in found if isinstance(target, (ast.Name, ast.Tuple))]
    return {name.id for target in targets for name in names(target) if isinstance(name.ctx, ast.Store)}


def _before_calls(node: ast.expr) -> Iterator[ast.expr]:
    """Yield the expression and those within it that are certainly evaluated and before which nothing is called, outer ones first."""
    yield node
    if isinstance(node, (*SCOPES, ast.Await, ast.Yield, ast.YieldFrom)):
        return
    certain = {ast.IfExp: ("test",), ast.BoolOp: ("values",), ast.Compare: ("left", "comparators")}
    fields = [getattr(node, name) for name in certain.get(type(node), node._fields)]
    inner = [item for value in fields for item in (value if isinstance(value, list) else [value])]
    inner = inner[: {ast.BoolOp: 1, ast.Compare: 2}.get(type(node))]
    for child in inner:
        child = child.value if isinstance(child, ast.keyword) else child
        if isinstance(child, ast.expr):
            yield from _before_calls(child)
            if any(isinstance(within, (ast.Call, ast.NamedExpr, ast.Await)) for within in ast.walk(child)):
                return  # what follows is evaluated after that call
