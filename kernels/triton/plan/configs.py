"""The ways to compute a product with its epilogue, mainly the shipped tile shapes. dispatch.py chooses; nothing is timed at a call."""

import functools
from dataclasses import dataclass, replace
from typing import Literal

from .problem import DACT, DROPPED, GLU, LINEAR, Family

OPTIONS = {"enable_fp_fusion": True}
"""Options of every launch. From Triton 3.10 on, products and sums fuse only with this option. Without it gelu takes 7 more instructions an
element. 3.9 warns of that."""

REGISTERS = 65536
"""Of a multiprocessor, on every chip with descriptors."""


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
    blocks: int = 1  # on a multiprocessor at a time, of a persistent kernel

    @functools.cached_property
    def constants(self) -> dict[str, int | bool]:
        """The kernel's compile-time arguments and launch options.

        maxnreg tells ptxas that a persistent kernel's blocks need no more room beside them; else it spills to leave registers for others.
        """
        registers = min(255, REGISTERS // (32 * self.num_warps * self.blocks))
        names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M", "PIECES", "num_warps", "num_stages")
        return {name: getattr(self, name) for name in names} | OPTIONS | ({"maxnreg": registers} if self.tma else {})


def shared_bytes(config: Config, family: Family, itemsize: int) -> int:
    """Bytes of shared memory: the stages of the operands, and a piece of the descriptor kernel's epilogue."""
    loads = config.num_stages * (config.BLOCK_M + config.BLOCK_N * family.products) * config.BLOCK_K * itemsize
    return loads + config.tma * config.BLOCK_M * config.BLOCK_N // config.PIECES * itemsize


# (family, descriptors?, bytes per element) -> configs. Triton 3.6 to 3.9 compile them without a spill and within shared memory
# (`epilogue audit` under each). With descriptors and 2 bytes, the first of each family and forward's 64 x 128 were the fastest of a dozen
# or more without spills on one H200; the others have not been timed. Two blocks on a multiprocessor hide one's epilogue under the other's
# product. IEEE float32 products have no matrix instruction, so they stay with the pointer kernel, whose small tiles hold them without
# spilling. BLOCK_N is the width of each of a gated layer's two tiles.
TABLE: dict[tuple[Family, bool, int], tuple[Config, ...]] = {
    (LINEAR, True, 2): (
        Config(128, 128, 64, 4, 3, True, PIECES=4, blocks=2),
        Config(64, 128, 64, 4, 4, True, blocks=2),
        Config(64, 64, 64, 4, 4, True, blocks=2),
    ),
    (GLU, True, 2): (
        Config(128, 64, 64, 4, 3, True, PIECES=2, blocks=2),
        Config(64, 128, 64, 8, 3, True),
        Config(64, 64, 64, 4, 3, True, blocks=2),
    ),
    (LINEAR, True, 4): (Config(128, 128, 32, 8, 3, True, PIECES=2), Config(64, 64, 32, 4, 4, True)),
    (GLU, True, 4): (Config(128, 64, 32, 8, 3, True), Config(64, 64, 32, 4, 3, True)),
    (LINEAR, False, 2): (
        Config(128, 128, 32, 8, 4),
        Config(64, 64, 32, 4, 4),
        Config(16, 64, 64, 4, 4),
    ),
    (GLU, False, 2): (Config(128, 64, 32, 8, 3), Config(64, 64, 32, 4, 3), Config(16, 64, 64, 8, 3)),
    (LINEAR, False, 4): (Config(64, 64, 16, 4, 3), Config(16, 64, 32, 4, 3)),
    (GLU, False, 4): (Config(64, 32, 32, 8, 3), Config(16, 32, 32, 4, 3)),
    # This epilogue holds up to five tiles. Its pieces are half the rows and 64 columns, in 16 bits 128 bytes of a row; smaller tiles
    # and float32 have narrower ones, or would spill.
    (DACT, True, 2): (
        Config(128, 256, 64, 8, 3, True, PIECES=4),
        Config(64, 128, 64, 4, 4, True, PIECES=2),
        Config(64, 64, 64, 4, 4, True),
    ),
    (DACT, True, 4): (Config(128, 128, 32, 8, 3, True, PIECES=4), Config(64, 64, 32, 4, 4, True)),
    (DACT, False, 2): (
        Config(128, 128, 32, 8, 4, PIECES=4),
        Config(64, 64, 32, 8, 4),
        Config(16, 64, 64, 4, 4),
    ),
    (DACT, False, 4): (Config(64, 64, 16, 8, 3, PIECES=2), Config(16, 64, 32, 4, 3)),
}

# With dropout the widest tile spills.
TABLE |= {
    (DROPPED, tma, itemsize): (replace(widest, BLOCK_N=min(widest.BLOCK_N, 128)), *others)
    for (family, tma, itemsize), (widest, *others) in TABLE.items()
    if family is DACT
}

POINTWISE = {"BLOCK_M": 8, "BLOCK_N": 128, "num_warps": 4, **OPTIONS}
"""The block and the launch options of the pointwise kernels."""

Choice = Config | Literal["unfused", "library"]
"""A Config: the fused kernel with those tiles. "unfused": cuBLAS and one pointwise kernel. "library": cuBLASLt's own epilogue, which has
few functions and keeps no z."""
