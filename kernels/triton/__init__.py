"""The Triton backend. This file imports neither Triton nor a kernel: it says whether the kernels serve some tensors."""

import importlib.util
import os
from typing import Any

import torch

from ..eager import is_plain

INTERPRET = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def missing() -> str | None:
    """Why no kernel can run in this process at all, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.version.hip is not None:
        return "the kernels are for NVIDIA GPUs, this torch is for AMD's"
    return None


_MISSING = missing()


def refusal(x: torch.Tensor, weight: Any) -> str | None:
    """Why the kernels do not serve x with this weight (or pair of weights), or None where they do."""
    if _MISSING:
        return _MISSING
    device = x.device
    if device.type == "cuda":
        if torch.cuda.get_device_properties(device).major < 8:
            return "the GPU is older than compute capability 8.0"
    elif device.type != "cpu" or not INTERPRET:
        return f"{device.type} tensors run plain torch operations"
    if compute_dtype(x) not in DTYPES:
        return f"{x.dtype} runs plain torch operations"
    tensors = (x, *(weight if isinstance(weight, (tuple, list)) else (weight,)))
    if not all(is_plain(tensor) for tensor in tensors):
        return "a tensor subclass runs plain torch operations"
    if any(tensor.layout is not torch.strided for tensor in tensors):
        return "sparse tensors run plain torch operations"
    if torch.compiler.is_compiling():
        return None
    if any(tensor.is_neg() for tensor in tensors):
        return "a lazily negated tensor runs plain torch operations"
    if torch.jit.is_tracing():
        return "torch.jit.trace runs plain torch operations"
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return "torch.func transforms and forward-mode derivatives run plain torch operations"
    return None


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of the product: that of x, or autocast's (which leaves float64 alone), as for nn.Linear."""
    if x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
