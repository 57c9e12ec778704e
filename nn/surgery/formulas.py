"""Activations that are spelled out in operators and torch's functions, such as 0.5 * z * (1 + tanh(…))."""

import ast
from typing import Any

from .expressions import Layer
from .functions import NARROW
from .layers import LayerReader
from .trees import changed, pure


class FormulaReader:
    """Reads an activation that is spelled out as a formula of z, a linear layer's result.

    layer: the layer that z is, once it was met. widens: whether autocast may run a part of the formula in float32.
    """

    def __init__(self, layers: LayerReader) -> None:
        self.layers, self.local, self.role = layers, layers.local, layers.role
        self.layer: Layer | None = None
        self.widens = False

    def read(self, node: ast.expr, at: int) -> ast.expr | None:
        """Return the expression with z in place of the layer's result, or None if it is no formula of one layer."""
        layer = self.layers.layer(node, at)
        if layer is not None:
            same = self.layer is None or (self.layer.call is layer.call and self.layer.half == layer.half)
            self.layer = layer
            return ast.Name("z", ast.Load()) if same else None
        node, at = self.local.follow(node, at)
        match node:
            case ast.Constant(int() | float()):
                return node
            case ast.Attribute(ast.Name("math" | "np" | "numpy" | "torch")) if self.role(node) in ("number", "one"):
                return node
            case ast.UnaryOp(ast.USub(), operand):
                read: list[Any] = [self.read(operand, at)]
                return None if None in read else changed(node, operand=read[0])
            case ast.BinOp(left, ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.Pow() as op, right):
                read = [self.read(left, at), self.read(right, at)]
                self.widens |= isinstance(op, (ast.Pow, ast.Div))
                return None if None in read else changed(node, left=read[0], right=read[1])
            case ast.Call(ast.Attribute(inner, name) as callee, args, keywords):
                is_function = pure(callee) and self.role(callee) == "torch"
                receiver = inner if is_function else self.read(inner, at)
                read = [self.read(arg, at) for arg in (*args, *(keyword.value for keyword in keywords))]
                if receiver is None or None in read or not all(keyword.arg for keyword in keywords):
                    return None
                self.widens |= name not in NARROW
                named = [changed(keyword, value=read.pop()) for keyword in reversed(keywords)]
                return ast.Call(ast.Attribute(receiver, name, ast.Load()), read, named)
        return None
