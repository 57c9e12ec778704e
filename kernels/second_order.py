"""Backward in torch operations that can be differentiated in turn: for second derivatives, which no kernel has."""

from collections.abc import Callable

import torch
from torch import Tensor

from . import eager
from .catalogue import Activation, Keep
from .operands import saturated, unpacked
from .vocabulary import bind


def hidden_layer(x, weight, up_weight, bias, up_bias, act: Activation, values: tuple, gated: bool) -> Tensor:
    """What the kernels compute, in plain torch operations."""
    if up_weight is not None:
        return eager.glu(x, (weight, up_weight), (bias, up_bias), act, values)
    return (eager.glu if gated else eager.linear)(x, weight, bias, act, values)


def from_inputs(operation: Callable, inputs: tuple, needs, dy: Tensor | None) -> tuple:
    """The gradients of operation(*inputs) for dy, where nothing else was kept."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that the gradients stop here: an input may be computed from another, or be given twice.
        inputs = tuple(None if t is None else t.view_as(t) for t in inputs)
        by = [t for t, needed in zip(inputs, needs, strict=True) if t is not None and needed]
        grads = iter(torch.autograd.grad(operation(*inputs), by, dy, create_graph=create_graph))
    return tuple(next(grads) if needed else None for needed in needs)


def from_kept(
    dh: Tensor, kept: Tensor, how: Keep, learned: Tensor | None, act: Activation, values: tuple, gated: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(h [M, N], dz [M, N], dparam) of h = act(z) for dh [M, N], from z ("input"), h itself ("output") or its signs ("sign").

    kept is a result of forward, and so in the graph: second derivatives by x go through it, and need no x. gated: z and dz are gate|up
    [M, 2N]. dparam: the gradient of the learnable tensor, which is among `values`.
    """
    if how != "input":
        formula = act.output_derivative(values)
        assert formula is not None
        h = kept if how == "output" else unpacked(kept, dh)
        return h, (dh * bind(formula, eager.VOCABULARY)(h, *values)).to(dh.dtype), None
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        z = saturated(kept.view_as(kept))
        if learned is not None:
            view = learned.view_as(learned)
            values = tuple(view if value is learned else value for value in values)
        operands = z.chunk(2, -1) if gated else (z,)
        h = eager.apply(act.gated if gated else act, values, *operands)
        by = [z] if learned is None or not learned.requires_grad else [z, view]
        dz, *dparam = torch.autograd.grad(h, by, dh, create_graph=create_graph)
    return h, dz, dparam[0] if dparam else None
