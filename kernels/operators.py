"""What the autograd operations share: how torch knows the operators, what becomes of a call's tensors, what backward is asked for."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, library
from torch._C._functorch import is_legacy_batchedtensor
from torch._decomp import register_decomposition
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import register_flop_formula

from .operands import compute_dtype, observed
from .triton import INTERPRET

_NO_LEARNED = -1

_operators = library.Library("epilogue", "FRAGMENT")


def register(
    schema: str, kernels: Callable, fake: Callable, flops: Callable, plain: Callable | None = None,
    backward: Callable | None = None, setup_context: Callable | None = None,
) -> None:  # fmt: skip
    """Make the operator known to torch: what runs it on the kernels' devices, what gives its results' shapes and dtypes to compilers, what
    counts its floating-point operations from its arguments' shapes, the same in plain torch operations (for a CPU, and for exporters that
    know torch's own alone, as ONNX's), and how it is differentiated.
    """
    name = schema.partition("(")[0]
    _operators.define(schema)
    for device in ("CPU", "CUDA") if INTERPRET else ("CUDA",):
        _operators.impl(name, kernels, device)
    if plain and not INTERPRET:
        _operators.impl(name, plain, "CPU")
    library.register_fake(f"epilogue::{name}", fake, lib=_operators)
    operator = getattr(torch.ops.epilogue, name)
    register_flop_formula(operator)(flops)
    if plain:
        register_decomposition(operator.default)(plain)
    if backward:
        library.register_autograd(f"epilogue::{name}", backward, setup_context=setup_context, lib=_operators)


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
    return tuple(_cast(t, dtype) if t is not None and t.dtype != dtype else t for t in tensors)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in autocast's dtype; a parameter's copy is the one that autocast itself caches until its region ends.

    Python has no way to that cache but an operation that autocast casts for. This one computes nothing, and its graph holds the copy.
    """
    cached = tensor.requires_grad and tensor.is_leaf and tensor.ndim in (1, 2) and torch.is_autocast_cache_enabled()
    traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    if not cached or traced or torch.is_inference_mode_enabled():
        return tensor.to(dtype)
    size = tensor.shape[-1]
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # a user's would give back a copy
    with torch.enable_grad(), saved_tensors_hooks(_itself, _itself) if hooks else nullcontext():
        if tensor.ndim == 2:
            node: Any = (tensor @ tensor.new_empty(size, 0, dtype=dtype).requires_grad_()).grad_fn
            return node._saved_self
        node = (tensor.new_empty(0, size, dtype=dtype).requires_grad_() @ tensor).grad_fn
        return node._saved_vec


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def as_seen(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Views of the tensors that users own, for autograd to keep, as nn.Linear's keeps a view of its weight.

    What it keeps of a parameter itself follows an exchange of `param.data`, as `module.to` makes it; and of a view's gradient the engine
    can say whether it is wanted. A parameter that DeepSpeed's ZeRO-3 gathers for the call and again for backward stays itself: a view would
    hold the whole of it in between. (FSDP frees the storage, a view's as well.)
    """
    return tuple(
        t if t is None or not t.is_leaf or hasattr(t, "ds_id") else t.view_as(t) if t.requires_grad else t.detach()
        for t in tensors
    )


def wanted(ctx: Any) -> list[bool]:
    """Which of the first inputs' gradients this backward is asked for; ctx.given: which of them are tensors, not None.

    `torch.autograd.grad(y, [x])` and a pipeline's backward for the inputs alone have no use for dW, though the weight requires grad. The
    engine does not tell of leaves, which `as_seen` has left few of: they are taken to be wanted.
    """
    needs = ctx.needs_input_grad[: len(ctx.given)]
    if torch.compiler.is_compiling():
        return list(needs)
    edges = iter(ctx.next_functions)
    nodes: list[Any] = [next(edges)[0] if is_tensor else None for is_tensor in ctx.given]
    return [
        need and (not node.next_functions or torch._C._will_engine_execute_node(node))
        for need, node in zip(needs, nodes, strict=True)
    ]


def in_plain_operations() -> bool:
    """Whether backward goes through plain torch operations: it will be differentiated, or a transform such as vmap is at work in it."""
    transformed = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    return torch.is_grad_enabled() or transformed


def by_operator(dy: Tensor | None) -> bool:
    """Whether backward goes through the operators: a mode or compiled autograd sees it, or a batch of gradients comes at once
    (is_grads_batched), which torch knows to run row by row."""
    return torch.compiler.is_compiling() or observed() or (dy is not None and is_legacy_batchedtensor(dy))
