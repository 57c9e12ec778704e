"""The time of a product with its epilogue, predicted.

A roofline with waves: a multiprocessor works through ceil(tiles / processors) tiles, and no kernel is faster than its memory traffic. Per
step of K, a tile takes the longer of its arithmetic and its loads from L2, plus a quarter of the shorter, since the two overlap but not
wholly. Then comes its epilogue: the formulas' instructions (cost.py), its reads and its writes. cuBLAS is modelled in the same way, with
the best of its tiles, an epilogue hidden under the next tile's product, and K split where tiles are few.
"""

from ...catalogue import ACTIVATIONS
from .chips import Machine
from .configs import Config
from .cost import formula_cost
from .problem import Problem

MULTIPLY_ADDS = {80: 1024, 90: 2048, 100: 4096, 103: 4096}
"""Multiply-adds per multiprocessor and cycle, for dense 16-bit operands; half as many for TF32. Other chips: 512."""
IEEE_MULTIPLY_ADDS = {80: 64}
"""The same in IEEE float32, without matrix units. Other chips: 128."""
MATRIX_SHARE, STREAM_SHARE = 0.855, 0.90
"""The shares of those rates and of the memory's bandwidth that a kernel reaches. They give 780 TFLOP/s for an 8192³ product of 128 x 256
tiles, its last wave aside, and 4.3 TB/s for a copy, as measured on one H200."""
FUSED_STREAM_SHARE, PASS_STREAM_SHARE = 0.84, 0.75
"""The same share of the bandwidth for a fused kernel of few rows, which took 1.04 and 1.09 of cuBLAS's time there, and for a pointwise
kernel behind a product."""
L2_WIDTH = 60
"""Bytes that a multiprocessor loads from L2 in a cycle. An estimate: kernels do not reach the data sheet's 64."""
PIPELINE = {True: 1.01, False: 0.94}
"""Descriptors? -> the share of cuBLAS's rate that Triton's loop over K reaches, its epilogue aside. With descriptors measured on one H200;
without published for sm_90 at 8192 x 8192 x 4096 (Triton's tutorial 09). Assumed to hold elsewhere."""
ALONE = 0.7
"""The share of that which tiles of 64 rows reach, one of them alone on a multiprocessor: measured on one H200."""
IEEE_PIPELINE = 0.6
"""The same share without matrix units. An estimate: our tiles are chosen not to spill, cuBLAS's kernels are written by hand."""
ISSUED, SPECIAL = 128, 16
"""Instructions and special functions that a multiprocessor completes in a cycle, over all lanes (CUDA programming guide)."""
MOVED = 6
"""Instructions per element of each matrix that an epilogue reads or writes: conversion, addresses, shared memory. An estimate."""
READ, SUMMED = 28, 17
"""What a fused epilogue takes beyond these, in instructions, per element that it reads and that it adds to a column's sum: it waits for
memory and for the other warps. By the times of its 128 x 256 tiles on one H200."""
LAUNCH = 2.0
"""Microseconds that a kernel takes beyond its work, before the next kernel, which waits for it, can start. An estimate."""
CUBLAS_TILES = ((256, 128), (128, 256), (128, 128), (64, 128), (64, 64))


def fused_time(problem: Problem, config: Config, chip: Machine) -> float:
    """Microseconds of the fused kernel with these tiles."""
    m, n, k, itemsize = problem.m, problem.n, problem.k, problem.dtype.itemsize
    tiles = -(-m // config.BLOCK_M) * -(-n // config.BLOCK_N)
    columns = config.BLOCK_N * problem.family.products
    pipeline = IEEE_PIPELINE if problem.precision == "ieee" else PIPELINE[config.tma]
    if config.tma and config.BLOCK_M < 128 and config.blocks == 1:
        pipeline *= ALONE
    elements = config.BLOCK_M * config.BLOCK_N
    moved = problem.reads + problem.writes
    summed = problem.backward and not problem.gated  # for its biases, which a gated MLP rarely has
    waits = (READ * problem.reads + SUMMED * summed) / ISSUED
    epilogue = elements * max(_issue(problem, moved) + waits, moved * itemsize / L2_WIDTH)
    tile = _product_cycles(problem, config.BLOCK_M, columns, chip) / pipeline + epilogue
    cycles = -(-tiles // chip.processors) * tile  # of a config's several blocks each has its share of the rates
    operands = (m + n * problem.family.products) * k * itemsize
    return LAUNCH + _longer(cycles, operands + moved * m * n * itemsize, chip, FUSED_STREAM_SHARE)


def unfused_time(problem: Problem, chip: Machine) -> float:
    """Microseconds of cuBLAS and one pointwise kernel, which reads cuBLAS's result from L2 where that fits into half of L2."""
    m, n, k, itemsize = problem.m, problem.n, problem.k, problem.dtype.itemsize
    between = problem.family.products  # matrices [m, n] that cuBLAS leaves
    operands, left = (m + n * between) * k * itemsize, between * m * n * itemsize
    cycles = min(_cublas_cycles(problem, *tile, chip) for tile in CUBLAS_TILES)
    kept = between if problem.keeps and not problem.backward else 0  # z, which cuBLAS has written
    rest = problem.reads + problem.writes - kept
    passed = rest * m * n * itemsize + (left if left > chip.l2_bytes / 2 else 0)
    issue = m * n * _issue(problem, between + rest) / chip.processors
    return 2 * LAUNCH + _longer(cycles, operands + left, chip) + _longer(issue, passed, chip, PASS_STREAM_SHARE)


def multiply_adds(chip: Machine) -> int:
    """Multiply-adds per multiprocessor and cycle, for dense 16-bit operands that are summed in float32."""
    return MULTIPLY_ADDS.get(chip.capability, 512) // (1 + chip.halved)


def _product_cycles(problem: Problem, rows: int, columns: int, chip: Machine) -> float:
    """Cycles of a tile's loop over K at cuBLAS's rate."""
    if problem.precision == "ieee":
        rate: float = IEEE_MULTIPLY_ADDS.get(chip.capability, 128)
    else:
        rate = multiply_adds(chip) * 2 // problem.dtype.itemsize * MATRIX_SHARE
    loads = (rows + columns) * problem.dtype.itemsize / L2_WIDTH
    shorter, longer = sorted((rows * columns / rate, loads))
    return problem.k * (longer + shorter / 4)


def _cublas_cycles(problem: Problem, rows: int, columns: int, chip: Machine) -> float:
    tiles = -(-problem.m // rows) * -(-(problem.n * problem.family.products) // columns)
    waves = -(-tiles // chip.processors) if tiles > chip.processors else tiles / chip.processors
    return waves * _product_cycles(problem, rows, columns, chip)


def _issue(problem: Problem, moved: int) -> float:
    """Cycles of a multiprocessor per element of the epilogue."""
    instructions, special = formula_cost(ACTIVATIONS[problem.activation], problem.backward, problem.dtype)
    return max((instructions + MOVED * moved) / ISSUED, special / SPECIAL)


def _longer(cycles: float, bytes_: float, chip: Machine, share: float = STREAM_SHARE) -> float:
    """Microseconds of that many cycles on every multiprocessor, or of that many bytes of memory, whichever take longer."""
    return max(cycles / chip.clock, bytes_ / (chip.bandwidth * share)) / 1e3
