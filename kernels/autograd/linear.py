"""`linear` and `glu` as differentiable torch operations: what they save, which gradients they compute, how compilers see them.

`epilogue::linear_fwd` and `epilogue::linear_bwd` are opaque to torch.compile and torch.export. Without a compiler the same functions run
as an autograd.Function, whose call costs half as much.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..applied import Applied, Needs
from ..catalogue import Activation, Keep
from ..operands import Layer, activation_refusal, observed, rows_of
from ..saving import kept_by_layer
from .operators import Call, Wanted, as_seen, by_operator, cast, in_plain_operations, register, split, wanted
from .plain import from_inputs, from_kept, hidden_layer, plain_layer


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, act: Activation, values: tuple, backend: str) -> Tensor:
    """act(x Wᵀ + b): x [..., K], weight [N, K], bias [N] -> [..., N]."""
    return _call(Layer(x, weight, None, bias), Applied(act, values), backend)


def glu(x: Tensor, weight: Any, bias: Any, act: Activation, values: tuple, backend: str) -> Tensor:
    """act(x Gᵀ + bg) ⊙ (x Uᵀ + bu): weight packed [2F, K] or a pair of [F, K], bias the same way -> [..., F]."""
    pair = not isinstance(weight, Tensor)
    layer = Layer(x, *weight, *(bias or (None, None))) if pair else Layer(x, weight, None, bias)
    return _call(layer, Applied(act.base, values, True), backend)


def _call(layer: Layer, applied: Applied, backend: str) -> Tensor:
    act, values, gated, _ = applied
    if activation_refusal(act, values, gated):
        return hidden_layer(layer, applied)
    learned, numbers, learned_at = split(values)
    x, weight, up_weight, bias, up_bias = cast(layer.x, *layer[:-1])
    layer = Layer(x, weight, up_weight, bias, up_bias, learned)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in layer)
    keep: Keep = kept_by_layer(act, values, gated) if save else "nothing"
    call = Call(act.name, numbers, learned_at, gated, 0.0, keep, backend)
    if torch.compiler.is_compiling():
        return linear_fwd_operator(layer, None, call)[0]
    layer = Layer(*as_seen(*layer)) if save else layer
    if observed():
        return linear_fwd_operator(layer, None, call)[0]
    return (_Linear.apply(*layer, None, call) if save else linear_fwd(layer, None, call))[0]


def linear_fwd(layer: Layer, seed: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
    """(y [..., N], the tensor kept beside it: z [M, N] or gate|up [M, 2N] for call.keep "input", bits [M, ⌈N/8⌉] for "sign", else empty).

    With a seed, y is dropped out. Only an MLP's backward calls it so, to compute h again; it then keeps nothing.
    """
    y, kept = call.launchers().linear_fwd(layer, call.applied(layer.learned, seed), call.keep)
    return y, layer.x.new_empty(0) if kept is None else kept


def _setup_context(ctx, inputs: tuple[Layer, Tensor | None, Call], output) -> None:
    (x, weight, up_weight, bias, up_bias, learned), seed, call = inputs
    assert seed is None
    ctx.set_materialize_grads(False)
    saved = {"output": output[0], "nothing": None}.get(call.keep, output[1])
    keeps_x = any(ctx.needs_input_grad[1:3]) or saved is None  # only the weights' gradients and from_inputs need x
    ctx.given = [t is not None for t in inputs[0]]
    biases = (bias, up_bias) if saved is None else (None, None)
    ctx.save_for_backward(saved, x if keeps_x else None, weight, up_weight, *biases, learned)
    ctx.leading, ctx.call = x.shape[:-1], call


def _backward(ctx, dy: Tensor | None, dz_more: Tensor | None, act_bwd: Callable) -> tuple:
    """Gradients of the layer's tensors; act_bwd is `linear_bwd`, as a function or as an operator.

    dz_more: the gradient by the z that forward returned. Only second derivatives bring one.
    """
    call: Call = ctx.call
    dz_more = dz_more if call.keep == "input" else None  # any other keep returns bits or an empty tensor
    if dy is None and dz_more is None:
        return (None,) * len(Layer._fields)
    saved, *tensors = ctx.saved_tensors
    layer, want = Layer(*tensors), wanted(ctx)
    if saved is None:

        def operation(*tensors):
            return hidden_layer(Layer(*tensors), call.applied(tensors[-1]))

        return from_inputs(operation, layer, want[: len(layer)], dy)
    if dy is None:
        dy = dz_more.new_zeros(dz_more.shape[0], dz_more.shape[1] // (2 if call.gated else 1))  # type: ignore[union-attr]
    dy = rows_of(dy.resolve_neg())  # autograd of complex numbers negates lazily, by a bit that a kernel cannot see
    if dz_more is not None or in_plain_operations():
        kept = rows_of(saved) if call.keep == "output" else saved
        _, dz, dlearned = from_kept(dy, kept, call.keep, layer.learned, call.applied)
        dz = dz if dz_more is None else dz + dz_more
        dbias = dz.sum(0)
    else:
        needs = Needs(any(want[:3]), False, want.bias or want.up_bias, want.learned)
        dz, _, dbias, dlearned = act_bwd(dy, saved, layer.learned, call, needs)
    return layer_gradients(dz, dbias, dlearned, layer, want, ctx.leading)


def layer_gradients(dz, dbias, dlearned, layer: Layer, want: Wanted, leading) -> tuple:
    """Gradients of the layer's tensors, from dz [M, N], or dgate|dup [M, 2N] of a gated layer."""
    x, weight, up_weight, _, _, learned = layer
    n, pair = weight.shape[0], up_weight is not None
    dgate = dz[:, :n] if pair and (want.x or want.weight) else dz  # dz is empty where no matrix's gradient is wanted
    dgate_bias = dbias[:n] if pair else dbias
    dx = dw = dup = dup_bias = None
    if want.x:
        dx = dz @ weight if up_weight is None else torch.addmm(dz[:, n:] @ up_weight, dgate, weight)
        dx = dx.view(*leading, dx.shape[-1])
    if want.weight:
        dw = dgate.t() @ rows_of(x)
    if want.up_weight:
        dup = dz[:, n:].t() @ rows_of(x)
    if want.up_bias:
        dup_bias = dbias[n:].to(dz.dtype)
    dbias = dgate_bias.to(dz.dtype) if want.bias else None
    if want.learned:
        assert learned is not None
        summed = dlearned if dlearned.numel() == learned.numel() else dlearned.sum(-1)  # of one element for all columns
        dlearned = summed.reshape(learned.shape).to(learned.dtype)
    return dx, dw, dup, dbias, dup_bias, dlearned if want.learned else None


def linear_bwd(
    dy: Tensor, saved: Tensor, learned: Tensor | None, call: Call, needs: Needs
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dz, h, dbias, dparam) of the launcher act_bwd, with empty tensors where not needed."""
    return tensors_of(dy, call.launchers().act_bwd(dy, rows_of(saved), call.keep, call.applied(learned), needs))


def tensors_of(dy: Tensor, results: tuple) -> Any:
    """A backward kernel's results as an operator returns them, with empty tensors for None."""
    return tuple(dy.new_empty(0) if result is None else result for result in results)


def _plain_forward(layer: Layer, seed: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
    """`linear_fwd` in plain torch operations, except for dropout's mask, which only the kernels draw."""
    return plain_layer(layer, call.applied(layer.learned, seed), call.keep, call.backend)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(*inputs):
        return linear_fwd(*Layer.first_of(inputs))

    @staticmethod
    def setup_context(ctx, inputs, output):
        _setup_context(ctx, Layer.first_of(inputs), output)

    @staticmethod
    def backward(ctx, dy, dz_more):
        gradients = _backward(ctx, dy, dz_more, linear_bwd_operator if by_operator(dy) else linear_bwd)
        return *gradients, None, None


def _operator_backward(ctx, dy, dz_more):
    return _backward(ctx, dy, dz_more, linear_bwd_operator)


def kept_like(x: Tensor, n: int, gated: bool, keep: Keep) -> Tensor:
    """An uninitialized tensor with the shape and dtype of the one that a layer of n features keeps beside its result."""
    m = math.prod(x.shape[:-1])
    if keep == "sign":
        return x.new_empty(m, (n + 7) // 8, dtype=torch.uint8)
    return x.new_empty(m, 2 * n if gated else n) if keep == "input" else x.new_empty(0)


def _fake_forward(layer: Layer, seed: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
    x, n = layer.x, layer.weight.shape[0]
    n = n // 2 if call.gated and layer.up_weight is None else n
    return x.new_empty(*x.shape[:-1], n), kept_like(x, n, call.gated, call.keep)


def fake_gradients(dy: Tensor, n: int, call: Call, needs: Needs) -> tuple[Tensor, ...]:
    """Uninitialized tensors with the shapes and dtypes of a backward kernel's results, for n features."""
    m, width = dy.shape[0], 2 * n if call.gated else n
    shapes = ((m, width), (m, n), (width,), (len(call.learned_at), n))
    dtypes = (dy.dtype, dy.dtype, torch.float32, torch.float32)
    return tuple(
        dy.new_empty(shape, dtype=dtype) if needed else dy.new_empty(0)
        for shape, dtype, needed in zip(shapes, dtypes, needs, strict=True)
    )


def _fake_backward(dy, saved, learned, call: Call, needs: Needs) -> tuple[Tensor, ...]:
    return fake_gradients(dy, dy.shape[1], call, needs)


def layer_flops(x, weight, up_weight, *others, **more) -> int:
    """The floating-point operations of the products with the weights. As in torch's own counts, pointwise work is free."""
    return 2 * math.prod(x[:-1]) * math.prod(weight) * (1 if up_weight is None else 2)


linear_fwd_operator = register(
    linear_fwd, _fake_forward, layer_flops, _plain_forward, _operator_backward, _setup_context
)
linear_bwd_operator = register(linear_bwd, _fake_backward, lambda *shapes, **more: 0)
