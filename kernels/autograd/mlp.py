"""`mlp` and `gated_mlp` as differentiable torch operations, whose backward needs x and the pre-activations alone.

The hidden layer h is not kept beside them: the epilogue that computes dz computes h again. As in linear.py, compilers see the operators
`epilogue::mlp_fwd` and `epilogue::linear_dact`, and without a compiler an autograd.Function runs.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import eager
from ..applied import Applied, Needs
from ..backends import kernels
from ..catalogue import Activation, Keep
from ..operands import Dropout, Layer, activation_refusal, draw_seed, observed, rows_of
from ..saving import emits_h, kept_by_mlp
from .linear import (
    fake_gradients,
    kept_like,
    layer_flops,
    layer_gradients,
    linear_fwd,
    linear_fwd_operator,
    tensors_of,
)
from .operators import Call, as_seen, by_operator, cast, in_plain_operations, register, split, wanted
from .plain import dropped, from_inputs, from_kept, hidden_from, hidden_layer, plain_layer


def mlp(
    x, up_weight, down_weight, up_bias, down_bias, act: Activation, values: tuple, dropout_p=0.0, recompute=False,
    *, backend: str,
) -> Tensor:  # fmt: skip
    """dropout(act(x W₁ᵀ + b₁)) W₂ᵀ + b₂: up_weight [H, K], down_weight [N, H] -> [..., N]."""
    if activation_refusal(act, values, False):
        return eager.mlp(x, up_weight, down_weight, up_bias, down_bias, act, values, dropout_p, recompute)
    layer = Layer(x, up_weight, None, up_bias)
    return _call(layer, down_weight, down_bias, Applied(act, values), dropout_p, recompute, backend)


def gated_mlp(
    x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias, act: Activation, values: tuple,
    dropout_p=0.0, recompute=False, *, backend: str,
) -> Tensor:  # fmt: skip
    """dropout(act(x Gᵀ + bg) ⊙ (x Uᵀ + bu)) Dᵀ + bd: gate and up [H, K], or gate [2H, K] packed and no up; down [N, H] -> [..., N]."""
    act = act.base
    if activation_refusal(act, values, True):
        tensors = (x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias)
        return eager.gated_mlp(*tensors, act, values, dropout_p, recompute)
    layer = Layer(x, gate_weight, up_weight, gate_bias, up_bias)
    return _call(layer, down_weight, down_bias, Applied(act, values, True), dropout_p, recompute, backend)


def _call(
    layer: Layer, down_weight: Tensor, down_bias: Tensor | None, applied: Applied, dropout_p: float, recompute: bool,
    backend: str,
) -> Tensor:  # fmt: skip
    act, values, gated, _ = applied
    learned, numbers, learned_at = split(values)
    x, weight, up_weight, bias, up_bias, down_weight, down_bias = cast(layer.x, *layer[:-1], down_weight, down_bias)
    layer = Layer(x, weight, up_weight, bias, up_bias, learned)
    save = torch.is_grad_enabled() and any(map(_needs_gradient, (*layer, down_weight, down_bias)))
    seed = draw_seed(x.device) if dropout_p else None
    keep: Keep = "nothing"
    if save and not recompute:
        hidden, down_needed = any(map(_needs_gradient, layer)), _needs_gradient(down_weight)
        keep = kept_by_mlp(act, values, gated, bool(dropout_p), hidden, down_needed)
    call = Call(act.name, numbers, learned_at, gated, float(dropout_p), keep, backend)
    if torch.compiler.is_compiling():
        return mlp_fwd_operator(layer, down_weight, down_bias, seed, call)[0]
    if save:
        layer, (down_weight, down_bias) = Layer(*as_seen(*layer)), as_seen(down_weight, down_bias)
    if observed():
        return mlp_fwd_operator(layer, down_weight, down_bias, seed, call)[0]
    if save:
        return _MLP.apply(*layer, down_weight, down_bias, seed, call)[0]
    return mlp_fwd(layer, down_weight, down_bias, seed, call)[0]


def _needs_gradient(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def mlp_fwd(
    layer: Layer, down_weight: Tensor, down_bias: Tensor | None, seed: Tensor | None, call: Call
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y [..., N], the tensor kept of the hidden layer as call.keep says, a matrix of M rows; empty for "nothing")."""
    x = layer.x
    h, kept = call.launchers().linear_fwd(layer, call.applied(layer.learned, seed), call.keep)
    y = F.linear(rows_of(h), down_weight, down_bias)
    # y must not be a view, as F.linear's result with a bias may be: autograd forbids writing into a view that is one of several results.
    y = torch.ops.aten._unsafe_view.default(y, (*x.shape[:-1], y.shape[-1]))
    if call.keep == "output":
        return y, rows_of(h)
    return y, x.new_empty(0) if kept is None else kept


def _setup_context(ctx, inputs: tuple, output) -> None:
    layer, down_weight, down_bias, seed, call = inputs
    x, weight, up_weight, bias, up_bias, learned = layer
    ctx.set_materialize_grads(False)
    kept = None if call.keep == "nothing" else output[1]
    # x is needed for the weights' gradients and, where nothing was kept, to compute forward again.
    keeps_x = any(ctx.needs_input_grad[1:3]) or (kept is None and any(ctx.needs_input_grad[: len(layer) + 1]))
    ctx.given = [t is not None for t in (*layer, down_weight, down_bias)]
    # The biases serve only to compute h again.
    bias, up_bias, down_bias = (bias, up_bias, down_bias) if kept is None else (None, None, None)
    tensors = (x if keeps_x else None, weight, up_weight, bias, up_bias, learned)
    ctx.save_for_backward(kept, seed, down_weight, down_bias, *tensors)
    ctx.leading, ctx.call = x.shape[:-1], call


def _backward(ctx, dy: Tensor | None, dkept: Tensor | None, dact: Callable, again: Callable) -> tuple:
    """Gradients of the layer's tensors, down_weight and down_bias. dact is `linear_dact` and again `linear_fwd`, as functions or operators.

    dkept: the gradient by the tensor that forward kept. Only second derivatives bring one.
    """
    call: Call = ctx.call
    dkept = dkept if call.keep in ("input", "output") else None  # any other keep returns bits or an empty tensor
    if dy is None and dkept is None:
        return (None,) * len(ctx.given)
    kept, seed, down_weight, down_bias, *tensors = ctx.saved_tensors
    layer, want = Layer(*tensors), wanted(ctx)
    hidden_wanted = any(want[: len(layer)])
    if dy is None:
        dy = dkept.new_zeros(*ctx.leading, down_weight.shape[0])  # type: ignore[union-attr]
    differentiated = dkept is not None or in_plain_operations()
    if kept is None and (hidden_wanted or want.down_weight) and differentiated:
        return from_inputs(_unfused(call, seed), (*layer, down_weight, down_bias), want, dy)
    dy = rows_of(dy.resolve_neg())  # autograd of complex numbers negates lazily, by a bit that a kernel cannot see
    h, gradients = kept, (None,) * len(layer)
    if kept is None and hidden_wanted:
        call = call._replace(keep="input")
        kept = again(layer, None, call)[1]
    elif kept is None and want.down_weight:
        h = rows_of(again(layer, seed, call)[0])
    if kept is not None and hidden_wanted:
        if differentiated:
            h, dz, dbias, dlearned = _differentiable_dact(call, dy, dkept, kept, layer.learned, down_weight, seed)
        else:
            needs = Needs(True, emits_h(call.keep, want.down_weight), want.bias or want.up_bias, want.learned)
            dz, h_again, dbias, dlearned = dact(dy, down_weight, kept, layer.learned, seed, call, needs)
            h = h_again if call.keep == "input" else kept
        gradients = layer_gradients(dz, dbias, dlearned, layer, want, ctx.leading)
    elif kept is not None and call.keep == "input" and want.down_weight:
        h = hidden_from(kept, call.applied(layer.learned, seed), call.backend)
    ddown = dy.t() @ h if want.down_weight else None
    return *gradients, ddown, dy.sum(0) if want.down_bias else None


def _differentiable_dact(
    call: Call, dy: Tensor, dkept: Tensor | None, kept: Tensor, learned: Tensor | None, down_weight: Tensor,
    seed: Tensor | None,
):  # fmt: skip
    """linear_dact in plain torch operations on the kept tensor: (h, dz, dbias, dparam), all of which can be differentiated."""
    applied = call.applied(learned, seed)
    dh = dy @ down_weight
    if dkept is not None and call.keep == "output":
        dh, dkept = dh + dkept, None
    dh = dropped(dh, applied.dropout, call.backend)
    h, dz, dlearned = from_kept(dh, kept, call.keep, learned, lambda learned: call.applied(learned, seed))
    if call.keep == "input":
        h = dropped(h, applied.dropout, call.backend)
    dz = dz if dkept is None else dz + dkept
    return h, dz, dz.sum(0), dlearned


def _unfused(call: Call, seed: Tensor | None) -> Callable[..., Tensor]:
    """The function that forward computed, in plain torch operations."""

    def operation(*tensors):
        *layer, down_weight, down_bias = tensors
        applied = call.applied(layer[-1], seed)
        h = dropped(hidden_layer(Layer(*layer), applied), applied.dropout, call.backend)
        return F.linear(h, down_weight, down_bias)

    return operation


def linear_dact(
    dy: Tensor, down_weight: Tensor, saved: Tensor, learned: Tensor | None, seed: Tensor | None, call: Call, needs: Needs
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dz, h, dbias, dparam) of the launcher linear_dact, with empty tensors where not needed."""
    applied = call.applied(learned, seed)
    return tensors_of(dy, call.launchers().linear_dact(dy, down_weight, saved, call.keep, applied, needs))


def dropout_mask(seed: Tensor, dropout_p: float, m: int, n: int, backend: str) -> Tensor:
    """The factors that the kernels multiply h [m, n] by, float32."""
    return kernels(backend).launchers().dropout_mask(Dropout(dropout_p, seed), m, n)


def _plain_forward(layer: Layer, down_weight, down_bias, seed: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
    """`mlp_fwd` in plain torch operations, except for dropout's mask, which only the kernels draw."""
    h, kept = plain_layer(layer, call.applied(layer.learned, seed), call.keep, call.backend)
    return F.linear(h, down_weight, down_bias), rows_of(h) if call.keep == "output" else kept


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(*inputs):
        return mlp_fwd(*Layer.first_of(inputs))

    @staticmethod
    def setup_context(ctx, inputs, output):
        _setup_context(ctx, Layer.first_of(inputs), output)

    @staticmethod
    def backward(ctx, dy, dkept):
        if by_operator(dy):
            return *_operator_backward(ctx, dy, dkept), None, None
        return *_backward(ctx, dy, dkept, linear_dact, linear_fwd), None, None


def _operator_backward(ctx, dy, dkept):
    return _backward(ctx, dy, dkept, linear_dact_operator, linear_fwd_operator)


def _fake_forward(layer: Layer, down_weight, down_bias, seed, call: Call) -> tuple[Tensor, Tensor]:
    x, (out, n) = layer.x, down_weight.shape
    y = x.new_empty(*x.shape[:-1], out)
    if call.keep == "output":
        return y, x.new_empty(math.prod(x.shape[:-1]), n)
    return y, kept_like(x, n, call.gated, call.keep)


def _fake_dact(dy, down_weight, saved, learned, seed, call: Call, needs: Needs) -> tuple[Tensor, ...]:
    return fake_gradients(dy, down_weight.shape[1], call, needs)


def _flops(x, weight, up_weight, bias, up_bias, learned, down_weight, *others, **more) -> int:
    return layer_flops(x, weight, up_weight) + layer_flops((*x[:-1], down_weight[1]), down_weight, None)


mlp_fwd_operator = register(mlp_fwd, _fake_forward, _flops, _plain_forward, _operator_backward, _setup_context)
linear_dact_operator = register(
    linear_dact, _fake_dact, lambda dy, down_weight, *others, **more: layer_flops(dy, down_weight, None)
)
register(
    dropout_mask,
    lambda seed, dropout_p, m, n, backend: seed.new_empty(m, n, dtype=torch.float32),
    lambda *shapes, **more: 0,
)
