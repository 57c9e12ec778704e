"""The layers in plain torch operations, for exporters and CPUs that meet our operators, and for second derivatives, which no kernel has."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import eager
from ..applied import Applied
from ..catalogue import Keep
from ..formula import on_torch
from ..operands import Dropout, Layer, packed, rows_of, saturated, unpacked
from ..trace import traced


def hidden_layer(layer: Layer, applied: Applied) -> Tensor:
    """act(x Wᵀ + b), or its gated form, without the dropout."""
    x, weight, up_weight, bias, up_bias, _ = layer
    act, values, gated, _ = applied
    if up_weight is not None:
        return eager.glu(x, (weight, up_weight), (bias, up_bias), act, values)
    return (eager.glu if gated else eager.linear)(x, weight, bias, act, values)


def plain_layer(layer: Layer, applied: Applied, keep: Keep, backend: str) -> tuple[Tensor, Tensor]:
    """(h [..., N], the tensor kept beside it as `keep` says; empty for "nothing" and "output")."""
    x, (_, weight, up_weight, bias, up_bias, _) = layer.x, layer.in_rows(applied.gated)
    z = [F.linear(x, weight, bias)] + ([] if up_weight is None else [F.linear(x, up_weight, up_bias)])
    h = _activated(applied, *z)
    signs = packed(rows_of(h)) if keep == "sign" else None
    h = dropped(h, applied.dropout, backend)
    if signs is not None:
        return h, signs
    return h, rows_of(torch.cat(z, -1)) if keep == "input" else x.new_empty(0)


def hidden_from(z: Tensor, applied: Applied, backend: str) -> Tensor:
    """h [M, N] = dropout(act(z)) from the kept z, or gate|up [M, 2N] of a gated layer. It is rounded once, at the end."""
    wide = saturated(z).float()
    return dropped(_activated(applied, *_operands(wide, applied)), applied.dropout, backend).to(z.dtype)


def dropped(h: Tensor, dropout: Dropout | None, backend: str) -> Tensor:
    """dropout(h) [..., N], with the mask that the backend's kernels draw."""
    if dropout is None:
        return h
    mask = torch.ops.epilogue.dropout_mask(dropout.seed, dropout.p, *rows_of(h).shape, backend)
    return (h * mask.view(h.shape)).to(h.dtype)


@functools.cache
def _on_torch(formula: Callable) -> Callable[..., Any]:
    return on_torch(traced(formula))


def _operands(z: Tensor, applied: Applied) -> Sequence[Tensor]:
    return z.chunk(2, -1) if applied.gated else (z,)


def _activated(applied: Applied, *operands: Tensor) -> Tensor:
    act = applied.act.gated if applied.gated else applied.act
    return eager.apply(act, applied.values, *operands)


def from_inputs(operation: Callable, inputs: Sequence, wanted: Sequence[bool], dy: Tensor | None) -> tuple:
    """Gradients of operation(*inputs) for dy, where nothing but the inputs was kept."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that the gradients stop here: an input may be computed from another, or be given twice.
        inputs = tuple(None if t is None else t.view_as(t) for t in inputs)
        by = [t for t, is_wanted in zip(inputs, wanted, strict=True) if t is not None and is_wanted]
        grads = iter(torch.autograd.grad(operation(*inputs), by, dy, create_graph=create_graph))
    return tuple(next(grads) if is_wanted else None for is_wanted in wanted)


def from_kept(
    dh: Tensor, kept: Tensor, keep: Keep, learned: Tensor | None, applied_with: Callable[[Tensor | None], Applied]
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """(h [M, N], dz [M, N], dparam) of h = act(z) for dh [M, N], from the kept z ("input"), h itself ("output") or its signs ("sign").

    kept is a result of forward and so part of the graph: second derivatives by x go through it, and need no x. In a gated layer z and dz
    are gate|up [M, 2N]. applied_with: makes the activation of its learnable tensor, whose gradient is dparam.
    """
    if keep != "input":
        applied = applied_with(learned)
        formula = applied.act.output_derivative(applied.values)
        assert formula is not None
        h = kept if keep == "output" else unpacked(kept, dh)
        return h, (dh * _on_torch(formula)(F, h, *applied.values)).to(dh.dtype), None
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        z = saturated(kept.view_as(kept))
        view = None if learned is None else learned.view_as(learned)
        applied = applied_with(view)
        h = _activated(applied, *_operands(z, applied))
        by = [z] if view is None or not view.requires_grad else [z, view]
        dz, *dparam = torch.autograd.grad(h, by, dh, create_graph=create_graph)
    return h, dz, dparam[0] if dparam else None
