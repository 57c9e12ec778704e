"""A second check of what was read: a site and its expression are run on small layers in float64, and their results compared."""

import ast
import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .expressions import Found
from .recognition import recognised
from .remade import Method
from .roles import Roles
from .source import rebuilt
from .trees import changed, replaced

FEATURES, HIDDEN, OUT = 6, 10, 4
TOLERANCE = 1e-9
"""The relative difference that is allowed: for other orders of summation, and for constants that a library rounds to ten digits."""


def difference(method: Method, found: Found, owner: Any) -> float:
    """Return the largest relative difference between a site and its expression, in training and evaluation, for small and large numbers.

    It is inf if either fails.
    """
    with torch.inference_mode(False):  # in which a layer could not be trained
        return _difference(method, found, owner)


def _difference(method: Method, found: Found, owner: Any) -> float:
    generator = torch.Generator("cpu").manual_seed(0)
    halves = 1 if found.site.gated in ("", "pair") else 2
    layers = {
        "up": small_layer(FEATURES, HIDDEN * halves, generator),
        "gate": small_layer(FEATURES, HIDDEN, generator),
        "down": small_layer(HIDDEN, OUT, generator),
    }
    x = torch.randn(5, FEATURES, generator=generator, dtype=torch.float64, device="cpu")
    try:
        return max(
            _compared(method, found, owner, layers, scale * x, training)
            for training in (False, True)
            for scale in (1.0, 50.0)
        )
    except Exception:  # a wrong reading may fail in any way
        return float("inf")


def _compared(method: Method, found: Found, owner: Any, layers: dict[str, Any], x: Tensor, training: bool) -> float:
    """Return the difference between the site and its expression, where small layers and a dropout that drops replace those of the owner."""
    roles = Roles(method.inner, owner)
    given: dict[str, Any] = {name: layers[name] for name in found.slots if name in layers}
    places: list[tuple[ast.AST, Any]] = [(found.slots[name], layer) for name, layer in given.items()]
    must: list[tuple[str, Any]] = []
    for kind, node in found.musts:
        if kind.endswith("condition"):
            must.append((kind, False))
            places.append((node.operand, True) if isinstance(node, ast.UnaryOp) else (node, False))
            continue
        value: Any = {"idle": nn.Identity(), "factor": 1, "half": HIDDEN, "axis": -1}.get(kind, torch.float64)
        must.append((kind, value))
        places.append((node, value))
    act = found.slots["act"]
    if found.site.entry is None:
        callee, keywords = (act.args[0], act.keywords) if isinstance(act, ast.Call) else (act, [])
        held = roles.value(callee)
        function = twin_of(held, {}) if isinstance(held, nn.Module) else held
        numbers: dict[Any, Any] = {keyword.arg: _number(roles, keyword, function) for keyword in keywords}
        given["act"] = functools.partial(function, **numbers) if numbers else function
        places += [(callee, function), *((keyword.value, numbers[keyword.arg]) for keyword in keywords)]
    dropout = found.slots.get("dropout")
    if isinstance(dropout, ast.Tuple):
        given["dropout"] = (F.dropout, 0.3, training)
        places += [(dropout.elts[1], 0.3), (dropout.elts[2], training)]
    elif dropout is not None:
        given["dropout"] = nn.Dropout(0.3).train(training)
        places.append((dropout, given["dropout"]))
    # The conditions of `if` statements are among the musts, and do not hold.
    statements = [statement for statement in found.statements[:-1] if not isinstance(statement, ast.If)]
    body: Any = [*statements, ast.copy_location(ast.Return(found.node), found.node)]
    names = {
        node: ast.copy_location(ast.Name(f"_epilogue_{i}", ast.Load()), node) for i, (node, _) in enumerate(places)
    }
    known = {f"_epilogue_{i}": value for i, (_, value) in enumerate(places)}
    named = found.argument.id if isinstance(found.argument, ast.Name) else "_epilogue_x"
    names[found.argument] = ast.copy_location(ast.Name(named, ast.Load()), found.argument)
    arguments = ast.arguments([], [ast.arg(named)], None, [], [], None, [])
    assert method.definition is not None
    definition = changed(method.definition, args=arguments, body=replaced(body, names))
    expression = rebuilt(definition, method.inner, known)
    slots = [given.get(name) for name in ("act", "up", "gate", "down", "dropout")]
    expected, actual = called(expression, x), called(lambda x: found.site(x, *slots, *must), x)  # type: ignore[arg-type]
    return max(map(relative, actual, expected))


def _number(roles: Roles, keyword: ast.keyword, function: Any) -> Any:
    """Return the value of an activation's keyword, or its default if only the call knows."""
    try:
        return roles.value(keyword.value)
    except LookupError:
        known: Any = recognised(function)
        return known.entry.params[keyword.arg]


def called(function: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (result, gradient of x). Every call draws the same numbers for dropout."""
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = x.clone().requires_grad_()
        y = function(x)
        return y.detach(), torch.autograd.grad(y.sum(), x)[0]


def small_layer(features: int, out: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(features, out, dtype=torch.float64, device="meta").to_empty(device="cpu")  # which draws nothing
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 0.5)
    return layer


def twin_of(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a copy in float64 without hooks: the user expects these to run in calls of the model alone. memo: id -> what stands for it."""
    twin = copy.deepcopy(module, memo).to("cpu", torch.float64)
    for inner in twin.modules():
        for hooks in (inner._forward_hooks, inner._forward_pre_hooks, inner._backward_hooks, inner._backward_pre_hooks):
            hooks.clear()
    return twin


def relative(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest finite value expected; inf where only one of the two is finite."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return float("inf")
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    if same.all():
        return 0.0
    off = torch.where(same, 0.0, actual - expected).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    return (off.max() / expected.nan_to_num(0.0, 0.0, 0.0).abs().max().clamp_min(1e-300)).item()
