"""Finding what can be fused in a module: the sites in its methods, each of them tried, or the reason for a refusal."""

import torch
from torch import nn

from ..plain import is_linear
from .expressions import Found
from .recognition import recognised
from .refusal import held_activations, reason_against
from .remade import Method, Plan, plan_of
from .report import Row
from .roles import Roles
from .sites import runs_at
from .trial import TOLERANCE, difference


def examined(path: str, module: nn.Module, verify: bool) -> tuple[list[Row], Plan | None]:
    """Return the rows of what this module is fused as, and the plan for it; or rows with a reason and None.

    There are no rows if the module does not look like an MLP.
    """
    try:
        return _examined(path, module, verify)
    except Exception as error:  # whatever a user's objects raise when they are looked at
        return [Row(path, "mlp", "", f"it cannot be looked at: {type(error).__name__}: {error}")], None


def _examined(path: str, module: nn.Module, verify: bool) -> tuple[list[Row], Plan | None]:
    stacks = [parameter.shape for parameter in module.parameters(recurse=False) if parameter.ndim == 3]
    if len(stacks) > 1 and min(stacks[0]) > 1 and stacks[0][0] == stacks[1][0]:
        return [Row(path, "experts", "", "its experts are parameters of three axes, whose products are grouped")], None
    if not module._modules or _is_ours(module) or isinstance(module, torch.jit.ScriptModule):
        return [], None
    plan = plan_of(module)
    rows: list[Row] = []
    for method in plan.methods:
        if method.home is nn.Sequential:
            rows += _sequential(path, module)
        for found in method.found:
            row = site_row(path, module, method, found, verify)
            if row is not None:
                rows.append(row)
    if not rows:
        reason = reason_against(module, plan)
        return ([Row(path, "mlp", ", ".join(held_activations(module)), reason)] if reason else []), None
    if "forward" in vars(module):
        reason = "a forward of the instance's own is called in place of its class's"
        return [row._replace(reason=reason) for row in rows], None
    refused = [row for row in rows if row.reason]
    return (refused, None) if refused else (rows, plan)


def _is_ours(module: nn.Module) -> bool:
    return type(module).__module__.startswith("epilogue.nn.")


def _sequential(path: str, module: nn.Module) -> list[Row]:
    """Return one row with the activations of all runs of children that are fused, or none."""
    children, at, acts = list(module._modules.values()), 0, []
    while at < len(children):
        runs = [(slots[0], behind) for _, slots, behind in runs_at(children, at) if recognised(slots[0])]
        if runs:
            act, at = runs[0]
            acts.append(recognised(act).entry.name)  # type: ignore[union-attr]
        else:
            at += 1
    return [Row(path, "sequential", ", ".join(dict.fromkeys(acts)))] if acts else []


def site_row(path: str, module: nn.Module, method: Method, found: Found, verify: bool) -> Row | None:
    """Return the row of one site, with a reason if its trial failed; None if calls of this module do not use it."""
    if not _has_layers(module, method, found):
        return None
    row = Row(path, found.site.pattern, _activation_name(method, found, module))
    error = 0.0
    if verify:
        if row.activation not in found.tried:
            found.tried[row.activation] = difference(method, found, module)
        error = found.tried[row.activation]
    if error > TOLERANCE:
        return row._replace(reason=f"it computes something else, differing by {error:.1e}")
    return row if _runs(method, found, module) else None


def _has_layers(module: nn.Module, method: Method, found: Found) -> bool:
    """Return whether the site's layers may be linear: the module says so before the call, or it holds lists whose items only the call
    knows."""
    roles = Roles(method.inner, module)
    if any(roles(found.slots[name]) == "linear" for name in ("up", "gate", "down") if name in found.slots):
        return True
    listed = [child for child in module.children() if isinstance(child, (nn.ModuleList, nn.ModuleDict, nn.Sequential))]
    return any(is_linear(inner) for child in (module, *listed) for inner in child.children())


def _runs(method: Method, found: Found, module: nn.Module) -> bool:
    """Return whether calls of this module reach the site: its own conditions allow it, and those of every site around it do not."""
    roles, outer = Roles(method.inner, module), found.within
    while outer is not None:
        if roles.holds(outer.musts) is None:
            return False
        outer = outer.within
    return roles.holds(found.musts) is None


def _activation_name(method: Method, found: Found, module: nn.Module) -> str:
    if found.site.entry is not None:
        return found.site.entry.name
    known = recognised(Roles(method.inner, module).activation(found.slots["act"]))
    return "" if known is None else known.entry.name
