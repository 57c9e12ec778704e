"""Compile the shipped kernels for any NVIDIA architecture, on a machine without a GPU, and read the resources that the compiler gave them.

Needs a Triton that was imported without TRITON_INTERPRET.
"""

import functools
import inspect
import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from epilogue.applied import Applied, Needs
from epilogue.catalogue import ACTIVATIONS, Keep
from epilogue.operands import Dropout, Layer
from epilogue.triton.dact import linear_dact
from epilogue.triton.linear import linear_fwd
from epilogue.triton.plan import chips
from epilogue.triton.plan.configs import OPTIONS, TABLE, Config, shared_bytes
from epilogue.triton.plan.problem import GLU
from epilogue.triton.plan.tuned import STANDS_FOR_ALL
from epilogue.triton.pointwise import act_bwd, act_fwd
from epilogue.triton.vocabulary import device_function

POINTER = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
CHIPS = {"sm_80": chips.CHIPS["A100"], "sm_90": chips.CHIPS["H100"], "sm_100": chips.CHIPS["B200"]}
"""By architecture, the chip that stands for it."""


@dataclass(frozen=True)
class KernelCase:
    """One kernel with one config, activation and dtype."""

    kernel: str  # "act_fwd" and "act_bwd", or "linear_fwd" and "linear_dact", each of these with "_tma" too
    config: Config | None
    dtype: torch.dtype
    activation: str = "gelu"
    gated: bool = False
    precision: str = "tf32"
    bias: bool = True
    dropout: bool = False

    def __str__(self) -> str:
        tile = "" if self.config is None else f"-{self.config.BLOCK_M}x{self.config.BLOCK_N}x{self.config.BLOCK_K}"
        dtype = str(self.dtype).removeprefix("torch.")
        marks = {"-gated": self.gated, "-dropout": self.dropout, "-no_bias": not self.bias}
        parts = "".join(mark for mark, holds in marks.items() if holds)
        return f"{self.kernel}-{self.activation}{parts}-{dtype}-{self.precision}{tile}"


@dataclass(frozen=True)
class Resources:
    """The resources of one compiled kernel; sass is its disassembly."""

    registers: int
    stack: int
    spills: int
    shared: int
    sass: str


def shipped(arch: str) -> Iterator[KernelCase]:
    """Every kernel x config that a GPU of this architecture may launch, in each dtype and precision."""
    for (family, tma, itemsize), configs in TABLE.items():
        if tma and arch == "sm_80":
            continue
        kernel = f"{family.name}_tma" if tma else family.name
        dtypes = (torch.bfloat16, torch.float16) if itemsize == 2 else (torch.float32,)
        precisions = ("tf32", "ieee") if itemsize == 4 and not tma else ("tf32",)
        forms = (False, True) if family.name == "linear_dact" else (family is GLU,)
        dropout = family.dropout or family.name == "linear_fwd"
        for config, dtype, precision, gated in itertools.product(configs, dtypes, precisions, forms):
            if shared_bytes(config, family, itemsize) <= CHIPS[arch].shared_bytes:
                yield KernelCase(kernel, config, dtype, STANDS_FOR_ALL[gated], gated, precision, dropout=dropout)
    for kernel, dtype, gated, dropout in itertools.product(
        ("act_fwd", "act_bwd"), POINTER, (False, True), (False, True)
    ):
        yield KernelCase(kernel, None, dtype, STANDS_FOR_ALL[gated], gated, dropout=dropout)


def forms(case: KernelCase) -> tuple[KernelCase, KernelCase, KernelCase]:
    """The kernel as it is, without dropout, and lean: without the bias too. For each, ptxas chooses its registers anew."""
    return case, replace(case, dropout=False), replace(case, dropout=False, bias=False)


class _AbsentDriver:
    """A driver that knows its target and nothing else: enough to compile, not to launch."""

    def __init__(self, capability: int) -> None:
        self.get_current_target = lambda: GPUTarget("cuda", capability, 32)
        # Triton keeps what it compiled by device: none may be one that is here, or of another architecture.
        self.get_current_device = lambda: -capability
        self.get_current_stream = lambda device: 0


@contextmanager
def absent_gpu(arch: str) -> Iterator[list[Any]]:
    """Within it the launchers compile for that architecture and launch nothing. The list holds the compiled kernels."""
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    with (
        mock.patch.object(driver, "_active", _AbsentDriver(int(arch.removeprefix("sm_")))),
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(chips, "gpu", return_value=CHIPS[arch]),
    ):
        yield compiled


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Set torch's precision of float32 products, "tf32" or "ieee", for a while."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, precision
    try:
        yield
    finally:
        matmul.fp32_precision = before


def compile_case(case: KernelCase, arch: str) -> Resources:
    """Compile the kernel that the launcher launches. It saves z or emits h (act_bwd with dropout alone, as in an MLP).

    No parameter is learnable.
    """
    with absent_gpu(arch) as compiled, float32_products(case.precision):
        _launch(case)
    (kernel,) = compiled
    return _resources(kernel)


M, N, K = 128, 512, 256
"""The sizes of the operands. The kernel depends only on whether N and K are multiples of 16."""


def _launch(case: KernelCase) -> None:
    act, gated = ACTIVATIONS[case.activation], case.gated
    values = tuple(1.0 if value is inspect.Parameter.empty else value for value in act.params.values())
    dropout = Dropout(0.5, torch.zeros(1, dtype=torch.int64)) if case.dropout else None
    applied = Applied(act, values, gated, dropout)

    def matrix(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=case.dtype)

    width = (1 + gated) * N
    if case.kernel == "act_fwd":
        act_fwd(matrix(M, width), matrix(M, N), None, applied)
    elif case.kernel == "act_bwd":
        keep: Keep = "input" if gated or case.dropout else act.saves(values)
        act_bwd(matrix(M, N), matrix(M, width), keep, applied, Needs(h=case.dropout, dbias=case.bias))
    elif case.kernel.startswith("linear_fwd"):
        biases = (matrix(N) if case.bias else None, matrix(N) if case.bias and gated else None)
        layer = Layer(matrix(M, K), matrix(N, K), matrix(N, K) if gated else None, *biases)
        linear_fwd(layer, applied, "input", case.config)
    else:
        needs = Needs(h=True, dbias=case.bias)
        linear_dact(matrix(M, K), matrix(K, N), matrix(M, width), "input", applied, needs, case.config)


def _resources(compiled: Any) -> Resources:
    """Registers, stack and shared memory from cuobjdump; spills are the loads and stores of local memory in the SASS."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([tool, flag, file.name], check=True, capture_output=True, text=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    (numbers,) = re.findall(r"REG:(\d+) STACK:(\d+)", usage)
    spills = len(re.findall(r"\b(?:LDL|STL)\b", sass))
    return Resources(int(numbers[0]), int(numbers[1]), spills, compiled.metadata.shared, sass)


@triton.jit
def elementwise_kernel(a_ptr, b_ptr, y_ptr, act_params, function: tl.constexpr, BLOCK: tl.constexpr):
    """y = function(a, *act_params) or function(a, b, *act_params); without a function a, or a + b."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(a_ptr + index)
    if b_ptr is None:
        y = a if function is None else function(a, *act_params)
    else:
        b = tl.load(b_ptr + index)
        y = a + b if function is None else function(a, b, *act_params)
    tl.store(y_ptr + index, y)


def epilogue_cost(
    formula: Callable, values: tuple, dtype: torch.dtype, arch: str, arity: int = 1
) -> tuple[float, float]:
    """(instructions, special-function instructions MUFU) per element that a formula adds to a kernel from float32 to `dtype`.

    float32, since an epilogue has its operands in the accumulator: their conversion is not the formula's. Counted is what eight more
    elements per thread add, beside what they add to a plain copy: addresses, constants and 1 / parameter are paid once.
    For arity 2 the copy is a + b, and that addition counts.
    """
    cost = _per_element(device_function(formula, dtype), len(values), dtype, arch, arity)
    copy = _per_element(None, 0, dtype, arch, arity)
    return cost[0] - copy[0] + (arity - 1), cost[1] - copy[1]


@functools.cache
def _per_element(function: Any, numbers: int, dtype: torch.dtype, arch: str, arity: int) -> tuple[float, float]:
    """(instructions, MUFU) of one element: the difference of two blocks' kernels, for 128 threads."""
    signature = {
        "a_ptr": "*fp32", "b_ptr": "*fp32" if arity == 2 else "constexpr", "y_ptr": POINTER[dtype],
        "act_params": ("fp32",) * numbers, "function": "constexpr", "BLOCK": "constexpr",
    }  # fmt: skip
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(3) if arity == 2 or index != 1}
    counts = []
    for block in (1024, 2048):
        constants = {"function": function, "BLOCK": block} | ({"b_ptr": None} if arity == 1 else {})
        source = ASTSource(elementwise_kernel, signature, constants, aligned)
        target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
        sass = _resources(triton.compile(source, target=target, options={"num_warps": 4, **OPTIONS})).sass
        opcodes = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z]\w*)", sass, re.MULTILINE)
        # Behind the kernel's end stand a branch to itself and padding.
        counts.append((len(opcodes) - opcodes.count("NOP"), opcodes.count("MUFU")))
    (few, few_mufu), (many, many_mufu) = counts
    return (many - few) / 8, (many_mufu - few_mufu) / 8
