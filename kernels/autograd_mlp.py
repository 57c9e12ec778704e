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
from .autograd_linear import kept_like, layer_flops, layer_forward, layer_gradients, plain_layer
from .backends import kernels
from .catalogue import ACTIVATIONS, Activation, Keep
from .operands import Dropout, Operands, activation_refusal, draw_seed, observed, rows_of, saturated
from .operators import (
    as_seen,
    by_operator,
    cast,
    in_plain_operations,
    joined,
    register,
    split,
    wanted,
)
from .saving import emits_h, kept_by_mlp
from .second_order import from_inputs, from_kept, hidden_layer


def mlp(
    x, up_weight, down_weight, up_bias, down_bias, act: Activation, values: tuple, dropout_p=0.0, recompute=False,
    *, backend: str,
) -> Tensor:  # fmt: skip
    """dropout(act(x W₁ᵀ + b₁)) W₂ᵀ + b₂: up_weight [H, K], down_weight [N, H] -> [..., N]."""
    if activation_refusal(act, values, False):
        return eager.mlp(x, up_weight, down_weight, up_bias, down_bias, act, values, dropout_p, recompute)
    layer = (x, up_weight, None, up_bias, None)
    return _call(*layer, down_weight, down_bias, act, values, False, dropout_p, recompute, backend)


def gated_mlp(
    x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias, act: Activation, values: tuple,
    dropout_p=0.0, recompute=False, *, backend: str,
) -> Tensor:  # fmt: skip
    """dropout(act(x Gᵀ + bg) ⊙ (x Uᵀ + bu)) Dᵀ + bd: gate and up [H, K], or gate [2H, K] packed and no up; down [N, H] -> [..., N]."""
    act = act.gate or act
    if activation_refusal(act, values, True):
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
    save = torch.is_grad_enabled() and any(map(_needs_gradient, (*layer, *down)))
    seed = draw_seed(x.device) if dropout_p else None
    keep: Keep = "nothing"
    if save and not recompute:
        hidden, down_needed = any(map(_needs_gradient, layer)), _needs_gradient(down[0])
        keep = kept_by_mlp(act, values, gated, bool(dropout_p), hidden, down_needed)
    if save and not torch.compiler.is_compiling():
        layer, down = as_seen(*layer), as_seen(*down)
    call = (act.name, numbers, learned_at, gated, float(dropout_p), keep, backend)
    arguments: tuple[Any, ...] = (*layer, *down, seed, *call)
    if torch.compiler.is_compiling() or observed():
        return torch.ops.epilogue.mlp_fwd(*arguments)[0]
    return (_MLP.apply if save else _forward)(*arguments)[0]


def _needs_gradient(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def _forward(
    x: Tensor, weight: Tensor, up_weight: Tensor | None, bias: Tensor | None, up_bias: Tensor | None,
    learned: Tensor | None, down_weight: Tensor, down_bias: Tensor | None, seed: Tensor | None,
    activation: str, numbers: list[float], learned_at: int, gated: bool, dropout_p: float, keep: Keep,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y [..., N], what `keep` says, rows first; empty for "nothing")."""
    dropout = None if seed is None else Dropout(dropout_p, seed)
    act, values = ACTIVATIONS[activation], joined(numbers, learned, learned_at)
    operands = Operands(x, weight, up_weight, bias, up_bias, act, values, gated, dropout)
    h, kept = kernels(backend).launchers().linear_fwd(operands, keep)
    y = F.linear(rows_of(h), down_weight, down_bias)
    # No view, as F.linear's own result may be with a bias: autograd forbids writing into views that a function returns beside others.
    y = torch.ops.aten._unsafe_view.default(y, (*x.shape[:-1], y.shape[-1]))
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
    ctx.given = [t is not None for t in (x, weight, up_weight, bias, up_bias, learned, down_weight, down_bias)]
    biases = (bias, up_bias, down_bias) if kept is None else (None, None, None)  # from which h is computed again
    ctx.save_for_backward(kept, x if keeps_x else None, weight, up_weight, learned, down_weight, seed, *biases)
    ctx.leading = x.shape[:-1]


def _backward(ctx, dy: Tensor | None, dkept: Tensor | None, dact: Any, again: Any) -> tuple:
    """Gradients of `_forward`'s eight tensors; dact is linear_dact and `again` linear_fwd, as functions or as operators.

    dkept: the gradient of what forward kept, which second derivatives bring.
    """
    dkept = dkept if ctx.keep in ("input", "output") else None  # else of an empty tensor
    if dy is None and dkept is None:
        return (None,) * 16
    kept, x, weight, up_weight, learned, down_weight, seed, bias, up_bias, down_bias = ctx.saved_tensors
    layer = (x, weight, up_weight, bias, up_bias, learned)
    needs, keep = wanted(ctx), ctx.keep
    if dy is None:
        dy = dkept.new_zeros(*ctx.leading, down_weight.shape[0])  # type: ignore[union-attr]
    differentiated = dkept is not None or in_plain_operations()
    if kept is None and any(needs[:7]) and differentiated:
        return *from_inputs(_unfused(ctx, seed), (*layer, down_weight, down_bias), needs, dy), *(None,) * 8
    dy = rows_of(dy.resolve_neg())  # autograd of complex numbers negates lazily, by a bit that a kernel cannot see
    h, gradients = kept, (None,) * 6
    if kept is None and any(needs[:6]):
        kept, keep = again(*layer, None, *ctx.call, 0.0, "input", ctx.backend)[1], "input"
    elif kept is None and needs[6]:
        h = rows_of(again(*layer, seed, *ctx.call, ctx.dropout_p, "nothing", ctx.backend)[0])
    if kept is not None and any(needs[:6]):
        if differentiated:
            h, dz, dbias, dlearned = _differentiable_dact(ctx, dy, dkept, kept, learned, down_weight, seed)
        else:
            results = [emits_h(keep, needs[6]), needs[3] or needs[4], needs[5]]
            dz, h_again, dbias, dlearned = dact(
                dy, down_weight, kept, learned, seed, *ctx.call, ctx.dropout_p, keep, results, ctx.backend
            )
            h = h_again if keep == "input" else kept
        gradients = layer_gradients(dz, dbias, dlearned, x, weight, up_weight, learned, needs[:6], ctx.leading)
    elif kept is not None and keep == "input" and needs[6]:
        h = _hidden(ctx, kept, learned, seed)
    ddown = dy.t() @ h if needs[6] else None
    return *gradients, ddown, dy.sum(0) if needs[7] else None, *(None,) * 8


def _differentiable_dact(ctx, dy: Tensor, dkept: Tensor | None, kept: Tensor, learned, down_weight: Tensor, seed):
    """(h, dz, dbias, dparam) of linear_dact, in plain torch operations on what was kept."""
    activation, numbers, learned_at, gated = ctx.call
    act, values = ACTIVATIONS[activation], joined(numbers, learned, learned_at)
    dh = dy @ down_weight
    if dkept is not None and ctx.keep == "output":
        dh, dkept = dh + dkept, None
    mask = None if seed is None else _mask(ctx, seed, *dh.shape)
    dh = dh if mask is None else (dh * mask).to(dh.dtype)
    h, dz, dlearned = from_kept(dh, kept, ctx.keep, learned, act, values, gated)
    if mask is not None and ctx.keep == "input":
        h = (h * mask).to(h.dtype)
    dz = dz if dkept is None else dz + dkept
    return h, dz, dz.sum(0), dlearned


def _hidden(ctx, z: Tensor, learned, seed: Tensor | None) -> Tensor:
    """h from what was kept, where it alone is wanted of linear_dact: without that product."""
    activation, numbers, learned_at, gated = ctx.call
    act, values = ACTIVATIONS[activation], joined(numbers, learned, learned_at)
    wide = saturated(z).float()  # one rounding, at the end
    h = eager.apply(act.gated, values, *wide.chunk(2, -1)) if gated else eager.apply(act, values, wide)
    return (h if seed is None else h * _mask(ctx, seed, *h.shape)).to(z.dtype)


def _mask(ctx, seed: Tensor, m: int, n: int) -> Tensor:
    """The factors of forward's dropout [m, n], float32."""
    return torch.ops.epilogue.dropout_mask(seed, ctx.dropout_p, m, n, ctx.backend)


def _unfused(ctx, seed: Tensor | None):
    """What forward computed, in plain torch operations."""
    activation, numbers, learned_at, gated = ctx.call

    def operation(x, weight, up_weight, bias, up_bias, learned, down_weight, down_bias):
        values = joined(numbers, learned, learned_at)
        h = hidden_layer(x, weight, up_weight, bias, up_bias, ACTIVATIONS[activation], values, gated)
        if seed is not None:
            h = (h * _mask(ctx, seed, math.prod(h.shape[:-1]), h.shape[-1]).view(h.shape)).to(h.dtype)
        return F.linear(h, down_weight, down_bias)

    return operation


def _dact(
    dy: Tensor, down_weight: Tensor, saved: Tensor, learned: Tensor | None, seed: Tensor | None, activation: str,
    numbers: list[float], learned_at: int, gated: bool, dropout_p: float, keep: Keep, needs: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dz, h, dbias, dparam) of linear_dact, empty tensors where not needed."""
    act, values = ACTIVATIONS[activation], joined(numbers, learned, learned_at)
    dropout = None if seed is None else Dropout(dropout_p, seed)
    results = kernels(backend).launchers().linear_dact(dy, down_weight, saved, keep, act, values, gated, dropout, needs)
    return tuple(dy.new_empty(0) if r is None else r for r in results)  # type: ignore[return-value]


def _plain_forward(
    x, weight, up_weight, bias, up_bias, learned, down_weight, down_bias, seed, activation, numbers, learned_at, gated,
    dropout_p, keep, backend,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`_forward` in plain torch operations but for a dropout's mask, which only the kernels draw."""
    values = joined(numbers, learned, learned_at)
    dropout = None if seed is None else Dropout(dropout_p, seed)
    operands = Operands(x, weight, up_weight, bias, up_bias, ACTIVATIONS[activation], values, gated, dropout)
    h, kept = plain_layer(operands, keep, backend)
    return F.linear(h, down_weight, down_bias), rows_of(h) if keep == "output" else kept


class _MLP(torch.autograd.Function):
    forward = staticmethod(_forward)
    setup_context = staticmethod(_setup_context)

    @staticmethod
    def backward(ctx, dy, dkept):
        if by_operator(dy):
            return _operator_backward(ctx, dy, dkept)
        return _backward(ctx, dy, dkept, _dact, layer_forward)


def _operator_backward(ctx, dy, dkept):
    return _backward(ctx, dy, dkept, torch.ops.epilogue.linear_dact, torch.ops.epilogue.linear_fwd)


def _fake_forward(
    x, weight, up_weight, bias, up_bias, learned, down_weight, down_bias, seed, activation, numbers, learned_at, gated,
    dropout_p, keep, backend,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y, n = x.new_empty(*x.shape[:-1], down_weight.shape[0]), down_weight.shape[1]
    return y, x.new_empty(math.prod(x.shape[:-1]), n) if keep == "output" else kept_like(x, n, gated, keep)


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


def _flops(x, weight, up_weight, bias, up_bias, learned, down_weight, *others, **more) -> int:
    return layer_flops(x, weight, up_weight) + layer_flops((*x[:-1], down_weight[1]), down_weight, None)


register(
    "mlp_fwd(Tensor x, Tensor weight, Tensor? up_weight, Tensor? bias, Tensor? up_bias, Tensor? learned, Tensor down_weight, "
    "Tensor? down_bias, Tensor? seed, str activation, float[] numbers, int learned_at, bool gated, float dropout_p, str keep, "
    "str backend) -> (Tensor, Tensor)",
    _forward, _fake_forward, _flops, _plain_forward, _operator_backward, _setup_context,
)  # fmt: skip
register(
    "linear_dact(Tensor dy, Tensor down_weight, Tensor saved, Tensor? learned, Tensor? seed, str activation, float[] numbers, "
    "int learned_at, bool gated, float dropout_p, str keep, bool[] needs, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _dact, _fake_dact, lambda dy, down_weight, *others, **more: layer_flops(dy, down_weight, None),
)  # fmt: skip
register(
    "dropout_mask(Tensor seed, float dropout_p, int m, int n, str backend) -> Tensor",
    lambda seed, dropout_p, m, n, backend: kernels(backend).launchers().dropout_mask(Dropout(dropout_p, seed), m, n),
    lambda seed, dropout_p, m, n, backend: seed.new_empty(m, n, dtype=torch.float32),
    lambda *shapes, **more: 0,
)
