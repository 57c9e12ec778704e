"""Sites: places in a forward where one of our operations may run.

Every call looks at what is there. If anything is more than plain by then (LoRA, a hook, a quantised or sharded weight, a child replaced by
another), the original expression runs.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epilogue.catalogue import Activation
from epilogue.functional import gated_mlp, glu, linear, mlp

from ..plain import is_exactly, is_linear, parameters_of
from .recognition import Known, activation_of


@dataclass(frozen=True)
class Site:
    """act(up(x)), act(gate(x)) ⊙ up(x), or down(dropout(…)) of either; `site(x, act, up, …)` computes it.

    gated: "" if it is not gated; "pair" if gate and up are two layers. If they are the halves of one layer, the half that is the gate,
    "first" or "second", or "both" if the activation takes both (F.glu). dropped: with a dropout before down. entry: the activation if the
    expression spells it out, None if it is an object that each call looks up. widens: autocast may run what is spelled out in float32.
    """

    gated: str = ""
    down: bool = False
    dropped: bool = False
    entry: Activation | None = None
    widens: bool = False

    @property
    def pattern(self) -> str:
        if not self.gated:
            return "plain" if self.down else "linear + activation"
        if not self.down:
            return "glu"
        return "gated" if self.gated == "pair" else "gated packed"

    def __call__(
        self, x: Any, act: Any, up: Any, gate: Any = None, down: Any = None, dropout: Any = None, *must: tuple[str, Any]
    ) -> Tensor | None:
        """Return what the expression computes, or None if the original has to.

        act: an activation, None if the site has an entry. up, gate, down: linear layers. dropout: a module, or (F.dropout, p, training).
        must: (kind, value) of whatever else is in the expression and has to change nothing, see `_changes_nothing`.
        """
        if not isinstance(x, Tensor) or x.is_nested or not x.ndim or torch.jit.is_tracing():
            return None
        if x.dtype not in _FLOATS or x.layout is not torch.strided:
            return None
        read = parameters_of(up)
        gate_read = parameters_of(gate) if self.gated == "pair" else _ABSENT
        down_read = parameters_of(down) if self.down else _ABSENT
        if read is None or gate_read is None or down_read is None:
            return None
        known = Known(self.entry, {}, self.widens) if self.entry is not None else activation_of(act)
        if known is None or (known.entry.arity == 2) != (self.gated == "both"):
            return None
        weight: Any
        (weight, bias), (gate_weight, gate_bias), (down_weight, down_bias) = read, gate_read, down_read
        (hidden, features), (entry, params, widens) = weight.shape, known
        if features != x.shape[-1] or not _fits(weight, bias, x):
            return None
        if "slope" in params and getattr(params["slope"], "dtype", weight.dtype) is not weight.dtype:  # a learned one
            return None
        if self.gated == "pair":
            if gate_weight.shape != weight.shape or not _fits(gate_weight, gate_bias, x):
                return None
        elif self.gated:
            if hidden % 2:
                return None
            hidden //= 2
            gate_weight, gate_bias = weight, bias
            weight = bias = None
            if self.gated == "second":
                weight, gate_weight = gate_weight.chunk(2)
                bias, gate_bias = (None, None) if gate_bias is None else gate_bias.chunk(2)
        if must and not all(_changes_nothing(kind, value, x, hidden) for kind, value in must):
            return None
        if not self.down:
            if widens and torch.is_autocast_enabled(x.device.type):
                return None  # its result is float32
            if not self.gated:
                return linear(x, weight, bias, entry, **params)
            if weight is None:
                return glu(x, gate_weight, gate_bias, entry, **params)
            return glu(x, (gate_weight, weight), (gate_bias, bias), entry, **params)
        if down_weight.shape[1] != hidden or not _fits(down_weight, down_bias, x):
            return None
        p, training = 0.0, False
        if self.dropped:
            if isinstance(dropout, tuple):
                function, p, training = dropout
                if function is not F.dropout:
                    return None
            elif is_exactly(dropout, nn.Dropout):
                p, training = dropout.p, dropout.training
            else:
                return None
            if type(p) not in (float, int) or not 0 <= p <= 1 or type(training) is not bool:
                return None
        if not self.gated:
            return mlp(x, weight, down_weight, bias, down_bias, entry, p, training, **params)
        return gated_mlp(x, gate_weight, weight, down_weight, gate_bias, bias, down_bias, entry, p, training, **params)


_ABSENT: tuple[Any, Any] = (None, None)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _fits(weight: Tensor, bias: Tensor | None, x: Tensor) -> bool:
    """Return whether both torch and our operations can multiply x by the weight and add the bias."""
    if weight.device != x.device or weight.layout is not torch.strided:
        return False
    if weight.dtype is not x.dtype and not (weight.dtype in _FLOATS and torch.is_autocast_enabled(x.device.type)):
        return False
    return bias is None or (bias.dtype is weight.dtype and bias.shape == weight.shape[:1])


def _changes_nothing(kind: str, value: Any, x: Tensor, hidden: int) -> bool:
    """Return whether a part of the expression has no effect in this call.

    idle: an nn.Identity, or a dropout that drops nothing. factor: a number. half: the size of a half of up's result; axis: the axis of the
    halves. cast: a dtype; last cast: the same, right before down. condition: whether the forward would do more; dtype condition: the same,
    asked of x in place of a later tensor.
    """
    if kind == "idle":
        idle = is_exactly(value, nn.Dropout) and not (value.training and value.p)
        return idle or is_exactly(value, nn.Identity)
    if kind == "factor":
        return type(value) in (int, float) and value == 1
    if kind in ("half", "axis"):
        return type(value) is int and value == (hidden if kind == "half" else -1)
    if kind == "condition":
        return value is None or value is False
    if not torch.is_autocast_enabled(x.device.type):
        return value is False if kind == "dtype condition" else value is x.dtype
    return (kind == "last cast" and value is torch.float32) or (
        kind.endswith("cast") and value is torch.get_autocast_dtype(x.device.type)
    )


def _sites(gated: str) -> tuple[Site, Site, Site]:
    return Site(gated), Site(gated, down=True), Site(gated, down=True, dropped=True)


_SITES = {False: _sites(""), True: _sites("both")}
"""The sites of an activation, by whether it is an nn.GLU: alone, before a linear layer, and with a dropout before that."""


def sequential(self: Any, input: Any) -> Any:
    """The forward of an nn.Sequential: children that are together one of our operations run as that, others one after another."""
    children, at = list(self._modules.values()), 0
    while at < len(children):
        for site, slots, behind in runs_at(children, at):
            y = site(input, *slots)
            if y is not None:
                input, at = y, behind
                break
        else:
            input, at = children[at](input), at + 1
    return input


def runs_at(children: list, at: int) -> list[tuple[Site, tuple, int]]:
    """Return (site, its slots, the place behind it) for each site that may begin at that child, the longest first."""
    if at + 1 >= len(children) or not is_linear(children[at]):
        return []
    up, act = children[at : at + 2]
    sites = _SITES[type(act) is nn.GLU]
    last = at + 2
    dropout = children[last] if last < len(children) and type(children[last]) is nn.Dropout else None
    last += dropout is not None
    found: list[tuple[Site, tuple, int]] = [(sites[0], (act, up), at + 2)]
    # A linear layer that has an activation of its own behind it is better left to that.
    activated = last + 1 < len(children) and activation_of(children[last + 1]) is not None
    if last < len(children) and is_linear(children[last]) and not activated:
        site = sites[1] if dropout is None else sites[2]
        found.insert(0, (site, (act, up, None, children[last], dropout), last + 1))
    return found
