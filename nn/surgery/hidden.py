"""Hidden units, the activation of a linear layer or of two, read through local names; and what may stand between them and down."""

import ast
from dataclasses import replace
from typing import Any

from .expressions import Hidden
from .formulas import FormulaReader
from .layers import LayerReader, with_musts
from .trees import arguments, pure, stored


class HiddenReader:
    """Reads act(layer) and act(layer) * up. A method whose name begins with an underscore may leave names followed when it fails."""

    def __init__(self, layers: LayerReader) -> None:
        self.layers, self.local, self.role = layers, layers.local, layers.role

    def hidden(self, node: ast.expr, at: int) -> Hidden | None:
        """Return the hidden units that the node is: act(layer) * up, or act(layer); else None."""
        return self.local.attempt(self._gated, node, at) or self.local.attempt(self._plain, node, at)

    def _plain(self, node: ast.expr, at: int) -> Hidden | None:
        found = self._activated(node, at)
        return found if found is not None and found.layer.half is None else None

    def _activated(self, node: ast.expr, at: int) -> Hidden | None:
        return self.local.attempt(self._called, node, at) or self.local.attempt(self._spelled, node, at)

    def _called(self, node: ast.expr, at: int) -> Hidden | None:
        """Return act(layer), where act is an object that is called, maybe with parameters behind the layer."""
        node, at = self.local.follow(node, at)
        if not isinstance(node, ast.Call) or not pure(node.func):
            return None
        z, args, keywords = arguments(node)
        layer = None if z is None else self.layers.layer(z, at)
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
        """Return act(layer), where act is a formula of the layer's result."""
        formula = FormulaReader(self.layers)
        body = formula.read(node, at)
        if body is None or formula.layer is None or isinstance(body, ast.Name):
            return None
        z = ast.arguments([], [ast.arg("z")], None, [], [], None, [])
        entry = self.role.formula(ast.fix_missing_locations(ast.Lambda(z, body)))
        return None if entry is None else Hidden(formula.layer, None, entry, formula.widens)

    def _gated(self, node: ast.expr, at: int) -> Hidden | None:
        node, at = self.local.follow(node, at)
        match node:
            case ast.BinOp(left, ast.Mult(), right):
                sides = left, right
            case ast.Call(ast.Attribute(left, "mul") as callee, [right], []) if self.role(callee) != "torch":
                sides = left, right
            case ast.Call(ast.Attribute(_, "mul") as callee, [left, right], []) if self.role(callee) == "torch":
                sides = left, right
            case _:
                return None
        return self.local.attempt(self._pair, *sides, at) or self.local.attempt(self._pair, *reversed(sides), at)

    def _pair(self, gate: ast.expr, other: ast.expr, at: int) -> Hidden | None:
        """Return act(gate) * up of two layers of the same input, or of the halves of one layer."""
        found, up = self._activated(gate, at), self.layers.layer(other, at)
        if found is None or up is None or found.gated:
            return None
        layer = found.layer
        if layer.call is up.call:
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
        rebound = any(x.id in stored(statement) for statement in self.local.suite[first:last])
        return None if rebound else replace(found, gated="pair", up=up)

    def before_down(self, node: ast.expr, at: int) -> Hidden | None:
        """Return the hidden units that the node is, which may be dropped, cast or multiplied by one; else None."""
        return self.local.attempt(self.hidden, node, at) or self.local.attempt(self._wrapped, node, at)

    def _wrapped(self, node: ast.expr, at: int) -> Hidden | None:
        node, at = self.local.follow(node, at)
        match node:
            case ast.Call(ast.Attribute(inner, "to"), [dtype], []) if pure(dtype):
                return with_musts(self.before_down(inner, at), ("last cast", dtype, at))
            case ast.BinOp(left, ast.Mult(), right):
                for inner, factor in ((left, right), (right, left)):
                    if pure(factor) and self.role(factor) == "one" and (found := self.before_down(inner, at)):
                        return with_musts(found, ("factor", factor, at))
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
                    return with_musts(found, ("idle", callee, at))
                return replace(found, dropout=(dropout, at)) if found and found.dropout is None else None
        return None
