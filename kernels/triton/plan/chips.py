"""The properties of a chip, and torch's settings for it."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .. import INTERPRET


class Machine(NamedTuple):
    """The properties of a chip that the model of time uses (dispatch.py)."""

    name: str
    capability: int  # 90 for compute capability 9.0
    processors: int
    shared_bytes: int  # at most, for one block
    clock: float  # the highest, GHz
    bandwidth: float  # the device memory's, bytes per ns
    l2_bytes: int
    interpreted: bool = False

    @property
    def descriptors(self) -> bool:
        """True if the chip has TMA."""
        return self.capability >= 90


CHIPS = {
    "A100": Machine("NVIDIA A100-SXM4-80GB", 80, 108, 163 * 1024, 1.41, 2039, 40 * 1024**2),
    "H100": Machine("NVIDIA H100 80GB HBM3", 90, 132, 227 * 1024, 1.98, 3352, 50 * 1024**2),
    "H200": Machine("NVIDIA H200", 90, 132, 227 * 1024, 1.98, 4800, 50 * 1024**2),
    "B200": Machine("NVIDIA B200", 100, 148, 227 * 1024, 1.965, 8000, 126 * 1024**2),
}
"""Chips by their data sheets, for questions about one that is not here."""

# Two processors, so that a program walks over several tiles there too. The speeds are an H200's.
INTERPRETER = CHIPS["H200"]._replace(name="Triton's interpreter", processors=2, interpreted=True)


def machine(x: Tensor) -> Machine:
    """The chip that x lives on."""
    return INTERPRETER if INTERPRET and x.is_cpu else gpu(x.device.index)


@functools.cache
def gpu(index: int) -> Machine:
    """The GPU of that index, as torch and the driver describe it."""
    from triton.runtime import driver

    torchs = torch.cuda.get_device_properties(index)
    # Triton's, since torch has the clocks only with some versions of CUDA; kHz, and two transfers a cycle
    tritons = driver.active.utils.get_device_properties(index)
    bandwidth = 2e-6 * tritons["mem_clock_rate"] * tritons["mem_bus_width"] / 8
    return Machine(
        name=torchs.name,
        capability=10 * torchs.major + torchs.minor,
        processors=torchs.multi_processor_count,
        shared_bytes=tritons["max_shared_mem"],
        clock=1e-6 * tritons["sm_clock_rate"],
        bandwidth=bandwidth or 300.0,  # integrated chips report no memory clock
        l2_bytes=torchs.L2_cache_size,
    )


def precision(dtype: torch.dtype) -> str:
    """tl.dot's input precision: float32 products follow torch's own TF32 setting, which is off unless the user turns it on."""
    if dtype != torch.float32:
        return "tf32"  # means nothing for 16-bit operands; always the same, so that they share a kernel
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # since torch 2.9, where the older getters raise once a user has set this one
        return "tf32" if matmul.fp32_precision in ("tf32", "bf16") else "ieee"
    return "tf32" if matmul.allow_tf32 else "ieee"
