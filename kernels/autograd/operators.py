"""The parts that the autograd operations share: registration with torch, the treatment of a call's tensors, the gradients asked for."""

import functools
import inspect
import itertools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor, library
from torch._C._functorch import is_legacy_batchedtensor
from torch._decomp import register_decomposition
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import register_flop_formula

from ..applied import Applied
from ..backends import kernels
from ..catalogue import ACTIVATIONS, Keep
from ..operands import Dropout, compute_dtype, observed
from ..triton import INTERPRET

_operators = library.Library("epilogue", "FRAGMENT")


class Call(NamedTuple):
    """A call's arguments beside its tensors, in types that the operators' schemas allow."""

    activation: str
    numbers: list[float]
    """The activation's parameters, with 0 in place of those that are tensors."""
    learned_at: list[int]
    """The indices of the parameters that are tensors."""
    gated: bool
    dropout_p: float
    keep: Keep
    backend: str

    def applied(self, learned: Tensor | None, seed: Tensor | None = None) -> Applied:
        """The activation with its learnable tensors and, where there is a seed, a dropout."""
        values: list[Any] = [*self.numbers]
        if learned is not None:
            for at, value in zip(self.learned_at, learned if len(self.learned_at) > 1 else (learned,), strict=True):
                values[at] = value
        dropout = None if seed is None else Dropout(self.dropout_p, seed)
        return Applied(ACTIVATIONS[self.activation], tuple(values), self.gated, dropout)

    def launchers(self) -> Any:
        return kernels(self.backend).launchers()


def split(values: tuple) -> tuple[Tensor | None, list[float], list[int]]:
    """(the learnable tensor, or several as the rows of one, `numbers` and `learned_at` of a Call)."""
    learned_at = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
    numbers = [0.0 if i in learned_at else value for i, value in enumerate(values)]
    tensors = [values[i] for i in learned_at]
    if len(tensors) > 1:
        return torch.stack(torch.broadcast_tensors(*(tensor.reshape(-1) for tensor in tensors))), numbers, learned_at
    return tensors[0] if tensors else None, numbers, learned_at


def register(
    function: Callable, fake: Callable, flops: Callable, plain: Callable | None = None,
    backward: Callable | None = None, setup_context: Callable | None = None,
) -> Callable[..., Any]:  # fmt: skip
    """Register the operator epilogue::<the function's name> with torch. Return it as a function with the arguments of `function`.

    The operator's schema lists the fields of the function's records (`Layer`, `Call`, …) one after another. flops takes them in this form;
    the other functions take the arguments of `function`.

    function: runs the operator on the kernels' devices. fake: tells compilers the shapes and dtypes of its results. flops: counts its
    floating-point operations from its arguments' shapes. plain: computes the same in plain torch operations, for a CPU and for exporters
    that know only torch's own operators, such as ONNX's. backward and setup_context: its derivative, as in an autograd.Function. backward
    returns the gradients of the first arguments, those that can have one.
    """
    name, hints = function.__name__, get_type_hints(function)
    records = [hints[parameter] for parameter in inspect.signature(function).parameters]
    fields = _fields(function, records)

    def of_fields(function: Callable) -> Callable:
        return functools.wraps(function)(lambda *values: function(*_grouped(records, values)))

    operator_kernels = of_fields(function)
    operator_kernels.__signature__ = inspect.Signature(fields, return_annotation=hints["return"])  # type: ignore[attr-defined]
    _operators.define(library.infer_schema(operator_kernels, mutates_args=(), op_name=name))
    for device in ("CPU", "CUDA") if INTERPRET else ("CUDA",):
        _operators.impl(name, operator_kernels, device)
    library.register_fake(f"epilogue::{name}", of_fields(fake), lib=_operators)
    operator = getattr(torch.ops.epilogue, name)
    register_flop_formula(operator)(flops)
    if plain:
        if not INTERPRET:
            _operators.impl(name, of_fields(plain), "CPU")
        register_decomposition(operator.default)(of_fields(plain))
    if backward and setup_context:

        def setup(ctx: Any, inputs: tuple, output: Any) -> None:
            setup_context(ctx, _grouped(records, inputs), output)

        def gradients(ctx: Any, *outputs: Tensor | None) -> tuple:
            found = backward(ctx, *outputs)
            return *found, *(None,) * (len(fields) - len(found))

        library.register_autograd(f"epilogue::{name}", gradients, setup_context=setup, lib=_operators)

    def of_records(*arguments: Any) -> Any:
        values: list[Any] = []
        for argument in arguments:
            # Not `values +=`, which torch 2.11 does not trace with a named tuple.
            values.extend(argument if isinstance(argument, tuple) else [argument])
        return operator(*values)

    return of_records


def _fields(function: Callable, records: list) -> list[inspect.Parameter]:
    """The function's parameters, with each record replaced by its fields."""
    hints: dict[str, Any] = {}
    for name, record in zip(inspect.signature(function).parameters, records, strict=True):
        hints |= get_type_hints(record) if hasattr(record, "_fields") else {name: record}
    hints = {name: str if hint is Keep else hint for name, hint in hints.items()}
    return [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=hint)
        for name, hint in hints.items()
    ]


def _grouped(records: list, values: tuple) -> tuple:
    """The function's arguments: the values, with the fields of each record grouped into it."""
    rest = iter(values)
    return tuple(
        record(*itertools.islice(rest, len(record._fields))) if hasattr(record, "_fields") else next(rest)
        for record in records
    )


def cast(x: Tensor, *tensors: Tensor | None) -> list[Any]:
    """Cast the tensors to the dtype of the product with x."""
    dtype = compute_dtype(x)
    return [t if t is None or t.dtype == dtype else _cast(t, dtype) for t in tensors]


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast the tensor to autocast's dtype. A parameter's copy is the one that autocast itself caches until its region ends.

    Python can reach that cache only through an operation that autocast casts for. The one here computes nothing, and its graph holds the
    copy.
    """
    cached = tensor.requires_grad and tensor.is_leaf and tensor.ndim in (1, 2) and torch.is_autocast_cache_enabled()
    traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    if not cached or traced or torch.is_inference_mode_enabled():
        return tensor.to(dtype)
    size = tensor.shape[-1]
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # a user's hooks would give back a copy
    with torch.enable_grad(), saved_tensors_hooks(_itself, _itself) if hooks else nullcontext():
        if tensor.ndim == 2:
            node: Any = (tensor @ tensor.new_empty(size, 0, dtype=dtype).requires_grad_()).grad_fn
            return node._saved_self
        node = (tensor.new_empty(0, size, dtype=dtype).requires_grad_() @ tensor).grad_fn
        return node._saved_vec


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def as_seen(*tensors: Tensor | None) -> list[Any]:
    """Views of the tensors that users own, for autograd to keep, as nn.Linear's keeps a view of its weight.

    A kept parameter would follow an exchange of its `param.data`, as `module.to` makes it; a view does not. Also, the engine can say
    whether a view's gradient is wanted. DeepSpeed's ZeRO-3 gathers a parameter for the call and again for backward. Such a parameter is
    kept itself, because a view would hold the whole of it in between. (FSDP frees the storage, and so a view's as well.)
    """
    return [
        t if t is None or not t.is_leaf or hasattr(t, "ds_id") else t.view_as(t) if t.requires_grad else t.detach()
        for t in tensors
    ]


class Wanted(NamedTuple):
    """The tensors whose gradients autograd asks a backward for."""

    x: bool
    weight: bool
    up_weight: bool
    bias: bool
    up_bias: bool
    learned: bool
    down_weight: bool = False
    down_bias: bool = False


def wanted(ctx: Any) -> Wanted:
    """Find which of the first inputs' gradients backward is asked for. ctx.given says which of these inputs are tensors, not None.

    `torch.autograd.grad(y, [x])` and a pipeline's backward for the inputs alone have no use for dW, though the weight requires grad. The
    engine cannot say this of a leaf, whose gradient is then taken to be wanted. `as_seen` has left few leaves.
    """
    required = ctx.needs_input_grad[: len(ctx.given)]
    if torch.compiler.is_compiling():
        return Wanted(*required)
    edges = iter(ctx.next_functions)
    nodes: list[Any] = [next(edges)[0] if is_tensor else None for is_tensor in ctx.given]
    return Wanted(
        *(
            requires and (not node.next_functions or torch._C._will_engine_execute_node(node))
            for requires, node in zip(required, nodes, strict=True)
        )
    )


def in_plain_operations() -> bool:
    """True if backward runs plain torch operations: it will be differentiated, or a transform such as vmap is at work in it."""
    transformed = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    return torch.is_grad_enabled() or transformed


def by_operator(dy: Tensor | None) -> bool:
    """True if backward runs the operators: a mode or compiled autograd sees it, or a batch of gradients comes at once
    (is_grads_batched), for which torch runs an operator row by row.
    """
    return torch.compiler.is_compiling() or observed() or (dy is not None and is_legacy_batchedtensor(dy))
