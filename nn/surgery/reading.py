"""Reading the expressions that are fused, in a suite of statements:

    act(linear(e)), act(gate(e)) * up(e), down(dropout(…)) of either

They may be nested or go through local names that are used for nothing else. The layers are children or local variables; the activation is
a child, a function, a method or spelled out in operators; gate and up are two layers or the halves of one.
"""

import ast
from collections.abc import Sequence

from .expressions import Found, Hidden
from .hidden import HiddenReader
from .layers import LayerReader
from .local_names import LocalNames
from .roles import Roles
from .sites import Site
from .trees import arguments, names, pure, stored, takes_one, text


class Reader:
    """Reads the expressions of one statement in a suite, through the local names that earlier statements of it define."""

    def __init__(self, suite: Sequence[ast.stmt], role: Roles) -> None:
        self.suite, self.role = suite, role
        self.local = LocalNames(suite, role)
        self.layers = LayerReader(self.local)
        self.hidden_units = HiddenReader(self.layers)

    def found(self, node: ast.expr, at: int) -> Found | None:
        """Return the site whose expression the node is, in the statement of that number; else None, with notes why."""
        self.local.forget()
        if (
            isinstance(node, ast.Call)
            and pure(node.func)
            and takes_one(node)
            and self.role(node.func) in ("linear", "?")
        ):
            units = arguments(node)[0]
            hidden = self.hidden_units.before_down(units, at)
            if hidden is not None:
                return self._placed(node, at, hidden, node)
            if self.role(node.func) == "linear" and self._holds_layer(units, at):
                self._note_between(units, at)
            self.local.forget()
        if isinstance(node, ast.Name):  # it is read where it is defined
            return None
        hidden = self.hidden_units.hidden(node, at)
        return None if hidden is None else self._placed(node, at, hidden, None)

    def _note_between(self, units: ast.expr, at: int) -> None:
        """Note what stands between two linear layers, the activations in it, and whether it may be an unknown activation."""
        between, i = self.local.follow(units, at)
        self.role.notes["between"].append(text(between))
        calls = [inner.func for inner in ast.walk(between) if isinstance(inner, ast.Call) and pure(inner.func)]
        self.role.notes["activated"] += [text(func) for func in calls if self.role.act(func) in ("act", "pair")]
        if isinstance(between, ast.Call) and pure(between.func):
            z = arguments(between)[0]
            if z is not None and self.layers.layer(z, i) is not None:
                self.role.notes["unknown"].append(text(between))

    def _placed(self, node: ast.expr, at: int, hidden: Hidden, down: ast.Call | None) -> Found | None:
        """Return the site with the statements that it takes.

        None if anything else needs what these statements define, or if they define what the site's call is given.
        """
        taken = {at, *(i for _, i in self.local.followed)}
        first, layer, up = min(taken), hidden.layer, hidden.up
        read = {"act": hidden.act or (ast.Constant(None), at), "up": (layer.call.func, layer.at)}
        if up is not None:
            read |= {"gate": read["up"], "up": (up.call.func, up.at)}
        if down is not None:
            read["down"] = (down.func, at)
        if hidden.dropout is not None:
            read["dropout"] = hidden.dropout
        musts = [*layer.musts, *(up.musts if up else ()), *hidden.musts, *self.local.skipped]
        argument, evaluated = arguments(layer.call)[0], min(layer.at, up.at) if up else layer.at
        if not isinstance(argument, ast.Name) and (evaluated != first or self._changes(argument, read)):
            return None
        for expression, i in (*read.values(), *((must, i) for _, must, i in musts), (argument, evaluated)):
            if any(name.id in stored(statement) for name in names(expression) for statement in self.suite[first:i]):
                return None
        if len(taken) != at + 1 - first or not self.local.used_up(first, at):
            self.role.notes["used"].append(text(node))
            return None
        site = Site(hidden.gated, down is not None, hidden.dropout is not None, hidden.entry, hidden.widens)
        slots = {name: expression for name, (expression, _) in read.items()}
        return Found(site, node, list(self.suite[first : at + 1]), argument, slots, [must[:2] for must in musts])

    def _holds_layer(self, node: ast.expr, at: int) -> bool:
        """Return whether a linear layer is called in the node, or where one of its names is defined."""
        for inner in ast.walk(node):
            if isinstance(inner, ast.Call) and pure(inner.func) and self.role(inner.func) == "linear":
                return True
            found = self.local.definition(inner.id, at) if isinstance(inner, ast.Name) else None
            if found is not None and self._holds_layer(found[1], found[0]):
                return True
        return False

    def _changes(self, argument: ast.expr, read: dict[str, tuple[ast.expr, int]]) -> bool:
        """Return whether evaluating the argument, which is done first, may change what else the site is given."""
        given = {name.id for expression, _ in read.values() for name in names(expression)}
        calls = [node for node in ast.walk(argument) if isinstance(node, ast.Call)]
        own = [part for call in calls for part in (call.func, *call.args) if pure(part) and self.role(part) == "own"]
        return bool(own or stored(argument) & given)
