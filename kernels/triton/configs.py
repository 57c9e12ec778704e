"""Tile shapes: a shipped table, and the model that chooses from it. Nothing is timed at a call."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import INTERPRET


@dataclass(frozen=True)
class Config:
    """One way to launch a product kernel."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int
    tma: bool = False
    PIECES: int = 1  # column pieces of the epilogue
    GROUP_M: int = 8

    def constants(self) -> dict[str, int]:
        """The kernel's compile-time arguments and launch options.

        A persistent kernel is alone on its multiprocessor; told so by maxnreg, ptxas does not spill to leave registers to a second block.
        """
        names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M", "PIECES", "num_warps", "num_stages")
        return {name: getattr(self, name) for name in names} | ({"maxnreg": 255} if self.tma else {})


class Family(NamedTuple):
    """A kernel family, as far as a choice of tiles depends on it."""

    name: str
    products: int  # accumulators, and weights that a step of K loads
    staged: int  # pieces of the epilogue in shared memory at a time
    dropout: bool = False  # drawn in the epilogue


LINEAR, GLU, DACT = Family("linear_fwd", 1, 1), Family("linear_fwd", 2, 1), Family("linear_dact", 1, 2)
DROPPED = DACT._replace(dropout=True)


def shared_bytes(config: Config, family: Family, itemsize: int) -> int:
    """Shared memory: the stages of the operands, and the descriptor kernel's staging of the epilogue's pieces."""
    loads = config.num_stages * (config.BLOCK_M + config.BLOCK_N * family.products) * config.BLOCK_K * itemsize
    return loads + config.tma * family.staged * config.BLOCK_M * config.BLOCK_N // config.PIECES * itemsize


# (family, descriptors?, bytes per element). IEEE float32 products have no matrix instruction, so they stay with the pointer kernel, whose
# small tiles hold them without spilling. BLOCK_N counts each of a gated layer's two accumulators.
TABLE: dict[tuple[Family, bool, int], tuple[Config, ...]] = {
    (LINEAR, True, 2): (
        Config(128, 256, 64, 8, 3, True, PIECES=4),
        Config(128, 128, 64, 8, 4, True, PIECES=2),
        Config(64, 128, 64, 4, 4, True),
        Config(64, 64, 64, 4, 4, True),
    ),
    (GLU, True, 2): (
        Config(128, 128, 64, 8, 3, True, PIECES=2),
        Config(64, 128, 64, 8, 3, True),
        Config(64, 64, 64, 4, 3, True),
    ),
    (LINEAR, True, 4): (Config(128, 128, 32, 8, 3, True, PIECES=2), Config(64, 64, 32, 4, 4, True)),
    (GLU, True, 4): (Config(128, 64, 32, 8, 3, True), Config(64, 64, 32, 4, 3, True)),
    (LINEAR, False, 2): (
        Config(128, 128, 32, 8, 4),
        Config(64, 64, 32, 4, 4),
        Config(16, 64, 64, 4, 4),
    ),
    (GLU, False, 2): (Config(128, 64, 32, 8, 3), Config(64, 64, 32, 4, 3), Config(16, 64, 64, 4, 3)),
    (LINEAR, False, 4): (Config(64, 64, 16, 4, 3), Config(16, 64, 32, 4, 3)),
    (GLU, False, 4): (Config(64, 32, 32, 4, 3), Config(16, 32, 32, 4, 3)),
    # Pieces of 32 columns: this epilogue holds up to five tiles, and with pieces of 64 the widest spills.
    (DACT, True, 2): (
        Config(128, 256, 64, 8, 3, True, PIECES=8),
        Config(128, 128, 64, 8, 4, True, PIECES=4),
        Config(64, 128, 64, 4, 4, True, PIECES=4),
        Config(64, 64, 64, 4, 4, True, PIECES=2),
    ),
    (DACT, True, 4): (Config(128, 128, 32, 8, 3, True, PIECES=4), Config(64, 64, 32, 4, 4, True, PIECES=2)),
    (DACT, False, 2): (
        Config(128, 128, 32, 8, 4, PIECES=4),
        Config(64, 64, 32, 4, 4, PIECES=2),
        Config(16, 64, 64, 4, 4),
    ),
    (DACT, False, 4): (Config(64, 64, 16, 4, 3, PIECES=2), Config(16, 64, 32, 4, 3)),
}

# With dropout the widest tile takes 20 s to compile, and spills where more is to be held (a learnable parameter's sums, a bit of h).
TABLE |= {
    (DROPPED, tma, itemsize): tuple(config for config in configs if config.BLOCK_N <= 128)
    for (family, tma, itemsize), configs in TABLE.items()
    if family is DACT
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
def choose(family: Family, tma: bool, m: int, n: int, k: int, itemsize: int, chip: Machine) -> Config:
    """The config of least predicted time for a product of m rows, n columns and k terms.

    A multiprocessor works through ceil(tiles / processors) tiles. A tile takes, per step of K, the longer of its arithmetic and its loads
    from L2 and a quarter of the shorter (they overlap, not wholly), in units of one multiprocessor's time for a multiply-add; a byte costs
    `BYTE` of them. Small tiles thus pay for their lower arithmetic intensity, large ones for the last, partly filled wave. The numbers
    are the data sheet's and an estimate; no GPU has confirmed them yet.
    """
    configs = TABLE[family, tma, itemsize]
    fitting = [c for c in configs if shared_bytes(c, family, itemsize) <= chip.shared_bytes] or [configs[-1]]

    def time(config: Config) -> int:
        tiles = -(-m // config.BLOCK_M) * -(-n // config.BLOCK_N)
        columns = config.BLOCK_N * family.products
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
