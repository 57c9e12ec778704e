"""`mlp` and `gated_mlp` as differentiable torch operations, whose backward needs x and the pre-activations alone.

The hidden layer h is not kept: the epilogue that computes dz computes it again. As in autograd_linear.py, `epilogue::mlp_fwd` and
`epilogue::linear_dact` are what compilers see, and an autograd.Function runs without one.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import eager
from .autograd_linear import (
    batched,
    cast,
    differentiable,
    hidden_layer,
    joined,
    launchers,
    layer_forward,
    layer_gradients,
    register,
    serves,
    split,
)
from .catalogue import ACTIVATIONS, Activation
from .operands import Dropout, Operands, draw_seed, rows_of


def mlp(
    x, up_weight, down_weight, up_bias, down_bias, act: Activation, values: tuple, dropout_p=0.0, recompute=False,
    *, backend: str,
) -> Tensor:  # fmt: skip
    """dropout(act(x W₁ᵀ + b₁)) W₂ᵀ + b₂: up_weight [H, K], down_weight [N, H] -> [..., N]."""
    if not serves(act, values, False):
        return eager.mlp(x, up_weight, down_weight, up_bias, down_bias, act, values, dropout_p, recompute)
    layer = (x, up_weight, None, up_bias, None)
    return _call(*layer, down_weight, down_bias, act, values, False, dropout_p, recompute, backend)


def gated_mlp(
    x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias, act: Activation, values: tuple,
    dropout_p=0.0, recompute=False, *, backend: str,
) -> Tensor:  # fmt: skip
    """dropout(act(x Gᵀ + bg) ⊙ (x Uᵀ + bu)) Dᵀ + bd: gate and up [H, K], or gate [2H, K] packed and no up; down [N, H] -> [..., N]."""
    act = act.gate or act
    if not serves(act, values, True):
        tensors = (x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias)
        return eager.gated_mlp(*tensors, act, values, dropout_p, recompute)
    layer = (x, gate_weight, up_weight, gate_bias, up_bias)
    return _call(*layer, down_weight, down_bias, act, values, True, dropout_p, recompute, backend)


def _call(
    x, weight, up_weight, bias, up_bias, down_weight, down_bias, act: Activation, values: tuple, gated: bool,
    dropout_p: float, recompute: bool, backend: str,
) -> Tensor:  # fmt: skip
    learned, numbers, learned_at = split(values)
    layer = (*cast(x, x, weight, up_weight, bias, up_bias), learned)
    down = cast(x, down_weight, down_bias)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*layer, *down))
    seed = draw_seed(x.device) if dropout_p else None
    keep = _keep(layer, down[0], act, values, gated, bool(dropout_p), recompute) if save else "nothing"
    call = (act.name, numbers, learned_at, gated, float(dropout_p), keep, backend)
    arguments: tuple[Any, ...] = (*layer, *down, seed, *call)
    if torch.compiler.is_compiling():
        return torch.ops.epilogue.mlp_fwd(*arguments)[0]
    return (_MLP.apply if save else _forward)(*arguments)[0]


def _keep(layer, down_weight, act: Activation, values: tuple, gated: bool, dropout: bool, recompute: bool) -> str:
    """What of the hidden layer backward needs, in the fewest bytes: "nothing" (or x alone), "input" (z), "output" (h) or "sign" (h > 0).

    dW₂ needs h, and the derivative z or h. Where h is enough for both it is kept alone; with dropout h is scaled and has lost what it
    dropped, but not the sign of what it kept.
    """
    if recompute:
        return "nothing"
    if not any(t is not None and t.requires_grad for t in layer):
        return "output" if down_weight.requires_grad else "nothing"
    if gated or act.saves(values) == "input" or (dropout and not act.sign_suffices(values)):
        return "input"
    return "sign" if act.sign_suffices(values) and not down_weight.requires_grad else "output"


def _forward(
    x: Tensor, weight: Tensor, up_weight: Tensor | None, bias: Tensor | None, up_bias: Tensor | None,
    learned: Tensor | None, down_weight: Tensor, down_bias: Tensor | None, seed: Tensor | None,
    activation: str, numbers: list[float], learned_at: int, gated: bool, dropout_p: float, keep: str,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y [..., N], what `keep` says, rows first; empty for "nothing")."""
    dropout = None if seed is None else Dropout(dropout_p, seed)
    act, values = ACTIVATIONS[activation], joined(numbers, learned, learned_at)
    operands = Operands(x, weight, up_weight, bias, up_bias, act, values, gated, dropout)
    h, kept = launchers(backend).linear_fwd(operands, keep)
    y = F.linear(h, down_weight, down_bias)
    if keep == "output":
        return y, rows_of(h)
    return y, x.new_empty(0) if kept is None else kept


def _setup_context(ctx, inputs, output) -> None:
    x, weight, up_weight, bias, up_bias, learned, down_weight, down_bias, seed, *call = inputs
    *ctx.call, ctx.dropout_p, ctx.keep, ctx.backend = call
    ctx.set_materialize_grads(False)
    kept = None if ctx.keep == "nothing" else output[1]
    # A frozen weight costs no x, unless that is where backward starts.
    keeps_x = any(ctx.needs_input_grad[1:3]) or (kept is None and any(ctx.needs_input_grad[:7]))
    ctx.save_for_backward(
        kept, x if keeps_x else None, weight, up_weight, bias, up_bias, learned, down_weight, down_bias, seed
    )
    ctx.leading = x.shape[:-1]


def _backward(ctx, dy: Tensor | None, dkept_unused: Tensor | None, dact: Any, again: Any) -> tuple:
    """Gradients of `_forward`'s eight tensors; dact is linear_dact and `again` linear_fwd, as functions or as operators."""
    if dy is None:
        return (None,) * 16
    saved, *layer, down_weight, down_bias, seed = ctx.saved_tensors
    needs, keep = ctx.needs_input_grad, ctx.keep
    if torch.is_grad_enabled() and any(needs[:7]):
        inputs = (*layer, down_weight, down_bias)
        return *differentiable(_unfused(ctx, seed), inputs, needs[:8], dy), *(None,) * 8
    if saved is None and any(needs[:7]):
        saved, keep = again(*layer, *ctx.call, "input", ctx.backend)[1], "input"
    x, weight, up_weight, _, _, learned = layer
    dy = rows_of(dy.resolve_neg())  # autograd of complex numbers negates lazily, by a bit that a kernel cannot see
    h, gradients = saved, (None,) * 6
    if any(needs[:6]) or keep == "input":
        wanted = [keep == "input" and needs[6], needs[3] or needs[4], needs[5]]
        dz, h_again, dbias, dlearned = dact(
            dy, down_weight, saved, learned, seed, *ctx.call, ctx.dropout_p, keep, wanted, ctx.backend
        )
        h = h_again if keep == "input" else saved
        gradients = layer_gradients(dz, dbias, dlearned, x, weight, up_weight, learned, needs[:6], ctx.leading)
    ddown = dy.t() @ h if needs[6] else None
    return *gradients, ddown, dy.sum(0) if needs[7] else None, *(None,) * 8


def _unfused(ctx, seed: Tensor | None):
    """What forward computed, in plain torch operations."""
    activation, numbers, learned_at, gated = ctx.call

    def operation(x, weight, up_weight, bias, up_bias, learned, down_weight, down_bias):
        values = joined(numbers, learned, learned_at)
        h = hidden_layer(x, weight, up_weight, bias, up_bias, ACTIVATIONS[activation], values, gated)
        if seed is not None:
            m, n = math.prod(h.shape[:-1]), h.shape[-1]
            mask = launchers(ctx.backend).dropout_mask(Dropout(ctx.dropout_p, seed), m, n)
            h = h * mask.to(h.dtype).view(h.shape)
        return F.linear(h, down_weight, down_bias)

    return operation


def _dact(
    dy: Tensor, down_weight: Tensor, saved: Tensor, learned: Tensor | None, seed: Tensor | None, activation: str,
    numbers: list[float], learned_at: int, gated: bool, dropout_p: float, keep: str, needs: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dz, h, dbias, dparam) of linear_dact, empty tensors where not needed."""
    act, values = ACTIVATIONS[activation], joined(numbers, learned, learned_at)
    dropout = None if seed is None else Dropout(dropout_p, seed)
    results = launchers(backend).linear_dact(dy, down_weight, saved, keep, act, values, gated, dropout, needs)
    return tuple(dy.new_empty(0) if r is None else r for r in results)  # type: ignore[return-value]


def _forward_on_cpu(
    x, weight, up_weight, bias, up_bias, learned, down_weight, down_bias, seed, activation, numbers, learned_at, gated,
    dropout_p, keep, backend,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`_forward` in plain torch operations: for a graph that was made on a GPU and runs without one, in inference."""
    if keep != "nothing":
        raise NotImplementedError(
            f"epilogue::mlp_fwd trains on CUDA tensors alone, got {x.device}; export it in eval mode"
        )
    values = joined(numbers, learned, learned_at)
    h = hidden_layer(x, weight, up_weight, bias, up_bias, ACTIVATIONS[activation], values, gated)
    return eager.down(h, down_weight, down_bias, dropout_p), x.new_empty(0)


class _MLP(torch.autograd.Function):
    forward = staticmethod(_forward)
    setup_context = staticmethod(_setup_context)

    @staticmethod
    def backward(ctx, dy, dkept_unused):
        if batched(dy):
            return _operator_backward(ctx, dy, dkept_unused)
        return _backward(ctx, dy, dkept_unused, _dact, layer_forward)


def _operator_backward(ctx, dy, dkept_unused):
    return _backward(ctx, dy, dkept_unused, torch.ops.epilogue.linear_dact, torch.ops.epilogue.linear_fwd)


def _fake_forward(
    x, weight, up_weight, bias, up_bias, learned, down_weight, down_bias, seed, activation, numbers, learned_at, gated,
    dropout_p, keep, backend,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    m, n = math.prod(x.shape[:-1]), down_weight.shape[1]
    y = x.new_empty(*x.shape[:-1], down_weight.shape[0])
    if keep == "sign":
        return y, x.new_empty(m, (n + 7) // 8, dtype=torch.uint8)
    width = 2 * n if gated and keep == "input" else n
    return y, x.new_empty(0) if keep == "nothing" else x.new_empty(m, width)


def _fake_dact(
    dy, down_weight, saved, learned, seed, activation, numbers, learned_at, gated, dropout_p, keep, needs, backend
) -> tuple[Tensor, ...]:
    m, n = dy.shape[0], down_weight.shape[1]
    width = 2 * n if gated else n
    h, dbias, dparam = (
        dy.new_empty(shape, dtype=dtype) if needed else dy.new_empty(0)
        for shape, dtype, needed in zip(
            ((m, n), (width,), (n,)), (dy.dtype, torch.float32, torch.float32), needs, strict=True
        )
    )
    return dy.new_empty(m, width), h, dbias, dparam


register(
    "mlp_fwd(Tensor x, Tensor weight, Tensor? up_weight, Tensor? bias, Tensor? up_bias, Tensor? learned, Tensor down_weight, "
    "Tensor? down_bias, Tensor? seed, str activation, float[] numbers, int learned_at, bool gated, float dropout_p, str keep, "
    "str backend) -> (Tensor, Tensor)",
    _forward, _fake_forward, _forward_on_cpu, _operator_backward, _setup_context,
)  # fmt: skip
register(
    "linear_dact(Tensor dy, Tensor down_weight, Tensor saved, Tensor? learned, Tensor? seed, str activation, float[] numbers, "
    "int learned_at, bool gated, float dropout_p, str keep, bool[] needs, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _dact, _fake_dact,
)  # fmt: skip
