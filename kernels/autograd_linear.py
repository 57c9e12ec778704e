"""`linear` and `glu` as differentiable torch operations: what is saved, which gradients are computed, how compilers see them.

`epilogue::linear_fwd` and `epilogue::linear_bwd` are opaque to torch.compile and torch.export. Without a compiler the same functions run
as an autograd.Function, whose call costs half as much.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import eager
from .backends import kernels
from .catalogue import ACTIVATIONS, Activation, Keep
from .operands import Dropout, Operands, activation_refusal, observed, packed, rows_of
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
from .saving import kept_by_layer
from .second_order import from_inputs, from_kept, hidden_layer


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, act: Activation, values: tuple, backend: str) -> Tensor:
    """act(x Wᵀ + b): x [..., K], weight [N, K], bias [N] -> [..., N]."""
    return _call(x, weight, None, bias, None, act, values, False, backend)


def glu(x: Tensor, weight: Any, bias: Any, act: Activation, values: tuple, backend: str) -> Tensor:
    """act(x Gᵀ + bg) ⊙ (x Uᵀ + bu): weight packed [2F, K] or a pair of [F, K], bias the same way -> [..., F]."""
    act = act.gate or act
    if isinstance(weight, Tensor):
        return _call(x, weight, None, bias, None, act, values, True, backend)
    gate_bias, up_bias = bias or (None, None)
    return _call(x, weight[0], weight[1], gate_bias, up_bias, act, values, True, backend)


def _call(x, weight, up_weight, bias, up_bias, act: Activation, values: tuple, gated: bool, backend: str) -> Tensor:
    if activation_refusal(act, values, gated):
        if up_weight is not None:
            weight, bias = (weight, up_weight), (bias, up_bias)
        return (eager.glu if gated else eager.linear)(x, weight, bias, act, values)
    learned, numbers, learned_at = split(values)
    tensors = (*cast(x, x, weight, up_weight, bias, up_bias), learned)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    keep: Keep = kept_by_layer(act, values, gated) if save else "nothing"
    if save and not torch.compiler.is_compiling():
        tensors = as_seen(*tensors)
    arguments: tuple[Any, ...] = (*tensors, None, act.name, numbers, learned_at, gated, 0.0, keep, backend)
    if torch.compiler.is_compiling() or observed():
        return torch.ops.epilogue.linear_fwd(*arguments)[0]
    return (_Linear.apply if save else layer_forward)(*arguments)[0]


def layer_forward(
    x: Tensor, weight: Tensor, up_weight: Tensor | None, bias: Tensor | None, up_bias: Tensor | None,
    learned: Tensor | None, seed: Tensor | None, activation: str, numbers: list[float], learned_at: int, gated: bool,
    dropout_p: float, keep: Keep, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y [..., N], beside it what `keep` says: z [M, N] or gate|up [M, 2N] of "input", bits [M, ⌈N/8⌉] of "sign", else empty).

    With a seed y is dropped out, for an MLP's backward, which keeps nothing here.
    """
    act, values = ACTIVATIONS[activation], joined(numbers, learned, learned_at)
    dropout = None if seed is None else Dropout(dropout_p, seed)
    operands = Operands(x, weight, up_weight, bias, up_bias, act, values, gated, dropout)
    y, kept = kernels(backend).launchers().linear_fwd(operands, keep)
    return y, x.new_empty(0) if kept is None else kept


def _setup_context(ctx, inputs, output) -> None:
    x, weight, up_weight, bias, up_bias, learned, seed, *ctx.call, _, keep, backend = inputs
    assert seed is None
    ctx.set_materialize_grads(False)
    saved = {"output": output[0], "nothing": None}.get(keep, output[1])
    keeps_x = any(ctx.needs_input_grad[1:3]) or keep == "nothing"  # a frozen weight costs no x
    ctx.given = [t is not None for t in (x, weight, up_weight, bias, up_bias, learned)]
    biases = (bias, up_bias) if saved is None else (None, None)
    ctx.save_for_backward(saved, x if keeps_x else None, weight, up_weight, learned, *biases)
    ctx.leading, ctx.keep, ctx.backend = x.shape[:-1], keep, backend


def _backward(ctx, dy: Tensor | None, dz_more: Tensor | None, pointwise: Any) -> tuple:
    """Gradients of `layer_forward`'s six tensors; `pointwise` is `_pointwise`, as a function or as an operator.

    dz_more: the gradient of the z that forward returned, which second derivatives bring.
    """
    dz_more = dz_more if ctx.keep == "input" else None  # else of an empty tensor
    if dy is None and dz_more is None:
        return (None,) * 14
    saved, x, weight, up_weight, learned, bias, up_bias = ctx.saved_tensors
    needs = wanted(ctx)
    activation, numbers, learned_at, gated = ctx.call
    act, values = ACTIVATIONS[activation], joined(numbers, learned, learned_at)
    if saved is None:

        def operation(x, weight, up_weight, bias, up_bias, learned):
            return hidden_layer(x, weight, up_weight, bias, up_bias, act, joined(numbers, learned, learned_at), gated)

        return *from_inputs(operation, (x, weight, up_weight, bias, up_bias, learned), needs, dy), *(None,) * 8
    if dy is None:
        dy = dz_more.new_zeros(dz_more.shape[0], dz_more.shape[1] // (1 + gated))  # type: ignore[union-attr]
    dy = rows_of(dy.resolve_neg())  # autograd of complex numbers negates lazily, by a bit that a kernel cannot see
    if dz_more is not None or in_plain_operations():
        kept = rows_of(saved) if ctx.keep == "output" else saved
        _, dz, dlearned = from_kept(dy, kept, ctx.keep, learned, act, values, gated)
        dz = dz if dz_more is None else dz + dz_more
        dbias = dz.sum(0)
    else:
        sums = [any(needs[:3]), any(needs[3:5]), needs[5]]
        dz, dbias, dlearned = pointwise(dy, saved, learned, *ctx.call, ctx.keep, sums, ctx.backend)
    return *layer_gradients(dz, dbias, dlearned, x, weight, up_weight, learned, needs, ctx.leading), *(None,) * 8


def layer_gradients(dz, dbias, dlearned, x, weight, up_weight, learned, needs, leading) -> tuple:
    """Gradients of x, weight, up_weight, bias, up_bias and learned, from dz [M, N], or dgate|dup [M, 2N] of a gated layer."""
    n = weight.shape[0]
    pair = up_weight is not None
    dgate = dz[:, :n] if pair and any(needs[:2]) else dz  # which is empty where no matrix's gradient is wanted
    dgate_bias = dbias[:n] if pair else dbias
    dx = dw = dup = dup_bias = None
    if needs[0]:
        dx = dz @ weight if up_weight is None else torch.addmm(dz[:, n:] @ up_weight, dgate, weight)
        dx = dx.view(*leading, dx.shape[-1])
    if needs[1]:
        dw = dgate.t() @ rows_of(x)
    if needs[2]:
        dup = dz[:, n:].t() @ rows_of(x)
    if needs[4]:
        dup_bias = dbias[n:].to(dz.dtype)
    dbias = dgate_bias.to(dz.dtype) if needs[3] else None
    if needs[5]:
        dlearned = (dlearned.sum() if learned.numel() == 1 else dlearned).reshape(learned.shape).to(learned.dtype)
    return dx, dw, dup, dbias, dup_bias, dlearned if needs[5] else None


def _pointwise(
    dy: Tensor, saved: Tensor, learned: Tensor | None, activation: str, numbers: list[float], learned_at: int,
    gated: bool, keep: Keep, needs: list[bool], backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dz, dbias, dparam) of act_bwd, empty tensors where not needed."""
    act, values = ACTIVATIONS[activation], joined(numbers, learned, learned_at)
    results = (needs[0], False, *needs[1:])
    dz, _, *sums = kernels(backend).launchers().act_bwd(dy, rows_of(saved), keep, act, values, gated, None, results)
    return tuple(dy.new_empty(0) if r is None else r for r in (dz, *sums))  # type: ignore[return-value]


def _plain_forward(
    x, weight, up_weight, bias, up_bias, learned, seed, activation, numbers, learned_at, gated, dropout_p, keep, backend
) -> tuple[Tensor, Tensor]:
    """`layer_forward` in plain torch operations."""
    act, values = ACTIVATIONS[activation], joined(numbers, learned, learned_at)
    dropout = None if seed is None else Dropout(dropout_p, seed)
    return plain_layer(Operands(x, weight, up_weight, bias, up_bias, act, values, gated, dropout), keep, backend)


def plain_layer(operands: Operands, keep: Keep, backend: str) -> tuple[Tensor, Tensor]:
    """(h [..., N], what `keep` says of the layer, empty for "nothing" and "output"), in plain torch operations but for a dropout's mask."""
    x, act = operands.x, operands.act
    weight, up_weight, bias, up_bias = operands.halves()
    z = [F.linear(x, weight, bias)] + ([] if up_weight is None else [F.linear(x, up_weight, up_bias)])
    h = eager.apply(act.gated if operands.gated else act, operands.values, *z)
    signs = packed(rows_of(h)) if keep == "sign" else None
    if operands.dropout:
        p, seed = operands.dropout
        h = (h * torch.ops.epilogue.dropout_mask(seed, p, *rows_of(h).shape, backend).view(h.shape)).to(h.dtype)
    if signs is not None:
        return h, signs
    return h, rows_of(torch.cat(z, -1)) if keep == "input" else x.new_empty(0)


class _Linear(torch.autograd.Function):
    forward = staticmethod(layer_forward)
    setup_context = staticmethod(_setup_context)

    @staticmethod
    def backward(ctx, dy, dz_more):
        return _backward(ctx, dy, dz_more, torch.ops.epilogue.linear_bwd if by_operator(dy) else _pointwise)


def kept_like(x: Tensor, n: int, gated: bool, keep: Keep) -> Tensor:
    """Of the shape and dtype of what a layer of n features keeps beside its result."""
    m = math.prod(x.shape[:-1])
    if keep == "sign":
        return x.new_empty(m, (n + 7) // 8, dtype=torch.uint8)
    return x.new_empty(m, 2 * n if gated else n) if keep == "input" else x.new_empty(0)


def _fake_forward(
    x, weight, up_weight, bias, up_bias, learned, seed, activation, numbers, learned_at, gated, dropout_p, keep, backend
) -> tuple[Tensor, Tensor]:
    n = weight.shape[0] // 2 if gated and up_weight is None else weight.shape[0]
    return x.new_empty(*x.shape[:-1], n), kept_like(x, n, gated, keep)


def _fake_pointwise(
    dy, saved, learned, activation, numbers, learned_at, gated, keep, needs, backend
) -> tuple[Tensor, ...]:
    (m, n), width = dy.shape, dy.shape[1] * (2 if gated else 1)
    shapes = ((m, width), (width,), (n,))
    dtypes = (dy.dtype, torch.float32, torch.float32)
    return tuple(
        dy.new_empty(shape, dtype=dtype) if needed else dy.new_empty(0)
        for shape, dtype, needed in zip(shapes, dtypes, needs, strict=True)
    )


def layer_flops(x, weight, up_weight, *others, **more) -> int:
    """Of the products with the weights, as torch counts its own: pointwise work is free."""
    return 2 * math.prod(x[:-1]) * math.prod(weight) * (1 if up_weight is None else 2)


def _operator_backward(ctx, dy, dz_more):
    return _backward(ctx, dy, dz_more, torch.ops.epilogue.linear_bwd)


register(
    "linear_fwd(Tensor x, Tensor weight, Tensor? up_weight, Tensor? bias, Tensor? up_bias, Tensor? learned, Tensor? seed, "
    "str activation, float[] numbers, int learned_at, bool gated, float dropout_p, str keep, str backend) -> (Tensor, Tensor)",
    layer_forward, _fake_forward, layer_flops, _plain_forward, _operator_backward, _setup_context,
)  # fmt: skip
register(
    "linear_bwd(Tensor dy, Tensor saved, Tensor? learned, str activation, float[] numbers, int learned_at, bool gated, "
    "str keep, bool[] needs, str backend) -> (Tensor, Tensor, Tensor)",
    _pointwise, _fake_pointwise, lambda *shapes, **more: 0,
)  # fmt: skip
