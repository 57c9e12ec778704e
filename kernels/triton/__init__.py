"""The Triton backend. This file imports neither Triton nor a kernel: it says whether the kernels serve some tensors."""

import importlib.util
import os
from typing import Any

import torch

from ..operands import unserved

INTERPRET = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


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
    return unserved(x, weight)
