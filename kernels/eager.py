"""Every operation in plain differentiable torch operations: for CPU tensors, float64 and everything that a kernel refuses.

The activation is torch's own function, so gradients of every order, functorch, tensor subclasses and compilers see ordinary torch code.
Results have the dtype of the product: under autocast that is autocast's, as for nn.Linear.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.checkpoint import checkpoint

from .catalogue import Activation


def is_plain(tensor: Tensor) -> bool:
    """True if the tensor is its memory and nothing more: no DTensor, no quantised weight.

    A tracer's stand-in counts as the tensor that it stands for.
    """
    return type(tensor) in (Tensor, torch.nn.Parameter) or (
        torch.compiler.is_compiling() and not is_traceable_wrapper_subclass(tensor)
    )


def apply(act: Activation, values: tuple, z: Tensor, up: Tensor | None = None) -> Tensor:
    """act(z) or act(z, up), torch's own; learnable tensors broadcast along the last axis."""
    if up is None and not values:
        y = act.oracle(F, z)  # the usual call, without the cost of unpacking
    else:
        values = tuple(value.to(z.dtype) if isinstance(value, Tensor) else value for value in values)
        y = act.oracle(F, *((z,) if up is None else (z, up)), *values)
    return y if y.dtype is z.dtype else y.to(z.dtype)  # autocast runs some activations in float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, act: Activation, values: tuple) -> Tensor:
    """act(x Wᵀ + b): x [..., K], weight [N, K], bias [N] -> [..., N]."""
    return apply(act, values, F.linear(x, weight, bias))


def glu(x: Tensor, weight, bias, act: Activation, values: tuple) -> Tensor:
    """act(x Gᵀ + bg) ⊙ (x Uᵀ + bu): weight packed [2F, K] or a pair of [F, K], bias the same way -> [..., F]."""
    if isinstance(weight, Tensor) and x.is_nested:  # torch cannot halve a nested result
        weight, bias = weight.chunk(2), None if bias is None else bias.chunk(2)
    if isinstance(weight, Tensor):
        gate, up = F.linear(x, weight, bias).chunk(2, -1)
    else:
        gate_bias, up_bias = bias or (None, None)
        gate, up = F.linear(x, weight[0], gate_bias), F.linear(x, weight[1], up_bias)
    return apply(act.gated, values, gate, up)


def mlp(
    x, up_weight, down_weight, up_bias, down_bias, act: Activation, values: tuple, dropout_p=0.0, recompute=False
) -> Tensor:
    """dropout(act(x W₁ᵀ + b₁)) W₂ᵀ + b₂: up_weight [H, K], down_weight [N, H] -> [..., N]."""

    def block(x):
        return down(linear(x, up_weight, up_bias, act, values), down_weight, down_bias, dropout_p)

    return recomputed(block, x) if recompute else block(x)


def gated_mlp(
    x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias, act: Activation, values: tuple,
    dropout_p=0.0, recompute=False,
) -> Tensor:  # fmt: skip
    """dropout(act(x Gᵀ + bg) ⊙ (x Uᵀ + bu)) Dᵀ + bd: gate and up [H, K], or gate [2H, K] packed and no up; down [N, H] -> [..., N]."""
    packed = up_weight is None
    weight, bias = (gate_weight, gate_bias) if packed else ((gate_weight, up_weight), (gate_bias, up_bias))

    def block(x):
        return down(glu(x, weight, bias, act, values), down_weight, down_bias, dropout_p)

    return recomputed(block, x) if recompute else block(x)


def recomputed(block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """block(x), keeping x alone for backward. torch.func's transforms and nested tensors do not allow checkpoints:
    there everything is kept."""
    transformed = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    if not torch.is_grad_enabled() or transformed or x.is_nested:
        return block(x)
    return checkpoint(block, x, use_reentrant=False)


def down(h: Tensor, weight: Tensor, bias: Tensor | None, dropout_p: float) -> Tensor:
    """dropout(h) Wᵀ + b: the second half of an MLP."""
    return F.linear(F.dropout(h, dropout_p) if dropout_p else h, weight, bias)
