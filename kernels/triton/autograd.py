"""The kernels as differentiable torch operations: what is saved, which gradients are computed, how compilers see them.

`epilogue::linear_fwd` and `epilogue::linear_bwd` are opaque to torch.compile and torch.export. Without a compiler the same functions run
as an autograd.Function, whose call costs half as much.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import eager
from ..catalogue import ACTIVATIONS, Activation
from . import INTERPRET, compute_dtype
from .linear import linear_fwd
from .operands import Operands, rows_of
from .pointwise import linear_bwd

_NO_LEARNED = -1


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, act: Activation, values: tuple) -> Tensor:
    """act(x Wᵀ + b): x [..., K], weight [N, K], bias [N] -> [..., N]."""
    return _call(x, weight, None, bias, None, act, values, False)


def glu(x: Tensor, weight: Any, bias: Any, act: Activation, values: tuple) -> Tensor:
    """act(x Gᵀ + bg) ⊙ (x Uᵀ + bu): weight packed [2F, K] or a pair of [F, K], bias the same way -> [..., F]."""
    act = act.gate or act
    if isinstance(weight, Tensor):
        return _call(x, weight, None, bias, None, act, values, True)
    gate_bias, up_bias = bias or (None, None)
    return _call(x, weight[0], weight[1], gate_bias, up_bias, act, values, True)


def mlp(x, up_weight, down_weight, up_bias, down_bias, act: Activation, values: tuple, dropout_p=0.0) -> Tensor:
    """dropout(act(x W₁ᵀ + b₁)) W₂ᵀ + b₂: the up product with its activation, the down product torch's own."""
    return eager.down(linear(x, up_weight, up_bias, act, values), down_weight, down_bias, dropout_p)


def gated_mlp(
    x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias, act: Activation, values: tuple, dropout_p=0.0
) -> Tensor:
    """dropout(act(x Gᵀ + bg) ⊙ (x Uᵀ + bu)) Dᵀ + bd."""
    h = glu(x, (gate_weight, up_weight), (gate_bias, up_bias), act, values)
    return eager.down(h, down_weight, down_bias, dropout_p)


def _call(x, weight, up_weight, bias, up_bias, act: Activation, values: tuple, gated: bool) -> Tensor:
    learned = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
    if len(learned) > 1 or (act.name == "identity" and not gated):
        # One learnable tensor is what the operations' schema has room for; without an activation the product is cuBLAS's.
        if up_weight is not None:
            weight, bias = (weight, up_weight), (bias, up_bias)
        return (eager.glu if gated else eager.linear)(x, weight, bias, act, values)
    tensors = [x, weight, up_weight, bias, up_bias, values[learned[0]] if learned else None]
    dtype = compute_dtype(x)
    tensors[:5] = [t.to(dtype) if t is not None and t.dtype != dtype else t for t in tensors[:5]]
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    numbers = [0.0 if isinstance(value, Tensor) else value for value in values]
    arguments = (*tensors, act.name, numbers, learned[0] if learned else _NO_LEARNED, gated, save)
    if torch.compiler.is_compiling():
        return torch.ops.epilogue.linear_fwd(*arguments)[0]
    return (_Linear.apply if save else _forward)(*arguments)[0]


def _values(numbers, learned: Tensor | None, learned_at: int) -> tuple:
    values = list(numbers)
    if learned is not None:
        values[learned_at] = learned
    return tuple(values)


def _forward(
    x: Tensor, weight: Tensor, up_weight: Tensor | None, bias: Tensor | None, up_bias: Tensor | None,
    learned: Tensor | None, activation: str, numbers: list[float], learned_at: int, gated: bool, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y [..., N], z [M, N] or gate|up [M, 2N]; z is empty where y is all that backward needs)."""
    act, values = ACTIVATIONS[activation], _values(numbers, learned, learned_at)
    operands = Operands(x, weight, up_weight, bias, up_bias, act, values, gated)
    y, z = linear_fwd(operands, save and _keeps_z(act, values, gated))
    return y, x.new_empty(0) if z is None else z


def _keeps_z(act: Activation, values: tuple, gated: bool) -> bool:
    return gated or act.saves(values) == "input"


def _setup_context(ctx, inputs, output) -> None:
    x, weight, up_weight, bias, up_bias, learned, activation, numbers, learned_at, gated, save = inputs
    y, z = output
    ctx.set_materialize_grads(False)
    keeps_z = _keeps_z(ACTIVATIONS[activation], _values(numbers, learned, learned_at), gated)
    saved = (z if keeps_z else y) if save else None
    keeps_x = any(ctx.needs_input_grad[1:3]) or not save  # a frozen weight costs no x
    ctx.save_for_backward(saved, x if keeps_x else None, weight, up_weight, bias, up_bias, learned)
    ctx.activation, ctx.numbers, ctx.learned_at, ctx.gated = activation, numbers, learned_at, gated
    ctx.leading = x.shape[:-1]


def _backward(ctx, dy: Tensor | None, dz_unused: Tensor | None, pointwise: Any) -> tuple:
    """Gradients of `_forward`'s six tensors; `pointwise` is linear_bwd, as a function or as an operator."""
    if dy is None:
        return (None,) * 11
    saved, x, weight, up_weight, bias, up_bias, learned = ctx.saved_tensors
    if torch.is_grad_enabled() or saved is None:
        return _differentiable_backward(ctx, dy, x, weight, up_weight, bias, up_bias, learned)
    needs_x, needs_weight, needs_up, needs_bias, needs_up_bias, needs_learned = ctx.needs_input_grad[:6]
    needs = [needs_x or needs_weight or needs_up, needs_bias or needs_up_bias, needs_learned]
    dy = rows_of(dy.resolve_neg())  # autograd of complex numbers negates lazily, by a bit that a kernel cannot see
    dz, dbias, dlearned = pointwise(dy, saved, learned, ctx.activation, ctx.numbers, ctx.learned_at, ctx.gated, needs)
    n = dy.shape[-1]
    dx = dw = dup = dup_bias = None
    if needs_x:
        dx = dz @ weight if up_weight is None else torch.addmm(dz[:, n:] @ up_weight, dz[:, :n], weight)
        dx = dx.view(*ctx.leading, dx.shape[-1])
    if needs_weight:
        dw = (dz if up_weight is None else dz[:, :n]).t() @ rows_of(x)
    if needs_up:
        dup = dz[:, n:].t() @ rows_of(x)
    dbias = dbias.to(dy.dtype) if needs_bias or needs_up_bias else None
    if up_weight is not None and dbias is not None:
        dup_bias = dbias[n:] if needs_up_bias else None
        dbias = dbias[:n] if needs_bias else None
    if needs_learned:
        dlearned = dlearned.sum() if learned.numel() == 1 else dlearned
        dlearned = dlearned.reshape(learned.shape).to(learned.dtype)
    return dx, dw, dup, dbias, dup_bias, dlearned if needs_learned else None, *(None,) * 5


def _differentiable_backward(ctx, dy, x, weight, up_weight, bias, up_bias, learned) -> tuple:
    """Backward in plain torch operations, from the inputs: of a backward that will itself be differentiated, or that has no saved z."""
    if x is None:
        raise RuntimeError(
            "second derivatives of an epilogue operation need its input, which is not kept for backward while the weight is frozen; "
            "let the weight require grad, or give float64 tensors"
        )
    act, create_graph = ACTIVATIONS[ctx.activation], torch.is_grad_enabled()
    needed = ctx.needs_input_grad[:6]
    with torch.enable_grad():
        # Views, so that the gradients stop here: an input may be computed from another, or be given twice.
        tensors = [None if t is None else t.view_as(t) for t in (x, weight, up_weight, bias, up_bias, learned)]
        x, weight, up_weight, bias, up_bias, learned = tensors
        values = _values(ctx.numbers, learned, ctx.learned_at)
        if up_weight is not None:
            y = eager.glu(x, (weight, up_weight), (bias, up_bias), act, values)
        else:
            y = (eager.glu if ctx.gated else eager.linear)(x, weight, bias, act, values)
        wanted = [tensor for tensor, needs in zip(tensors, needed, strict=True) if tensor is not None and needs]
        grads = iter(torch.autograd.grad(y, wanted, dy, create_graph=create_graph))
    return *(next(grads) if needs else None for needs in needed), *(None,) * 5


def _pointwise(
    dy: Tensor, saved: Tensor, learned: Tensor | None, activation: str, numbers: list[float], learned_at: int,
    gated: bool, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dz, dbias, dparam) of linear_bwd, empty tensors where not needed."""
    act, values = ACTIVATIONS[activation], _values(numbers, learned, learned_at)
    results = linear_bwd(dy, rows_of(saved), act, values, gated, needs)
    return tuple(dy.new_empty(0) if r is None else r for r in results)  # type: ignore[return-value]


def _forward_on_cpu(
    x, weight, up_weight, bias, up_bias, learned, activation, numbers, learned_at, gated, save
) -> tuple[Tensor, Tensor]:
    """`_forward` in plain torch operations: for a graph that was made on a GPU and runs without one."""
    act, values = ACTIVATIONS[activation], _values(numbers, learned, learned_at)
    weight, up_weight, bias, up_bias = Operands(x, weight, up_weight, bias, up_bias, act, values, gated).halves()
    z = [F.linear(x, weight, bias)] + ([] if up_weight is None else [F.linear(x, up_weight, up_bias)])
    y = eager.apply(act.gated if gated else act, values, *z)
    return y, rows_of(torch.cat(z, -1)) if save and _keeps_z(act, values, gated) else x.new_empty(0)


class _Linear(torch.autograd.Function):
    forward = staticmethod(_forward)
    setup_context = staticmethod(_setup_context)

    @staticmethod
    def backward(ctx, dy, dz_unused):
        # A batch of gradients (is_grads_batched) needs the operator, which torch knows how to run row by row.
        batched = dy is not None and torch._C._functorch.is_legacy_batchedtensor(dy)
        return _backward(ctx, dy, dz_unused, torch.ops.epilogue.linear_bwd if batched else _pointwise)


def _fake_forward(
    x, weight, up_weight, bias, up_bias, learned, activation, numbers, learned_at, gated, save
) -> tuple[Tensor, Tensor]:
    packed = gated and up_weight is None
    n = weight.shape[0] // 2 if packed else weight.shape[0]
    y = x.new_empty(*x.shape[:-1], n)
    if not (save and _keeps_z(ACTIVATIONS[activation], _values(numbers, learned, learned_at), gated)):
        return y, x.new_empty(0)
    return y, x.new_empty(math.prod(x.shape[:-1]), 2 * n if gated else n)


def _fake_pointwise(dy, saved, learned, activation, numbers, learned_at, gated, needs) -> tuple[Tensor, ...]:
    (m, n), width = dy.shape, dy.shape[1] * (2 if gated else 1)
    shapes = ((m, width), (width,), (n,))
    dtypes = (dy.dtype, torch.float32, torch.float32)
    return tuple(
        dy.new_empty(shape, dtype=dtype) if needed else dy.new_empty(0)
        for shape, dtype, needed in zip(shapes, dtypes, needs, strict=True)
    )


def _operator_backward(ctx, dy, dz_unused):
    return _backward(ctx, dy, dz_unused, torch.ops.epilogue.linear_bwd)


_library = torch.library.Library("epilogue", "DEF")
_library.define(
    "linear_fwd(Tensor x, Tensor weight, Tensor? up_weight, Tensor? bias, Tensor? up_bias, Tensor? learned, str activation, "
    "float[] numbers, int learned_at, bool gated, bool save) -> (Tensor, Tensor)"
)
_library.define(
    "linear_bwd(Tensor dy, Tensor saved, Tensor? learned, str activation, float[] numbers, int learned_at, bool gated, "
    "bool[] needs) -> (Tensor, Tensor, Tensor)"
)
for _key in ("CPU", "CUDA") if INTERPRET else ("CUDA",):
    _library.impl("linear_fwd", _forward, _key)
    _library.impl("linear_bwd", _pointwise, _key)
if not INTERPRET:
    _library.impl("linear_fwd", _forward_on_cpu, "CPU")
torch.library.register_fake("epilogue::linear_fwd", _fake_forward, lib=_library)
torch.library.register_fake("epilogue::linear_bwd", _fake_pointwise, lib=_library)
torch.library.register_autograd("epilogue::linear_fwd", _operator_backward, setup_context=_setup_context, lib=_library)
