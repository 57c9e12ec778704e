"""Compile the shipped kernels for any NVIDIA architecture, on a machine without a GPU, and read what the compiler made of them.

Needs a Triton that was imported without TRITON_INTERPRET.
"""

import functools
import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from epilogue.catalogue import ACTIVATIONS
from epilogue.triton.configs import GLU, OPTIONS, POINTWISE, TABLE, Config, shared_bytes
from epilogue.triton.dact import linear_dact_kernel, linear_dact_tma_kernel
from epilogue.triton.linear import linear_fwd_kernel, linear_fwd_tma_kernel
from epilogue.triton.operands import gradients
from epilogue.triton.pointwise import act_bwd_kernel, act_fwd_kernel
from epilogue.triton.tuned import STANDS_FOR_ALL
from epilogue.triton.vocabulary import device_function

POINTER = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
SHARED_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
"""Shared memory that one block may have, by architecture."""


@dataclass(frozen=True)
class Case:
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
        parts = "-gated" * self.gated + "-dropout" * self.dropout + "-no_bias" * (not self.bias)
        return f"{self.kernel}-{self.activation}{parts}-{dtype}-{self.precision}{tile}"


@dataclass(frozen=True)
class Resources:
    """What the compiler reports of one kernel; sass is its disassembly."""

    registers: int
    stack: int
    spills: int
    shared: int
    sass: str


def shipped(arch: str) -> Iterator[Case]:
    """Every kernel x config that a GPU of this architecture may launch, in each dtype and precision."""
    for (family, tma, itemsize), configs in TABLE.items():
        if tma and arch == "sm_80":
            continue
        kernel = family.name + "_tma" * tma
        dtypes = (torch.bfloat16, torch.float16) if itemsize == 2 else (torch.float32,)
        precisions = ("tf32", "ieee") if itemsize == 4 and not tma else ("tf32",)
        forms = (False, True) if family.name == "linear_dact" else (family is GLU,)
        dropout = family.dropout or family.name == "linear_fwd"
        for config, dtype, precision, gated in itertools.product(configs, dtypes, precisions, forms):
            if shared_bytes(config, family, itemsize) <= SHARED_BYTES[arch]:
                yield Case(kernel, config, dtype, STANDS_FOR_ALL[gated], gated, precision, dropout=dropout)
    for kernel, dtype, gated, dropout in itertools.product(
        ("act_fwd", "act_bwd"), POINTER, (False, True), (False, True)
    ):
        yield Case(kernel, None, dtype, STANDS_FOR_ALL[gated], gated, dropout=dropout)


def compile_case(case: Case, arch: str) -> Resources:
    """Compile one case: z saved or h emitted (by act_bwd with dropout, an MLP's), no learnable parameter, operands aligned."""
    kernel, arguments, options = _arguments(case)
    signature: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    attrs: dict[tuple[int], list] = {}
    for index, parameter in enumerate(kernel.params):
        name, value = parameter.name, arguments[parameter.name]
        if parameter.is_constexpr or not isinstance(value, (str, tuple)):
            signature[name] = "constexpr"
            constants[name] = value
            continue
        signature[name] = value
        if name in ("N", "K") or value == "i64" or value[:1] == "*":
            attrs[(index,)] = [["tt.divisibility", 16]]
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    compiled = triton.compile(ASTSource(kernel, signature, constants, attrs), target=target, options=options)
    return _resources(compiled)


def _arguments(case: Case) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(kernel, argument name -> type or compile-time value, launch options)."""
    act = ACTIVATIONS[case.activation]
    values = tuple(act.params.values())
    shared: dict[str, Any] = {
        "act_params": ("fp32",) * len(values),
        "PARAM_STRIDES": (None,) * len(values),
        "M": "i32",
        "N": "i32",
        "K": "i32",
    }
    pointer, up = POINTER[case.dtype], case.gated
    shared |= {"signs_ptr": None, "stride_signs": "i64", "dropout": ("*i64", "i32", "fp32") if case.dropout else None}
    if case.config is None:
        tensors: dict[str, Any] = {f"{name}_ptr": pointer for name in ("z", "y", "dy", "saved", "dz")}
        tensors |= {"up_ptr": pointer if up else None, "dup_ptr": pointer if up else None, "dparam_ptr": None}
        tensors |= {"h_ptr": pointer if case.dropout else None}
        tensors |= {"dbias_ptr": "*fp32", "dup_bias_ptr": "*fp32" if up else None, "rows_per_program": "i32"}
        tensors |= dict.fromkeys(("stride_zm", "stride_dym", "stride_sm", "stride_dzm"), "i64") | {"stride_dyn": 1}
        block = dict(POINTWISE)
        options = {name: block.pop(name) for name in ("num_warps", *OPTIONS)}
        forward = case.kernel == "act_fwd"
        kernel, functions = (act_fwd_kernel, _value(case)) if forward else (act_bwd_kernel, _gradients(case))
        return kernel, {**shared, **tensors, **functions, **block}, options
    constants = case.config.constants()
    options = {
        name: constants.pop(name) for name in ("num_warps", "num_stages", "maxnreg", *OPTIONS) if name in constants
    }
    shared |= {"PRECISION": case.precision, **constants}
    tma = case.kernel.endswith("_tma")
    matrices: tuple[str, ...]
    if case.kernel.startswith("linear_dact"):
        kernel = linear_dact_tma_kernel if tma else linear_dact_kernel
        shared |= {
            "dbias_ptr": "*fp32", "dup_bias_ptr": "*fp32" if up else None, "dparam_ptr": None, "stride_dzm": "i64",
            **_gradients(case),
        }  # fmt: skip
        matrices = ("dy", "weight", "saved", "up", "dz", "dup", "h")
    else:
        kernel = linear_fwd_tma_kernel if tma else linear_fwd_kernel
        shared |= {
            "bias_ptr": pointer, "up_bias_ptr": pointer if up else None, **_value(case),
        }  # fmt: skip
        matrices = ("x", "weight", "up", "y", "z", "z_up")
    shared |= {f"{name}_desc": _box(case, name) if tma else None for name in matrices}
    shared |= {f"{name}_ptr": pointer for name in matrices}
    if not up:
        shared |= {f"{name}_{kind}": None for name in ("up", "dup", "z_up") for kind in ("desc", "ptr")}
    strides = {
        "stride_xm": "i64",
        "stride_xk": 1,
        "stride_wn": "i64",
        "stride_wk": 1,
        "stride_un": "i64",
        "stride_uk": 1,
    }
    strides |= {"stride_dym": "i64", "stride_dyk": 1, "stride_zm": "i64", "stride_sm": "i64"}
    if kernel is linear_dact_kernel:
        strides |= {"stride_wk": "i64", "stride_wn": 1}  # the down weight [K, N], not [N, K]
    if not case.bias:
        shared |= dict.fromkeys(("bias_ptr", "up_bias_ptr", "dbias_ptr", "dup_bias_ptr"))
    return kernel, {**strides, **shared}, options


def _value(case: Case) -> dict[str, Any]:
    act = ACTIVATIONS[case.activation]
    return {"value": device_function(act.value, case.dtype), "GATED": act.arity == 1}


def _gradients(case: Case) -> dict[str, Any]:
    act = ACTIVATIONS[case.activation]
    values = tuple(act.params.values())
    kept = "input" if case.gated or case.kernel != "act_bwd" or case.dropout else act.saves(values)
    return gradients(act, values, case.dtype, kept)


def _box(case: Case, name: str) -> str:
    """The type of a matrix's descriptor: an operand of the product by its own tile, all others by a piece of the epilogue."""
    config = case.config
    assert config is not None
    operands = {"x": (config.BLOCK_M, config.BLOCK_K), "dy": (config.BLOCK_M, config.BLOCK_K)}
    if case.kernel == "linear_dact_tma":
        operands |= {"weight": (config.BLOCK_K, config.BLOCK_N)}
    else:
        operands |= dict.fromkeys(("weight", "up"), (config.BLOCK_N, config.BLOCK_K))
    rows, columns = operands.get(name, (config.BLOCK_M, config.BLOCK_N // config.PIECES))
    return f"tensordesc<{POINTER[case.dtype][1:]}[{rows},{columns}]>"


def _resources(compiled: Any) -> Resources:
    """Registers, stack and shared memory as cuobjdump tells them; spills are loads and stores of local memory in the SASS."""
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
