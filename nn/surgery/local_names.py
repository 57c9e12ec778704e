"""The local names of a suite of statements: what each stands for, and whether all of its uses have been read."""

import ast
from collections.abc import Callable, Sequence
from typing import Any

from .expressions import Must
from .roles import Roles
from .trees import INPUT, asks, loads, names, pure, replaced, stored


class LocalNames:
    """Follows local names to the earlier statements of a suite that define them.

    A reader may take back what it has followed: `attempt` does so if the reading fails.
    """

    def __init__(self, suite: Sequence[ast.stmt], role: Roles) -> None:
        self.suite, self.role = suite, role
        self.followed: list[tuple[ast.Name, int]] = []
        """The names that were read through, and the statements that define them."""
        self.skipped: list[Must] = []
        """The conditions of what is passed over."""

    def forget(self) -> None:
        self.followed, self.skipped = [], []

    def attempt(self, read: Callable[..., Any], *args: Any) -> Any:
        """Return what is read. If that is None, the names that were followed meanwhile are as if they had not been."""
        known = len(self.followed), len(self.skipped)
        found = read(*args)
        if found is None:
            del self.followed[known[0] :], self.skipped[known[1] :]
        return found

    def follow(self, node: ast.expr, at: int) -> tuple[ast.expr, int]:
        """Return the expression that a name stands for, and the statement in which it is evaluated; other nodes stand for themselves."""
        node = self.chosen(node, at)
        while isinstance(node, ast.Name):
            found = self.attempt(self.definition, node.id, at)
            if found is None or found[2] is not None:
                break
            self.followed.append((node, found[0]))
            at, node = found[0], self.chosen(found[1], found[0])
        return node, at

    def definition(self, name: str, at: int) -> tuple[int, ast.expr, int | None] | None:
        """Return (statement, value, place) of the definition that a name has in a statement of the suite.

        The place is that in the value if the value is a tuple of two, else None. An `if` that may change the name is passed over where its
        condition can be asked beforehand; that must then be false.
        """
        for i in range(at - 1, -1, -1):
            statement = self.suite[i]
            if name not in stored(statement):
                continue
            match statement:
                case ast.Assign([ast.Name(target)], value) | ast.AnnAssign(
                    ast.Name(target), _, ast.expr() as value
                ) if target == name:
                    return i, value, None
                case ast.Assign([ast.Tuple([ast.Name(a), ast.Name(b)])], value) if a != b and name in (a, b):
                    value, half = self.chosen(value, i), (a, b).index(name)
                    return (i, value.elts[half], None) if isinstance(value, ast.Tuple) else (i, value, half)
                case ast.AugAssign(ast.Name(target) as left, op, value) if target == name:
                    return i, ast.copy_location(ast.BinOp(left, op, value), statement), None
                case ast.If(test, body, []) if asks(test, name) and not self._reads_property(test):
                    self.followed += [(load, i) for load in loads(statement) if load.id == name]
                    match body:
                        case [
                            ast.Assign([ast.Name()], ast.Call(ast.Attribute(ast.Name(same), "to"), [_], []) as value)
                        ] if same == name:
                            return i, value, None  # a cast, which does nothing where it is not needed
                    asked = {load: ast.Name(INPUT, ast.Load()) for load in names(test) if load.id == name}
                    self.skipped.append(("dtype condition" if asked else "condition", replaced(test, asked), i))
                    continue
            return None
        return None

    def _reads_property(self, test: ast.expr) -> bool:
        """Return whether the condition reads a property, which has to run exactly once."""
        return any(self.role(node) == "computed" for node in ast.walk(test) if isinstance(node, ast.Attribute))

    def chosen(self, node: ast.expr, at: int) -> ast.expr:
        """Return the side of a conditional expression that is evaluated, if its condition is known; the call checks it again."""
        while isinstance(node, ast.IfExp) and pure(node.test) and self.role(node.test) in ("true", "false"):
            test, holds = node.test, self.role(node.test) == "true"
            must = ast.copy_location(ast.UnaryOp(ast.Not(), test), test) if holds else test
            self.skipped.append(("condition", must, at))
            node, other = (node.body, node.orelse) if holds else (node.orelse, node.body)
            self.followed += [(load, at) for load in names(other)]
        return node

    def used_up(self, first: int, at: int) -> bool:
        """Return whether the statements from first to at use what they define only where it was read through."""
        followed = {id(name) for name, _ in self.followed}
        for i in range(first, at):
            for name in stored(self.suite[i]):
                for later in self.suite[i + 1 : at + 1]:
                    if any(id(load) not in followed for load in loads(later) if load.id == name):
                        return False
                    if name in stored(later):
                        break
        return True
