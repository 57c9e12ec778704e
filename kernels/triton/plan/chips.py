"""The properties of a chip, and torch's settings for it."""

import functools
import re
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

    @property
    def halved(self) -> bool:
        """True if its matrix units sum in float32 at half their rate."""
        return "GeForce" in self.name


CHIPS = {
    "A10": Machine("NVIDIA A10", 86, 72, 99 * 1024, 1.695, 600, 6 * 1024**2),  # 125 TFLOP/s
    "A100": Machine("NVIDIA A100-SXM4-80GB", 80, 108, 163 * 1024, 1.41, 2039, 40 * 1024**2),  # 312
    "A100 PCIe": Machine("NVIDIA A100 80GB PCIe", 80, 108, 163 * 1024, 1.41, 1935, 40 * 1024**2),  # 312
    "A100 40GB": Machine(
        "NVIDIA A100-SXM4-40GB", 80, 108, 163 * 1024, 1.41, 1555, 40 * 1024**2
    ),  # 312, the PCIe card too
    "L4": Machine("NVIDIA L4", 89, 58, 99 * 1024, 2.04, 300, 48 * 1024**2),  # 121
    "L40S": Machine("NVIDIA L40S", 89, 142, 99 * 1024, 2.52, 864, 96 * 1024**2),  # 362
    "RTX 3090": Machine("NVIDIA GeForce RTX 3090", 86, 82, 99 * 1024, 1.695, 936, 6 * 1024**2),  # 71
    "RTX 4090": Machine("NVIDIA GeForce RTX 4090", 89, 128, 99 * 1024, 2.52, 1008, 72 * 1024**2),  # 165
    "RTX 5090": Machine("NVIDIA GeForce RTX 5090", 120, 170, 99 * 1024, 2.407, 1792, 96 * 1024**2),  # 209.5
    "H100": Machine("NVIDIA H100 80GB HBM3", 90, 132, 227 * 1024, 1.98, 3352, 50 * 1024**2),  # 989 at 1.83 GHz
    "H200": Machine("NVIDIA H200", 90, 132, 227 * 1024, 1.98, 4800, 50 * 1024**2),  # 989 at 1.83 GHz
    "B200": Machine("NVIDIA B200", 100, 148, 227 * 1024, 1.965, 8000, 126 * 1024**2),  # 2250 at 1.86 GHz
    "GB200": Machine("NVIDIA GB200", 100, 148, 227 * 1024, 2.062, 8000, 126 * 1024**2),  # 2500, one GPU of the two
}
"""Chips by their data sheets, for questions about one that is not here; beside each its dense bfloat16 TFLOP/s there.

NVIDIA's data sheets of the A10, A100, L4, L40S, H100, H200, HGX B200 and GB200 NVL72; its white papers on GA102, Ada and RTX Blackwell for
the GeForce cards (rates with float32 accumulation), and on Ampere, Ada and Hopper for multiprocessors and L2. GB200's clock is the one that
gives its rate. Shared memory is by compute capability, from the CUDA programming guide.
"""


def named(name: str) -> Machine | None:
    """The chip of that name, in capitals or not, its spaces and hyphens left out or not; None where it is not known."""
    return next((chip for known, chip in CHIPS.items() if _plain(known) == _plain(name)), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


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
