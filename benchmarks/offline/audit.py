"""`epilogue audit`: what the compiler makes of every kernel that may be launched, found without a GPU.

Each shipped kernel x config x dtype is compiled with its family's usual activation (gelu; silu when gated), in three forms: with bias and
dropout, without dropout, without both. The largest bfloat16 config of each family is compiled once more with every activation, so that a
spill which only an expensive formula causes shows too.

Registers and stack are cuobjdump's, shared memory the compiler's; the rest is counted in the disassembly (SASS), statically, each
instruction once however often it runs: spills are loads and stores of local memory; wgmma the asynchronous matrix instructions (HGMMA on
sm_90; on sm_100 UTCHMMA, its tcgen05), mma those that a warp waits for (HMMA); tma the loads and stores of tiles (UTMALDG, UTMASTG). The
cost per element of the epilogue is `compiler.epilogue_cost` of each formula that the kernel applies, added up: what two formulas share is
counted twice. MUFU, the special-function unit (ex2, rcp, …), has a quarter of a warp's width.
"""

import json
import multiprocessing
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import torch

from epilogue.benchmarks.offline.compiler import (
    CHIPS,
    KernelCase,
    Resources,
    compile_case,
    epilogue_cost,
    forms,
    shipped,
)
from epilogue.benchmarks.progress import progress
from epilogue.benchmarks.report import table
from epilogue.catalogue import ACTIVATIONS
from epilogue.triton.plan.configs import POINTWISE
from epilogue.triton.plan.cost import epilogue_formulas

WGMMA, MMA, LOAD, STORE = r"HGMMA|UTC\w*MMA", "HMMA", "UTMALDG", "UTMASTG"


class KernelRow(NamedTuple):
    """One compiled kernel; shared, stack in bytes."""

    kernel: str
    config: str
    arch: str
    activation: str
    gated: bool
    dtype: str
    precision: str
    registers: int
    stack: int
    spills: int
    shared: int
    wgmma: int
    mma: int
    tma: int
    instructions_per_element: float
    mufu_per_element: float
    faults: list[str]


def faults(case: KernelCase, arch: str, resources: Resources) -> list[str]:
    """The reasons why this kernel may not be shipped; empty where it may."""
    found = []
    if resources.stack:
        found.append(f"{resources.stack} bytes of stack")
    if resources.spills:
        found.append(f"{resources.spills} spills")
    if resources.shared > CHIPS[arch].shared_bytes:
        found.append(f"{resources.shared} bytes of shared memory, a block may have {CHIPS[arch].shared_bytes}")
    if case.kernel.endswith("_tma"):
        wanted = {"asynchronous matrix instruction": WGMMA, "TMA load": LOAD}
        if case.kernel == "linear_fwd_tma":
            wanted["TMA store"] = STORE
        found += [f"no {what}" for what, names in wanted.items() if not occurrences(names, resources.sass)]
    return found


def occurrences(names: str, sass: str) -> int:
    return len(re.findall(rf"\b(?:{names})\b", sass))


def every_activation(cases: Iterable[KernelCase]) -> Iterator[KernelCase]:
    """Yield every activation in the largest bfloat16 config of each kernel, plain and gated; by descriptors where there are such kernels.

    linear_dact comes gated alone: it takes a quarter of a minute to compile and has all of the plain one's formulas.
    """
    largest: dict[tuple[str, bool], KernelCase] = {}
    for case in cases:
        family = (case.kernel.removesuffix("_tma"), case.gated)
        if case.kernel.startswith("linear_dact") and not case.gated:
            continue
        if case.dtype == torch.bfloat16 and (family not in largest or _size(case) > _size(largest[family])):
            largest[family] = case
    for case in largest.values():
        for name, act in ACTIVATIONS.items():
            if case.gated or act.arity == 1:
                yield replace(case, activation=name)


def _size(case: KernelCase) -> tuple[bool, int]:
    return case.kernel.endswith("_tma"), case.config.BLOCK_M * case.config.BLOCK_N if case.config else 0


def formulas_of(case: KernelCase) -> list[Callable]:
    """The formulas that the kernel computes for each element of its epilogue."""
    act = ACTIVATIONS[case.activation]
    found = epilogue_formulas(act, backward=case.kernel not in ("linear_fwd", "linear_fwd_tma", "act_fwd"))
    if case.kernel != "act_bwd" or case.dropout or (case.gated and act.arity == 1):  # by the product rule; for h
        return found
    return found[:-1] if act.arity == 2 else [act.output_derivative(tuple(act.params.values())) or found[0]]


def measure(case: KernelCase, arch: str) -> KernelRow:
    """Compile one case, and the formulas that it applies."""
    try:
        found = compile_case(case, arch)
    except Exception as error:  # whatever the compiler raises; not all of it can travel between processes
        raise RuntimeError(f"{arch} {case} does not compile: {error}") from error
    act = ACTIVATIONS[case.activation]
    values = tuple(act.params.values())
    costs = [epilogue_cost(formula, values, case.dtype, arch, act.arity) for formula in formulas_of(case)]
    instructions, mufu = map(sum, zip(*costs, strict=True))
    return KernelRow(
        kernel=case.kernel,
        config=config_of(case),
        arch=arch,
        activation=case.activation,
        gated=case.gated,
        dtype=str(case.dtype).removeprefix("torch."),
        precision=case.precision,
        registers=found.registers,
        stack=found.stack,
        spills=found.spills,
        shared=found.shared,
        wgmma=occurrences(WGMMA, found.sass),
        mma=occurrences(MMA, found.sass),
        tma=occurrences(f"{LOAD}|{STORE}", found.sass),
        instructions_per_element=instructions,
        mufu_per_element=mufu,
        faults=faults(case, arch, found),
    )


def config_of(case: KernelCase) -> str:
    """Tile, warps, and what else tells two configs apart: pipeline stages, column pieces of the epilogue."""
    config = case.config
    if config is None:
        parts = [f"{POINTWISE['BLOCK_M']}x{POINTWISE['BLOCK_N']} w{POINTWISE['num_warps']}"]
    else:
        parts = [f"{config.BLOCK_M}x{config.BLOCK_N}x{config.BLOCK_K} w{config.num_warps} s{config.num_stages}"]
        if config.PIECES > 1:
            parts.append(f"p{config.PIECES}")
    if case.dropout:
        parts.append("dropout")
    if not case.bias:
        parts.append("no bias")
    return " ".join(parts)


def measure_all(jobs: Sequence[tuple[KernelCase, str]]) -> list[KernelRow]:
    """Measure every (case, architecture), in parallel processes: most of the time is Triton's own Python."""
    groups: dict[tuple[str, str], list[tuple[KernelCase, str]]] = {}
    for case, arch in jobs:  # the cases of one activation have their formulas in common
        groups.setdefault((case.activation, arch), []).append((case, arch))
    rows: dict[tuple[KernelCase, str], KernelRow] = {}
    spawn = multiprocessing.get_context("spawn")  # torch has threads, which a fork would not survive
    with ProcessPoolExecutor(mp_context=spawn, initializer=_quiet) as pool:
        compiled = zip(groups.values(), pool.map(_measure_group, groups.values()), strict=True)
        for group, found in progress(compiled, "compiling the kernels", len(groups), "group"):
            rows.update(zip(group, found, strict=True))
    return [rows[job] for job in jobs]


def _measure_group(group: list[tuple[KernelCase, str]]) -> list[KernelRow]:
    return [measure(case, arch) for case, arch in group]


def _quiet() -> None:
    """Silence Triton 3.9, which announces in every process that a default will change."""
    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")


def kernels_table(rows: Iterable[KernelRow]) -> str:
    heading = (
        "kernel", "activation", "dtype", "config", "registers", "stack", "spills", "shared KiB", "wgmma", "mma", "tma",
        "instructions", "MUFU",
    )  # fmt: skip
    lines = [
        (
            family(row), row.activation, f"{row.dtype} ieee" if row.precision == "ieee" else row.dtype, row.config, str(row.registers),
            str(row.stack), str(row.spills), f"{row.shared / 1024:.1f}", str(row.wgmma), str(row.mma), str(row.tma),
            f"{row.instructions_per_element:.1f}", f"{row.mufu_per_element:.1f}",
        )
        for row in rows
    ]  # fmt: skip
    return table([heading, *lines])


def activations_table(rows: Iterable[KernelRow]) -> str:
    """A line per activation; by kernel: instructions / MUFU per element, and registers."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cost = f"{row.instructions_per_element:.1f} / {row.mufu_per_element:.1f}"
        cells.setdefault(row.activation, {})[family(row)] = f"{cost}, {row.registers}"
    families = list(dict.fromkeys(name for line in cells.values() for name in line))
    lines = [(name, *(line.get(column, "") for column in families)) for name, line in cells.items()]
    return table([("activation", *families), *lines])


def family(row: KernelRow) -> str:
    return f"{row.kernel}, gated" if row.gated else row.kernel


def main(archs: Sequence[str], as_json: bool) -> int:
    """Compile and print; 1 where a kernel is not clean."""
    kernels = {arch: list(dict.fromkeys(form for case in shipped(arch) for form in forms(case))) for arch in archs}
    activations = {arch: list(every_activation(shipped(arch))) for arch in archs}
    jobs = list(dict.fromkeys((case, arch) for arch in archs for case in [*kernels[arch], *activations[arch]]))
    rows = dict(zip(jobs, measure_all(jobs), strict=True))
    if as_json:
        print(json.dumps([row._asdict() for row in rows.values()], indent=2))
    else:
        for arch in archs:
            print(f"{arch}: every shipped kernel and config; instructions and MUFU per element of the epilogue")
            print(kernels_table(rows[case, arch] for case in kernels[arch]), end="\n\n")
            print(f"{arch}: every activation, bfloat16, largest config; instructions / MUFU per element, registers")
            print(activations_table(rows[case, arch] for case in activations[arch]), end="\n\n")
    failed = [f"FAILED: {arch} {case}: {', '.join(row.faults)}" for (case, arch), row in rows.items() if row.faults]
    verdict = failed or [
        f"clean: {len(rows)} kernels for {', '.join(archs)}, no stack, no spills, within shared memory"
    ]
    print("\n".join(verdict), file=sys.stderr if as_json else sys.stdout)
    return 1 if failed else 0
