"""`linear` and `glu` as differentiable torch operations: what is saved, which gradients are computed, how compilers see them.

`epilogue::linear_fwd` and `epilogue::linear_bwd` are opaque to torch.compile and torch.export. Without a compiler the same functions run
as an autograd.Function, whose call costs half as much.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library

from . import eager
from .catalogue import ACTIVATIONS, Activation
from .operands import Operands, compute_dtype, rows_of
from .triton import INTERPRET

_NO_LEARNED = -1


def launchers(backend: str) -> Any:
    """The module of a backend's launchers: linear_fwd, act_bwd, linear_dact and dropout_mask."""
    if backend == "cupy":
        from .cupy import tensors

        return tensors
    from .triton import launchers

    return launchers


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
    if not serves(act, values, gated):
        if up_weight is not None:
            weight, bias = (weight, up_weight), (bias, up_bias)
        return (eager.glu if gated else eager.linear)(x, weight, bias, act, values)
    learned, numbers, learned_at = split(values)
    tensors = (*cast(x, x, weight, up_weight, bias, up_bias), learned)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    keep = ("input" if gated else act.saves(values)) if save else "nothing"
    arguments: tuple[Any, ...] = (*tensors, act.name, numbers, learned_at, gated, keep, backend)
    if torch.compiler.is_compiling():
        return torch.ops.epilogue.linear_fwd(*arguments)[0]
    return (_Linear.apply if save else layer_forward)(*arguments)[0]


def serves(act: Activation, values: tuple, gated: bool) -> bool:
    """Whether the operations do: their schemas have room for one learnable tensor, and without an activation the product is cuBLAS's."""
    return sum(isinstance(value, Tensor) for value in values) <= 1 and (gated or act.name != "identity")


def split(values: tuple) -> tuple[Tensor | None, list[float], int]:
    """(the learnable tensor, the numbers with 0 in its place, its place), as the schemas take parameters; `joined` undoes it."""
    at = next((i for i, value in enumerate(values) if isinstance(value, Tensor)), _NO_LEARNED)
    numbers = [0.0 if isinstance(value, Tensor) else value for value in values]
    return None if at == _NO_LEARNED else values[at], numbers, at


def joined(numbers, learned: Tensor | None, learned_at: int) -> tuple:
    values = list(numbers)
    if learned is not None:
        values[learned_at] = learned
    return tuple(values)


def cast(x: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in the dtype of the product with x."""
    dtype = compute_dtype(x)
    return tuple(t.to(dtype) if t is not None and t.dtype != dtype else t for t in tensors)


def layer_forward(
    x: Tensor, weight: Tensor, up_weight: Tensor | None, bias: Tensor | None, up_bias: Tensor | None,
    learned: Tensor | None, activation: str, numbers: list[float], learned_at: int, gated: bool, keep: str,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y [..., N], z [M, N] or gate|up [M, 2N] where keep says "input", else empty)."""
    act, values = ACTIVATIONS[activation], joined(numbers, learned, learned_at)
    operands = Operands(x, weight, up_weight, bias, up_bias, act, values, gated)
    y, z = launchers(backend).linear_fwd(operands, keep)
    return y, x.new_empty(0) if z is None else z


def _setup_context(ctx, inputs, output) -> None:
    x, weight, up_weight, bias, up_bias, learned, activation, numbers, learned_at, gated, keep, backend = inputs
    ctx.set_materialize_grads(False)
    saved = {"input": output[1], "output": output[0], "nothing": None}[keep]
    keeps_x = any(ctx.needs_input_grad[1:3]) or keep == "nothing"  # a frozen weight costs no x
    ctx.save_for_backward(saved, x if keeps_x else None, weight, up_weight, bias, up_bias, learned)
    ctx.activation, ctx.numbers, ctx.learned_at, ctx.gated = activation, numbers, learned_at, gated
    ctx.leading, ctx.backend = x.shape[:-1], backend


def _backward(ctx, dy: Tensor | None, dz_unused: Tensor | None, pointwise: Any) -> tuple:
    """Gradients of `layer_forward`'s six tensors; `pointwise` is `_pointwise`, as a function or as an operator."""
    if dy is None:
        return (None,) * 12
    saved, x, weight, up_weight, bias, up_bias, learned = ctx.saved_tensors
    needs = ctx.needs_input_grad[:6]
    if torch.is_grad_enabled() or saved is None:
        act = ACTIVATIONS[ctx.activation]

        def operation(x, weight, up_weight, bias, up_bias, learned):
            return hidden_layer(
                x, weight, up_weight, bias, up_bias, act, joined(ctx.numbers, learned, ctx.learned_at), ctx.gated
            )

        return *differentiable(operation, (x, weight, up_weight, bias, up_bias, learned), needs, dy), *(None,) * 6
    dy = rows_of(dy.resolve_neg())  # autograd of complex numbers negates lazily, by a bit that a kernel cannot see
    wanted = [any(needs[:3]), any(needs[3:5]), needs[5]]
    call = (ctx.activation, ctx.numbers, ctx.learned_at, ctx.gated, wanted, ctx.backend)
    dz, dbias, dlearned = pointwise(dy, saved, learned, *call)
    return *layer_gradients(dz, dbias, dlearned, x, weight, up_weight, learned, needs, ctx.leading), *(None,) * 6


def layer_gradients(dz, dbias, dlearned, x, weight, up_weight, learned, needs, leading) -> tuple:
    """Gradients of x, weight, up_weight, bias, up_bias and learned, from dz [M, N], or dgate|dup [M, 2N] of a gated layer."""
    n = weight.shape[0]
    dgate, dgate_bias = (dz, dbias) if up_weight is None else (dz[:, :n], dbias[:n])
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


def hidden_layer(x, weight, up_weight, bias, up_bias, act: Activation, values: tuple, gated: bool) -> Tensor:
    """What the kernels compute, in plain torch operations."""
    if up_weight is not None:
        return eager.glu(x, (weight, up_weight), (bias, up_bias), act, values)
    return (eager.glu if gated else eager.linear)(x, weight, bias, act, values)


def differentiable(operation: Callable, inputs: tuple, needs, dy: Tensor) -> tuple:
    """The gradients in plain torch operations, from the inputs: of a backward that will be differentiated, or that has no saved z."""
    if inputs[0] is None:
        raise RuntimeError(
            "second derivatives of an epilogue operation need its input, which is not kept for backward while the weight is frozen; "
            "let the weight require grad, or give float64 tensors"
        )
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that the gradients stop here: an input may be computed from another, or be given twice.
        inputs = tuple(None if t is None else t.view_as(t) for t in inputs)
        wanted = [t for t, needed in zip(inputs, needs, strict=True) if t is not None and needed]
        grads = iter(torch.autograd.grad(operation(*inputs), wanted, dy, create_graph=create_graph))
    return tuple(next(grads) if needed else None for needed in needs)


def _pointwise(
    dy: Tensor, saved: Tensor, learned: Tensor | None, activation: str, numbers: list[float], learned_at: int,
    gated: bool, needs: list[bool], backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dz, dbias, dparam) of act_bwd, empty tensors where not needed."""
    act, values = ACTIVATIONS[activation], joined(numbers, learned, learned_at)
    kept = "input" if gated else act.saves(values)
    wanted = (needs[0], False, *needs[1:])
    dz, _, *sums = launchers(backend).act_bwd(dy, rows_of(saved), kept, act, values, gated, None, wanted)
    results = (dz, *sums)
    return tuple(dy.new_empty(0) if r is None else r for r in results)  # type: ignore[return-value]


def _forward_on_cpu(
    x, weight, up_weight, bias, up_bias, learned, activation, numbers, learned_at, gated, keep, backend
) -> tuple[Tensor, Tensor]:
    """`layer_forward` in plain torch operations: for a graph that was made on a GPU and runs without one."""
    act, values = ACTIVATIONS[activation], joined(numbers, learned, learned_at)
    weight, up_weight, bias, up_bias = Operands(x, weight, up_weight, bias, up_bias, act, values, gated).halves()
    z = [F.linear(x, weight, bias)] + ([] if up_weight is None else [F.linear(x, up_weight, up_bias)])
    y = eager.apply(act.gated if gated else act, values, *z)
    return y, rows_of(torch.cat(z, -1)) if keep == "input" else x.new_empty(0)


class _Linear(torch.autograd.Function):
    forward = staticmethod(layer_forward)
    setup_context = staticmethod(_setup_context)

    @staticmethod
    def backward(ctx, dy, dz_unused):
        return _backward(ctx, dy, dz_unused, torch.ops.epilogue.linear_bwd if batched(dy) else _pointwise)


def batched(dy: Tensor | None) -> bool:
    """A batch of gradients (is_grads_batched) needs the operator, which torch knows how to run row by row."""
    return dy is not None and torch._C._functorch.is_legacy_batchedtensor(dy)


def _fake_forward(
    x, weight, up_weight, bias, up_bias, learned, activation, numbers, learned_at, gated, keep, backend
) -> tuple[Tensor, Tensor]:
    n = weight.shape[0] // 2 if gated and up_weight is None else weight.shape[0]
    y = x.new_empty(*x.shape[:-1], n)
    return y, x.new_empty(math.prod(x.shape[:-1]), 2 * n if gated else n) if keep == "input" else x.new_empty(0)


def _fake_pointwise(dy, saved, learned, activation, numbers, learned_at, gated, needs, backend) -> tuple[Tensor, ...]:
    (m, n), width = dy.shape, dy.shape[1] * (2 if gated else 1)
    shapes = ((m, width), (width,), (n,))
    dtypes = (dy.dtype, torch.float32, torch.float32)
    return tuple(
        dy.new_empty(shape, dtype=dtype) if needed else dy.new_empty(0)
        for shape, dtype, needed in zip(shapes, dtypes, needs, strict=True)
    )


def _operator_backward(ctx, dy, dz_unused):
    return _backward(ctx, dy, dz_unused, torch.ops.epilogue.linear_bwd)


_operators = library.Library("epilogue", "FRAGMENT")


def register(
    schema: str, kernels: Callable, fake: Callable, on_cpu: Callable | None = None, backward: Callable | None = None,
    setup_context: Callable | None = None,
) -> None:  # fmt: skip
    """Make the operator known to torch: what runs it on the kernels' devices, what gives its results' shapes and dtypes to compilers, what
    runs it on a CPU without kernels, and how it is differentiated.
    """
    name = schema.partition("(")[0]
    _operators.define(schema)
    for device in ("CPU", "CUDA") if INTERPRET else ("CUDA",):
        _operators.impl(name, kernels, device)
    if on_cpu and not INTERPRET:
        _operators.impl(name, on_cpu, "CPU")
    library.register_fake(f"epilogue::{name}", fake, lib=_operators)
    if backward:
        library.register_autograd(f"epilogue::{name}", backward, setup_context=setup_context, lib=_operators)


register(
    "linear_fwd(Tensor x, Tensor weight, Tensor? up_weight, Tensor? bias, Tensor? up_bias, Tensor? learned, str activation, "
    "float[] numbers, int learned_at, bool gated, str keep, str backend) -> (Tensor, Tensor)",
    layer_forward, _fake_forward, _forward_on_cpu, _operator_backward, _setup_context,
)  # fmt: skip
register(
    "linear_bwd(Tensor dy, Tensor saved, Tensor? learned, str activation, float[] numbers, int learned_at, bool gated, "
    "bool[] needs, str backend) -> (Tensor, Tensor, Tensor)",
    _pointwise, _fake_pointwise,
)  # fmt: skip
