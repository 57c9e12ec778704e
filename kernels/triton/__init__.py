"""The Triton backend. This file imports neither Triton nor a kernel: it says whether the kernels serve given tensors."""

import importlib.metadata
import importlib.util
import os
from typing import Any

import torch

from ..operands import tensor_refusal

INTERPRET = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def missing() -> str | None:
    """The reason why no kernel can run in this process at all, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.version.hip is not None:
        return "the kernels are for NVIDIA GPUs, this torch is for AMD's"
    return interpreter_refusal() if INTERPRET else None


def interpreter_refusal() -> str | None:
    """The reason why Triton's interpreter does not work here, or None. Before 3.7 it turns arrays into numbers, as NumPy 2.4 forbids."""
    triton, numpy = release("triton"), release("numpy")
    if triton and numpy and triton < (3, 7) and numpy >= (2, 4):
        found = "the interpreter of Triton {}.{} does not work with NumPy {}.{}".format(*triton, *numpy)
        return f"{found}; it needs numpy<2.4, or triton>=3.7"
    return None


def release(package: str) -> tuple[int, ...] | None:
    """(major, minor) of an installed package, or None."""
    try:
        return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return None


_MISSING = missing()


def refusal(x: torch.Tensor, weight: Any) -> str | None:
    """The reason why the kernels do not serve x with this weight (or pair of weights), or None where they do."""
    if _MISSING:
        return _MISSING
    device = x.device
    if device.type == "cuda":
        if torch.cuda.get_device_properties(device).major < 8:
            return "the GPU is older than compute capability 8.0"
    elif device.type != "cpu" or not INTERPRET:
        return f"{device.type} tensors run plain torch operations"
    return tensor_refusal(x, weight)
