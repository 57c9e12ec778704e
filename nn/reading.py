"""Our expressions, read in a suite of statements:

    act(linear(e)), act(gate(e)) * up(e), down(dropout(…)) of either

nested or through local names that are used for nothing else; the layers children or local variables, the activation a child, a function,
a method or spelled out in operators, gate and up two layers or the halves of one.
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from epilogue.catalogue import Activation

from .recognition import NARROW
from .sites import Site
from .trees import INPUT, arguments, asks, changed, loads, names, number, pure, replaced, stored, takes_one, text

Must = tuple[str, ast.expr, int]
"""What else a site's call must find (see Site), and the statement in which that is evaluated."""


class Roles(Protocol):
    """What a method's expressions are before it is called.

    notes: what was seen and not taken: "between" linear layers, and what of it is "activated"; "unknown" in the place of an activation;
    what needs something that is "used" elsewhere; what has a "scope" of its own.
    """

    notes: dict[str, list[str]]

    def __call__(self, node: ast.expr) -> str:
        """Of a callee or factor: "linear", "dropout" (a module), "F.dropout", "identity", "torch" (a function of torch's or math's), "one"
        (the number), "number", "true", "false", "own" (the module, a method of it), "computed" (a property), "?" (only the call knows),
        "other"."""

    def act(self, node: ast.expr) -> str:
        """Of a callee, which may be called to see: "act", "pair" (F.glu), "?", "other"."""

    def parameters(self, act: ast.expr) -> list[str]:
        """The names of an activation's parameters, after its input."""

    def formula(self, function: ast.Lambda) -> Activation | None:
        """The activation that a function of one tensor is."""


@dataclass
class Layer:
    """A linear layer's call, or a half (0 or 1) of its result."""

    call: ast.Call
    at: int
    half: int | None = None
    musts: tuple[Must, ...] = ()


@dataclass
class Hidden:
    """act(layer), or act(layer) * up: what stands before down. act: None where it is spelled out, as entry."""

    layer: Layer
    act: tuple[ast.expr, int] | None
    entry: Activation | None = None
    widens: bool = False
    gated: str = ""
    up: Layer | None = None
    dropout: tuple[ast.expr, int] | None = None
    musts: tuple[Must, ...] = ()


@dataclass(eq=False)
class Found:
    """A site in a method: its expression, the statements that it takes, and what its call is given.

    within: the one that it is a part of, for calls in which that one does not run. tried: by activation, how far its trial was off.
    """

    site: Site
    node: ast.expr
    statements: list[ast.stmt]
    argument: ast.expr
    slots: dict[str, ast.expr]
    musts: list[tuple[str, ast.expr]]
    name: str = ""
    within: "Found | None" = None
    tried: dict[str, float] = field(default_factory=dict)


class Reader:
    """Reads the expressions of one statement in a suite, through the local names that earlier statements of it define."""

    def __init__(self, suite: Sequence[ast.stmt], role: Roles) -> None:
        self.suite, self.role = suite, role
        self.followed: list[tuple[ast.Name, int]] = []
        """The names that were read through, and the statements that define them."""
        self.skipped: list[Must] = []
        """The conditions of what is passed over."""

    def found(self, node: ast.expr, at: int) -> Found | None:
        """The site whose expression the node is, in the statement of that number."""
        self.followed, self.skipped = [], []
        if (
            isinstance(node, ast.Call)
            and pure(node.func)
            and takes_one(node)
            and self.role(node.func) in ("linear", "?")
        ):
            units = arguments(node)[0]
            hidden = self.before_down(units, at)
            if hidden is not None:
                return self._placed(node, at, hidden, node)
            if self.role(node.func) == "linear" and self._holds_layer(units, at):
                between, i = self.follow(units, at)
                self.role.notes["between"].append(text(between))
                calls = [inner.func for inner in ast.walk(between) if isinstance(inner, ast.Call) and pure(inner.func)]
                self.role.notes["activated"] += [text(func) for func in calls if self.role.act(func) in ("act", "pair")]
                if isinstance(between, ast.Call) and pure(between.func) and (z := arguments(between)[0]) is not None:
                    self.role.notes["unknown"] += [text(between)] * (self.layer(z, i) is not None)
            self.followed, self.skipped = [], []
        hidden = None if isinstance(node, ast.Name) else self.hidden(node, at)  # a name is read where it is defined
        return None if hidden is None else self._placed(node, at, hidden, None)

    def _placed(self, node: ast.expr, at: int, hidden: Hidden, down: ast.Call | None) -> Found | None:
        """With the statements that it takes, if nothing else needs what they define, and they define nothing that the site is given."""
        taken = {at, *(i for _, i in self.followed)}
        first, layer, up = min(taken), hidden.layer, hidden.up
        read = {"act": hidden.act or (ast.Constant(None), at), "up": (layer.call.func, layer.at)}
        if up is not None:
            read |= {"gate": read["up"], "up": (up.call.func, up.at)}
        if down is not None:
            read["down"] = (down.func, at)
        if hidden.dropout is not None:
            read["dropout"] = hidden.dropout
        musts = [*layer.musts, *(up.musts if up else ()), *hidden.musts, *self.skipped]
        argument, evaluated = arguments(layer.call)[0], min(layer.at, up.at) if up else layer.at
        if not isinstance(argument, ast.Name) and (evaluated != first or self._changes(argument, read)):
            return None
        for expression, i in (*read.values(), *((must, i) for _, must, i in musts), (argument, evaluated)):
            if any(name.id in stored(statement) for name in names(expression) for statement in self.suite[first:i]):
                return None
        if len(taken) != at + 1 - first or not self._used_up(first, at):
            self.role.notes["used"].append(text(node))
            return None
        site = Site(hidden.gated, down is not None, hidden.dropout is not None, hidden.entry, hidden.widens)
        slots = {name: expression for name, (expression, _) in read.items()}
        return Found(site, node, list(self.suite[first : at + 1]), argument, slots, [must[:2] for must in musts])

    def _holds_layer(self, node: ast.expr, at: int) -> bool:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Call) and pure(inner.func) and self.role(inner.func) == "linear":
                return True
            found = self._definition(inner.id, at) if isinstance(inner, ast.Name) else None
            if found is not None and self._holds_layer(found[1], found[0]):
                return True
        return False

    def _changes(self, argument: ast.expr, read: dict[str, tuple[ast.expr, int]]) -> bool:
        """Whether what the site is given may be another once its argument is evaluated: that is done first."""
        given = {name.id for expression, _ in read.values() for name in names(expression)}
        calls = [node for node in ast.walk(argument) if isinstance(node, ast.Call)]
        own = [part for call in calls for part in (call.func, *call.args) if pure(part) and self.role(part) == "own"]
        return bool(own or stored(argument) & given)

    def _used_up(self, first: int, at: int) -> bool:
        """Whether every use of what the statements define, within them, was read through."""
        followed = {id(name) for name, _ in self.followed}
        for i in range(first, at):
            for name in stored(self.suite[i]):
                for later in self.suite[i + 1 : at + 1]:
                    if any(id(load) not in followed for load in loads(later) if load.id == name):
                        return False
                    if name in stored(later):
                        break
        return True

    def _try(self, read: Callable[..., Any], *args: Any) -> Any:
        known = len(self.followed), len(self.skipped)
        found = read(*args)
        if found is None:
            del self.followed[known[0] :], self.skipped[known[1] :]
        return found

    # --- names

    def follow(self, node: ast.expr, at: int) -> tuple[ast.expr, int]:
        """What a name stands for, and where that is evaluated."""
        node = self._chosen(node, at)
        while isinstance(node, ast.Name):
            found = self._try(self._definition, node.id, at)
            if found is None or found[2] is not None:
                break
            self.followed.append((node, found[0]))
            at, node = found[0], self._chosen(found[1], found[0])
        return node, at

    def _definition(self, name: str, at: int) -> tuple[int, ast.expr, int | None] | None:
        """(statement, value, place in the value where that is a tuple of two) of what a name holds in a statement of the suite.

        A condition that may change it is passed over, where it can be asked beforehand; it must not hold.
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
                    value, half = self._chosen(value, i), (a, b).index(name)
                    return (i, value.elts[half], None) if isinstance(value, ast.Tuple) else (i, value, half)
                case ast.AugAssign(ast.Name(target) as left, op, value) if target == name:
                    return i, ast.copy_location(ast.BinOp(left, op, value), statement), None
                case ast.If(test, body, []) if asks(test, name) and not self._computed(test):
                    self.followed += [(load, i) for load in loads(statement) if load.id == name]
                    match body:
                        case [
                            ast.Assign([ast.Name()], ast.Call(ast.Attribute(ast.Name(same), "to"), [_], []) as value)
                        ] if same == name:
                            return i, value, None  # a cast, which may be made whether it is needed or not
                    asked = {load: ast.Name(INPUT, ast.Load()) for load in names(test) if load.id == name}
                    self.skipped.append(("dtype condition" if asked else "condition", replaced(test, asked), i))
                    continue
            return None
        return None

    def _computed(self, test: ast.expr) -> bool:
        """Whether it looks at a property, which the original is to do once."""
        return any(self.role(node) == "computed" for node in ast.walk(test) if isinstance(node, ast.Attribute))

    def _chosen(self, node: ast.expr, at: int) -> ast.expr:
        """The side of a conditional expression that is evaluated, if its condition is known; it must then hold, or not, in the call."""
        while isinstance(node, ast.IfExp) and pure(node.test) and self.role(node.test) in ("true", "false"):
            test, holds = node.test, self.role(node.test) == "true"
            must = ast.copy_location(ast.UnaryOp(ast.Not(), test), test) if holds else test
            self.skipped.append(("condition", must, at))
            node, other = (node.body, node.orelse) if holds else (node.orelse, node.body)
            self.followed += [(load, at) for load in names(other)]
        return node

    # --- linear layers

    def layer(self, node: ast.expr, at: int) -> Layer | None:
        """A linear layer's call, times one, cast to its own dtype; or a half of one."""
        return self._try(self._layer, node, at)

    def _layer(self, node: ast.expr, at: int) -> Layer | None:
        node = self._chosen(node, at)
        if isinstance(node, ast.Name):
            found = self._try(self._definition, node.id, at)
            if found is None:
                return None
            self.followed.append((node, found[0]))
            at, value, half = found
            return self._layer(value, at) if half is None else self._half(value, at, half)
        match node:
            case ast.Call(ast.Attribute(inner, "to"), [dtype], []) if pure(dtype):
                return _also(self._layer(inner, at), ("cast", dtype, at))
            case ast.Call(callee) if pure(callee) and takes_one(node):
                role = self.role(callee)
                if role in ("dropout", "identity"):
                    return _also(self._layer(arguments(node)[0], at), ("idle", callee, at))
                return Layer(node, at) if role in ("linear", "?") else None
            case ast.BinOp(left, ast.Mult(), right):
                for inner, factor in ((left, right), (right, left)):
                    if pure(factor) and self.role(factor) == "one" and (layer := self.layer(inner, at)):
                        return _also(layer, ("factor", factor, at))
            case ast.Subscript(inner, ast.Constant(0 | 1 as half)):
                return self._half(inner, at, int(half))  # type: ignore[arg-type]
            case ast.Subscript(inner, ast.Tuple([ast.Constant(value), ast.Slice(lower, upper, None)])) if (
                value is Ellipsis
            ):
                size = upper if lower is None else lower
                if size is not None and pure(size) and (lower is None or upper is None):
                    return self._half_of(inner, at, int(upper is None), [size])
        return None

    def _half(self, node: ast.expr, at: int, half: int) -> Layer | None:
        """A half of what is split in two along the last axis."""
        node, at = self.follow(node, at)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            return None
        args: list[Any] = node.args if self.role(node.func) == "torch" else [node.func.value, *node.args]
        given: dict[Any, Any] = dict(zip(("input", "by", "dim"), args, strict=False))
        given |= {keyword.arg if keyword.arg in ("input", "dim") else "by": keyword.value for keyword in node.keywords}
        if set(given) != {"input", "by", "dim"} or len(args) + len(node.keywords) != 3 or not pure(given["dim"]):
            return None
        inner, by, dim = given["input"], given["by"], given["dim"]
        sizes = by.elts if isinstance(by, (ast.List, ast.Tuple)) else [by]
        if node.func.attr == "chunk" and number(by) == 2:
            sizes = []
        elif node.func.attr != "split" or not all(map(pure, sizes)) or (sizes != [by] and len(sizes) != 2):
            return None
        layer = self._half_of(inner, at, half, sizes)
        return layer if number(dim) == -1 else _also(layer, ("axis", dim, at))

    def _half_of(self, node: ast.expr, at: int, half: int, sizes: list[ast.expr]) -> Layer | None:
        layer = self._layer(node, at)
        if layer is None or layer.half is not None:
            return None
        return _also(replace(layer, half=half), *(("half", size, at) for size in sizes))

    # --- hidden units

    def hidden(self, node: ast.expr, at: int) -> Hidden | None:
        """act(layer), or act(layer) * up."""
        return self._try(self._gated, node, at) or self._try(self._single, node, at)

    def _single(self, node: ast.expr, at: int) -> Hidden | None:
        found = self._activated(node, at)
        return found if found is not None and found.layer.half is None else None

    def _activated(self, node: ast.expr, at: int) -> Hidden | None:
        return self._try(self._called, node, at) or self._try(self._spelled, node, at)

    def _called(self, node: ast.expr, at: int) -> Hidden | None:
        """act(layer, more)."""
        node, at = self.follow(node, at)
        if not isinstance(node, ast.Call) or not pure(node.func):
            return None
        z, args, keywords = arguments(node)
        layer = None if z is None else self._layer(z, at)
        if layer is None or not all(map(pure, (*args, *(keyword.value for keyword in keywords)))):
            return None
        role, act = self.role.act(node.func), node.func
        if role not in ("act", "pair") or (role == "pair" and layer.half is not None):
            return None
        if args or keywords:
            parameters = self.role.parameters(act)
            if len(parameters) < len(args) or any(keyword.arg is None for keyword in keywords):
                return None
            keywords = [*map(ast.keyword, parameters, args), *keywords]
            act = ast.copy_location(ast.Call(ast.Name("_epilogue_partial", ast.Load()), [act], keywords), node)
        return Hidden(layer, (act, at), gated="both" if role == "pair" else "")

    def _spelled(self, node: ast.expr, at: int) -> Hidden | None:
        """A formula of the layer's result."""
        spelled = Spelled(self)
        body = spelled.read(node, at)
        if body is None or spelled.layer is None or isinstance(body, ast.Name):
            return None
        z = ast.arguments([], [ast.arg("z")], None, [], [], None, [])
        entry = self.role.formula(ast.fix_missing_locations(ast.Lambda(z, body)))
        return None if entry is None else Hidden(spelled.layer, None, entry, spelled.widens)

    def _gated(self, node: ast.expr, at: int) -> Hidden | None:
        node, at = self.follow(node, at)
        match node:
            case ast.BinOp(left, ast.Mult(), right):
                sides = left, right
            case ast.Call(ast.Attribute(left, "mul") as callee, [right], []) if self.role(callee) != "torch":
                sides = left, right
            case ast.Call(ast.Attribute(_, "mul") as callee, [left, right], []) if self.role(callee) == "torch":
                sides = left, right
            case _:
                return None
        return self._try(self._pair, *sides, at) or self._try(self._pair, *reversed(sides), at)

    def _pair(self, gate: ast.expr, other: ast.expr, at: int) -> Hidden | None:
        found, up = self._activated(gate, at), self._layer(other, at)
        if found is None or up is None or found.gated:
            return None
        layer = found.layer
        if layer.call is up.call:  # one layer, whose halves they are
            if {layer.half, up.half} != {0, 1}:
                return None
            return replace(found, gated="second" if layer.half else "first", musts=up.musts)
        x, same = arguments(layer.call)[0], arguments(up.call)[0]
        if (
            layer.half is not None
            or up.half is not None
            or not isinstance(x, ast.Name)
            or ast.dump(x) != ast.dump(same)
        ):
            return None
        first, last = sorted((layer.at, up.at))
        rebound = any(x.id in stored(statement) for statement in self.suite[first:last])
        return None if rebound else replace(found, gated="pair", up=up)

    def before_down(self, node: ast.expr, at: int) -> Hidden | None:
        """The hidden units, dropped, cast, times one."""
        return self._try(self.hidden, node, at) or self._try(self._wrapped, node, at)

    def _wrapped(self, node: ast.expr, at: int) -> Hidden | None:
        node, at = self.follow(node, at)
        match node:
            case ast.Call(ast.Attribute(inner, "to"), [dtype], []) if pure(dtype):
                return _also(self.before_down(inner, at), ("last cast", dtype, at))
            case ast.BinOp(left, ast.Mult(), right):
                for inner, factor in ((left, right), (right, left)):
                    if pure(factor) and self.role(factor) == "one" and (found := self.before_down(inner, at)):
                        return _also(found, ("factor", factor, at))
            case ast.Call(callee) if pure(callee) and (given := arguments(node))[0] is not None:
                (inner, args, keywords), role, dropout = given, self.role(callee), callee
                if role == "F.dropout":
                    options: dict[Any, ast.expr] = {"p": ast.Constant(0.5), "training": ast.Constant(True)}
                    options |= dict(zip(options, args, strict=False)) | {
                        keyword.arg: keyword.value for keyword in keywords
                    }
                    options.pop("inplace", None)
                    if len(options) != 2 or not all(map(pure, options.values())):
                        return None
                    dropout = ast.copy_location(ast.Tuple([callee, *options.values()], ast.Load()), node)
                elif role not in ("dropout", "identity") or args or keywords:
                    return None
                found = self.before_down(inner, at)
                if role == "identity":
                    return _also(found, ("idle", callee, at))
                return replace(found, dropout=(dropout, at)) if found and found.dropout is None else None
        return None


def _also(found: Any, *musts: Must) -> Any:
    return found and replace(found, musts=(*found.musts, *musts))


class Spelled:
    """An activation that is spelled out, as a formula of z."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.widens = reader, False
        self.layer: Layer | None = None

    def read(self, node: ast.expr, at: int) -> ast.expr | None:
        layer = self.reader.layer(node, at)
        if layer is not None:
            same = self.layer is None or (self.layer.call is layer.call and self.layer.half == layer.half)
            self.layer = layer
            return ast.Name("z", ast.Load()) if same else None
        node, at = self.reader.follow(node, at)
        match node:
            case ast.Constant(int() | float()):
                return node
            case ast.Attribute(ast.Name("math" | "np" | "numpy" | "torch")) if self.reader.role(node) in (
                "number",
                "one",
            ):
                return node
            case ast.UnaryOp(ast.USub(), operand):
                read: list[Any] = [self.read(operand, at)]
                return None if None in read else changed(node, operand=read[0])
            case ast.BinOp(left, ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.Pow() as op, right):
                read = [self.read(left, at), self.read(right, at)]
                self.widens |= isinstance(op, (ast.Pow, ast.Div))
                return None if None in read else changed(node, left=read[0], right=read[1])
            case ast.Call(ast.Attribute(inner, name) as callee, args, keywords):
                function = pure(callee) and self.reader.role(callee) == "torch"
                receiver = inner if function else self.read(inner, at)
                read = [self.read(arg, at) for arg in (*args, *(keyword.value for keyword in keywords))]
                if receiver is None or None in read or not all(keyword.arg for keyword in keywords):
                    return None
                self.widens |= name not in NARROW
                named = [changed(keyword, value=read.pop()) for keyword in reversed(keywords)]
                return ast.Call(ast.Attribute(receiver, name, ast.Load()), read, named)
        return None
