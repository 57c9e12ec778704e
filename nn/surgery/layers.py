"""The calls of linear layers, and the halves of their results, read through local names."""

import ast
from dataclasses import replace
from typing import Any

from .expressions import Layer, Must
from .local_names import LocalNames
from .trees import arguments, number, pure, takes_one


class LayerReader:
    """Reads the calls of linear layers; what it reads through is noted in the local names."""

    def __init__(self, local: LocalNames) -> None:
        self.local, self.role = local, local.role

    def layer(self, node: ast.expr, at: int) -> Layer | None:
        """Return the linear layer whose call the node is, or a half of it, or either times one or cast to its own dtype; else None."""
        return self.local.attempt(self._layer, node, at)

    def _layer(self, node: ast.expr, at: int) -> Layer | None:
        node = self.local.chosen(node, at)
        if isinstance(node, ast.Name):
            found = self.local.attempt(self.local.definition, node.id, at)
            if found is None:
                return None
            self.local.followed.append((node, found[0]))
            at, value, half = found
            return self._layer(value, at) if half is None else self._half(value, at, half)
        match node:
            case ast.Call(ast.Attribute(inner, "to"), [dtype], []) if pure(dtype):
                return with_musts(self._layer(inner, at), ("cast", dtype, at))
            case ast.Call(callee) if pure(callee) and takes_one(node):
                role = self.role(callee)
                if role in ("dropout", "identity"):
                    return with_musts(self._layer(arguments(node)[0], at), ("idle", callee, at))
                return Layer(node, at) if role in ("linear", "?") else None
            case ast.BinOp(left, ast.Mult(), right):
                for inner, factor in ((left, right), (right, left)):
                    if pure(factor) and self.role(factor) == "one" and (layer := self.layer(inner, at)):
                        return with_musts(layer, ("factor", factor, at))
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
        """Return a half of a layer's result that `chunk` or `split` cuts in two along the last axis, or None."""
        node, at = self.local.follow(node, at)
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
        return layer if number(dim) == -1 else with_musts(layer, ("axis", dim, at))

    def _half_of(self, node: ast.expr, at: int, half: int, sizes: list[ast.expr]) -> Layer | None:
        layer = self._layer(node, at)
        if layer is None or layer.half is not None:
            return None
        return with_musts(replace(layer, half=half), *(("half", size, at) for size in sizes))


def with_musts(found: Any, *musts: Must) -> Any:
    """Return the layer or hidden units with more conditions; None stays None."""
    return None if found is None else replace(found, musts=(*found.musts, *musts))
