"""The reason why a module that looks like an MLP is not fused."""

import itertools
from collections import defaultdict

from torch import nn

from ..plain import is_linear, parameters_of
from .recognition import recognised
from .remade import Plan
from .roles import Roles
from .trees import text


def reason_against(module: nn.Module, plan: Plan) -> str:
    """Return why nothing in the module is fused, as far as one can say; "" if the module need not be an MLP."""
    notes: dict[str, list[str]] = defaultdict(list)
    for kind, texts in (item for method in plan.methods for item in method.notes.items()):
        notes[kind] += texts
    if notes["used"]:
        return f"the layer's output in `{notes['used'][0]}` is used elsewhere too"
    if not _looks_like_an_mlp(module):
        return ""
    if isinstance(module, nn.Sequential):
        children = list(module._modules.values())
        behind = [type(b).__name__ for a, b in itertools.pairwise(children) if is_linear(a) and not is_linear(b)]
        return f"between its layers stands {behind[0]}" if behind else ""
    for kind in ("source", "scope"):
        if notes[kind]:
            return notes[kind][0]
    for method in plan.methods:
        for found in method.found:
            test = Roles(method.inner, module).holds(found.musts)
            if test is not None:
                return f"it does more, as `{text(test)}` holds"
    if notes["unknown"]:
        one = "register your own with @epilogue.activation; a PReLU has one slope for all"
        return f"`{notes['unknown'][0]}` is no activation of the catalogue ({one})"
    activated = notes["activated"] or held_activations(module)
    if notes["between"] and activated:
        return f"between its layers stands `{notes['between'][0]}`"
    return "its forward has none of the expressions that are fused" if plan.methods and activated else ""


def held_activations(module: nn.Module) -> list[str]:
    """Return the names of the activations among a module's children and attributes."""
    held = [value for name, value in vars(module).items() if not name.startswith("_")]
    known = [recognised(value) for value in (*held, *module._modules.values()) if callable(value)]
    return [each.entry.name for each in known if each is not None]


def _looks_like_an_mlp(module: nn.Module) -> bool:
    """Return whether one child's layer widens and another's brings the result back."""
    read = [parameters_of(child) for child in module.children()]
    sizes = [tuple(layer[0].shape) for layer in read if layer is not None]
    return any(
        up[0] in (down[1], 2 * down[1]) and up[1] == down[0] != up[0]
        for up in sizes
        for down in sizes
        if up is not down
    )
