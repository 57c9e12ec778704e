"""The expressions that are fused, as records: a linear layer's call, hidden units, and a site with all that its call is given."""

import ast
from dataclasses import dataclass, field

from epilogue.catalogue import Activation

from .sites import Site

Must = tuple[str, ast.expr, int]
"""A condition that a site's call has to check (see Site), and the number of the statement in which it is evaluated."""


@dataclass
class Layer:
    """A linear layer's call, or a half (0 or 1) of its result."""

    call: ast.Call
    at: int
    half: int | None = None
    musts: tuple[Must, ...] = ()


@dataclass
class Hidden:
    """Hidden units, which stand before down: act(layer), or act(layer) * up. act is None if it is spelled out; entry is then what it is."""

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

    within: the site whose original expression holds this one, which runs only if that one does not. tried: the error of its trial, by
    activation.
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
