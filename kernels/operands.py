"""The operands that a call of torch tensors brings to any backend's kernels, and the reasons why no kernel can serve it."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .catalogue import Activation
from .eager import is_plain

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def tensor_refusal(x: Tensor, weight: Any) -> str | None:
    """The reason why no kernel serves x with this weight (or pair of weights), or None."""
    if compute_dtype(x) not in DTYPES:
        return f"{x.dtype} runs plain torch operations"
    tensors = (x, *(weight if isinstance(weight, (tuple, list)) else (weight,)))
    for tensor in tensors:
        if not is_plain(tensor):
            return "a tensor subclass runs plain torch operations"
        if tensor.layout is not torch.strided or tensor.is_nested:
            return "sparse and nested tensors run plain torch operations"
    # Asked before is_compiling(), because a compiler traces through a transform, too.
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return "torch.func transforms and forward-mode derivatives run plain torch operations"
    if torch.compiler.is_compiling():
        return None
    for tensor in tensors:
        if tensor.is_neg():
            return "a lazily negated tensor runs plain torch operations"
        if torch.is_grad_enabled() and tensor.is_inference():
            return "tensors made in inference mode, of which autograd keeps none, run plain torch operations"
    if torch.jit.is_tracing():
        return "torch.jit.trace runs plain torch operations"
    return None


def activation_refusal(act: Activation, values: tuple, gated: bool) -> str | None:
    """The reason why no kernel serves a layer with this activation, or None."""
    if act.name == "identity" and not gated:
        return "without an activation the product is cuBLAS's"
    return None


def observed() -> bool:
    """True if a mode sees torch's operations in this thread, and may keep what they return: a tracer, a FLOP counter, selective
    checkpointing. The mode would not see a bare launch, so kernels then run through registered operators.
    """
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._len_torch_function_stack() > 0


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the product: that of x, or autocast's (which leaves float64 alone), as for nn.Linear."""
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


class Dropout(NamedTuple):
    """A dropout's probability, and the 64-bit seed from which forward and backward draw the same mask."""

    p: float
    seed: Tensor

    def argument(self) -> tuple[Tensor, int, float]:
        """The kernels' arguments: the seed, the threshold that an element's 32 random bits must reach for it to stay, and 1/(1-p)."""
        threshold = min(round(self.p * 2**32), 2**32 - 1) - 2**31
        return self.seed, threshold, 1.0 / (1.0 - self.p) if self.p < 1.0 else 0.0


def draw_seed(device: torch.device) -> Tensor:
    """Draw a seed from torch's generator of that device, so that manual_seed, checkpointing and CUDA graphs govern it. It stays on the
    device, so that nothing waits for it.
    """
    return torch.randint(2**63 - 1, (1,), device=device)


class Layer(NamedTuple):
    """The tensors of a layer: x [..., K], one or two weights with their biases, and the activation's learnable tensor.

    Several learnable tensors are the rows of one, [P, N] or [P, 1].

    weight is [N, K]. In a gated layer it is gate's, beside up_weight, or both packed as [2N, K] without up_weight. bias has the same form.
    """

    x: Tensor
    weight: Tensor
    up_weight: Tensor | None = None
    bias: Tensor | None = None
    up_bias: Tensor | None = None
    learned: Tensor | None = None

    @classmethod
    def first_of(cls, inputs: tuple) -> tuple:
        """The layer that the inputs begin with, field by field, and the rest of them."""
        n = len(cls._fields)
        return cls(*inputs[:n]), *inputs[n:]

    def in_rows(self, gated: bool) -> "Layer":
        """The layer as kernels take it: x [M, K], packed weights and biases as two views, biases of stride 1 and not lazily negated."""
        x, weight, up_weight, bias, up_bias, learned = self
        bias = bias if bias is None else bias.resolve_neg().contiguous()
        up_bias = up_bias if up_bias is None else up_bias.resolve_neg().contiguous()
        if gated and up_weight is None:
            n = weight.shape[0] // 2
            weight, up_weight = weight[:n], weight[n:]
            bias, up_bias = (None, None) if bias is None else (bias[:n], bias[n:])
        return Layer(rows_of(x), weight, up_weight, bias, up_bias, learned)


def halves(matrix: Tensor | None, n: int, gated: bool) -> tuple[Tensor | None, Tensor | None]:
    """(gate, up) of a gated layer's [M, 2N], else (the matrix, None)."""
    return (matrix, None) if matrix is None or not gated else (matrix[:, :n], matrix[:, n:])


def rows_of(x: Tensor) -> Tensor:
    """x [..., N] as a matrix [M, N], a view where its strides allow one."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def saturated(z: Tensor) -> Tensor:
    """The kept pre-activation z as backward takes it: as in the kernels, float16's infinity becomes its largest number."""
    return z.clamp(-65504.0, 65504.0) if z.dtype == torch.float16 else z


def packed(y: Tensor) -> Tensor:
    """y [M, N] > 0, one bit per element: uint8 [M, ⌈N/8⌉], the first of eight columns in the lowest bit, as the kernels store it."""
    bits = torch.nn.functional.pad(y > 0, (0, -y.shape[1] % 8)).unflatten(1, (-1, 8)).to(torch.uint8)
    return (bits << torch.arange(8, device=y.device, dtype=torch.uint8)).sum(2, dtype=torch.uint8)


def unpacked(signs: Tensor, like: Tensor) -> Tensor:
    """The bits of `packed` as 1 and 0, in the shape [M, N] and dtype of `like`."""
    bits = signs[:, :, None] >> torch.arange(8, device=signs.device, dtype=torch.uint8)
    return (bits & 1).flatten(1)[:, : like.shape[1]].to(like.dtype)
