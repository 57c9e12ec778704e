"""Tile shapes: a shipped table, and the model that chooses from it. Nothing is timed at a call."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import INTERPRET


@dataclass(frozen=True)
class Config:
    """One way to launch a forward kernel."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int
    tma: bool = False
    PIECES: int = 1  # column pieces of the epilogue
    GROUP_M: int = 8

    def constants(self) -> dict[str, int]:
        """The kernel's compile-time arguments and launch options."""
        names = ["BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M", "num_warps", "num_stages"]
        return {name: getattr(self, name) for name in names + ["PIECES"] * self.tma}

    def shared_bytes(self, itemsize: int, gated: bool) -> int:
        """Shared memory: the stages of both operands, and the descriptor kernel's staging of a result's piece."""
        loads = self.num_stages * (self.BLOCK_M + self.BLOCK_N * (1 + gated)) * self.BLOCK_K * itemsize
        return loads + self.tma * self.BLOCK_M * self.BLOCK_N // self.PIECES * itemsize


# (descriptors?, gated?, bytes per element). IEEE float32 products have no matrix instruction, so they stay with the pointer kernel, whose
# small tiles hold them without spilling. BLOCK_N counts each of a gated layer's two accumulators.
TABLE: dict[tuple[bool, bool, int], tuple[Config, ...]] = {
    (True, False, 2): (
        Config(128, 256, 64, 8, 3, True, PIECES=2),
        Config(128, 128, 64, 8, 4, True),
        Config(64, 128, 64, 4, 4, True),
        Config(64, 64, 64, 4, 4, True),
    ),
    (True, True, 2): (
        Config(128, 128, 64, 8, 3, True, PIECES=2),
        Config(64, 128, 64, 8, 3, True),
        Config(64, 64, 64, 4, 3, True),
    ),
    (True, False, 4): (Config(128, 128, 32, 8, 3, True, PIECES=2), Config(64, 64, 32, 4, 4, True)),
    (True, True, 4): (Config(128, 64, 32, 8, 3, True), Config(64, 64, 32, 4, 3, True)),
    (False, False, 2): (
        Config(128, 128, 32, 8, 4),
        Config(64, 64, 32, 4, 4),
        Config(16, 64, 64, 4, 4),
    ),
    (False, True, 2): (Config(128, 64, 32, 8, 3), Config(64, 64, 32, 4, 3), Config(16, 64, 64, 4, 3)),
    (False, False, 4): (Config(64, 64, 16, 4, 3), Config(16, 64, 32, 4, 3)),
    (False, True, 4): (Config(64, 32, 32, 4, 3), Config(16, 32, 32, 4, 3)),
}

BWD_BLOCK = {"BLOCK_M": 8, "BLOCK_N": 128, "num_warps": 4}


class Machine(NamedTuple):
    """What the model knows of a chip."""

    processors: int
    shared_bytes: int
    descriptors: bool  # has TMA: sm_90 and newer


def machine(x: Tensor) -> Machine:
    """The chip that x lives on. The interpreter's has two processors, so that a program walks over several tiles there too."""
    return Machine(2, 227 * 1024, True) if INTERPRET and x.is_cpu else _gpu(x.device.index)


@functools.cache
def _gpu(index: int) -> Machine:
    properties = torch.cuda.get_device_properties(index)
    shared_bytes: int = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # missing in torch's stub
    return Machine(properties.multi_processor_count, shared_bytes, properties.major >= 9)


@functools.lru_cache(maxsize=4096)
def choose(m: int, n: int, k: int, itemsize: int, gated: bool, tma: bool, chip: Machine) -> Config:
    """The config of least predicted time for an [m, k] x [n, k]ᵀ product.

    A multiprocessor works through ceil(tiles / processors) tiles. A tile takes, per step of K, the longer of its arithmetic and its loads
    from L2 and a quarter of the shorter (they overlap, not wholly), in units of one multiprocessor's time for a multiply-add; a byte costs
    `BYTE` of them. Small tiles thus pay for their lower arithmetic intensity, large ones for the last, partly filled wave. The numbers
    are the data sheet's and an estimate; no GPU has confirmed them yet.
    """
    configs = TABLE[tma, gated, itemsize]
    fitting = [c for c in configs if c.shared_bytes(itemsize, gated) <= chip.shared_bytes] or [configs[-1]]

    def time(config: Config) -> int:
        tiles = -(-m // config.BLOCK_M) * -(-n // config.BLOCK_N)
        columns = config.BLOCK_N * (1 + gated)
        shorter, longer = sorted((config.BLOCK_M * columns, BYTE * itemsize * (config.BLOCK_M + columns)))
        return -(-tiles // chip.processors) * (4 * longer + shorter)

    return min(fitting, key=time)


BYTE = 27
"""Multiply-adds in the time that a multiprocessor loads one byte from L2: on an H100 about 2,950 a ns against about 110 bytes a ns."""


def precision(x: Tensor) -> str:
    """tl.dot's input precision: float32 products follow torch's own TF32 setting, which is off unless the user turns it on."""
    if x.dtype != torch.float32:
        return "tf32"  # without meaning for 16-bit operands; one constant, so that they share a kernel
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # torch 2.9 on, where the older getters raise once a user has set this one
        return "tf32" if matmul.fp32_precision in ("tf32", "bf16") else "ieee"
    return "tf32" if matmul.allow_tf32 else "ieee"
