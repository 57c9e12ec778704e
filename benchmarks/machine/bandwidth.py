"""`epilogue bandwidth`: the pointwise kernels against a device-to-device copy of as many bytes.

A kernel beside cuBLAS's products only reads, computes a little and writes, so a copy is its roof. Its results are held against float64
first: who is wrong gets no time. Timed is the launcher's whole call, the addition of the bias's partial sums with it.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from epilogue import eager
from epilogue.applied import Applied, Needs
from epilogue.backends import kernels
from epilogue.benchmarks import timing
from epilogue.benchmarks.bench import gate
from epilogue.benchmarks.progress import progress
from epilogue.benchmarks.provenance import machine
from epilogue.benchmarks.report import table, write
from epilogue.catalogue import Activation, Keep, resolve_name

TARGET = 0.85
"""The share of a copy's bandwidth that a pointwise kernel should reach."""
STRIP = 1024
"""The columns that are compared with float64 at a time. All of them would take up to 2 GB a matrix there."""

BACKENDS = ("cupy", "triton")

FORWARD, BACKWARD, MLP = PASSES = ("forward", "backward", "backward of an MLP")
"""y; dz; and the backward of an MLP with biases: dz, its sums, and h = act(z) again unless h was kept in place of z."""
CLASSES = ("relu", "gelu", "silu", "mish", "swiglu")
DTYPES = ("bfloat16", "float16", "float32")
SHAPES = ((8192, 14336), (8192, 4096), (8192, 4097))
"""Hidden layers of Llama 3 8B and ViT-L/16, and rows that do not begin at a multiple of 16 bytes."""

Row = dict[str, Any]
Results = dict[str, Tensor]
"""By gate.py's names: "y", which is h too, and the gradients of "z" and "bias"."""


class PointwiseCase(NamedTuple):
    """One pass over z [rows, columns], or gate|up [rows, 2 columns] of a gated activation."""

    what: str
    activation: str
    dtype: str
    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.what}, {self.activation}, {self.dtype}, {self.rows} x {self.columns}"

    @property
    def act(self) -> Activation:
        return resolve_name(self.activation)

    @property
    def values(self) -> tuple:
        return tuple(self.act.params.values())

    @property
    def keep(self) -> Keep:
        """The tensor that backward reads beside dy: "input" (z) or "output" (y)."""
        return self.act.saves(self.values)

    @property
    def needs(self) -> Needs:
        mlp = self.what == MLP
        return Needs(h=mlp and self.keep == "input", dbias=mlp)

    @property
    def bytes(self) -> int:
        """The bytes that must move: each operand is read once, each result written once. Of the sums, the float32 result counts alone."""
        y, z = self.columns, self.act.arity * self.columns
        elements = z + y if self.what == FORWARD else y + z + z + y * self.needs.h
        return self.rows * elements * getattr(torch, self.dtype).itemsize + 4 * z * (self.what == MLP)


CASES = tuple(
    PointwiseCase(what, activation, dtype, *shape)
    for dtype, shape, activation, what in product(DTYPES, SHAPES, CLASSES, PASSES)
)


def pass_of(case: PointwiseCase, kernels: Any, z: Tensor, dy: Tensor) -> Callable[[], Results]:
    """The case as one call of a backend's launcher. Results get memory of their own: in a layer dz may take dy's, but here every sample
    must read the same."""
    applied = Applied(case.act.base, case.values, case.act.arity == 2)
    saved = z if case.keep == "input" else eager.apply(case.act, case.values, z)

    def forward() -> Results:
        y = torch.empty_like(dy)
        kernels.act_fwd(z, y, None, applied)
        return {"y": y}

    def backward() -> Results:
        found = kernels.act_bwd(dy, saved, case.keep, applied, case.needs)
        named = zip(("z", "y", "bias", "param"), found, case.needs, strict=True)
        return {name: part for name, part, needed in named if needed}

    return forward if case.what == FORWARD else backward


def failure(case: PointwiseCase, z: Tensor, dy: Tensor, found: Results) -> str | None:
    """The first result that is not accurate beside that of torch's own operations."""

    def plain(z: Tensor, dy: Tensor) -> Results:
        z = z.detach().requires_grad_()
        y = eager.apply(case.act, case.values, *z.unbind(1))[:, None]
        (dz,) = torch.autograd.grad(y, z, dy)
        return {"y": y.detach(), "z": dz, "bias": dz.sum(0)}

    def strip(tensor: Tensor, first: int) -> Tensor:
        """Those columns of gate and up, or of z alone: [..., 2 or 1, STRIP]."""
        return tensor.unflatten(-1, (-1, case.columns))[..., first : first + STRIP]

    for first in range(0, case.columns, STRIP):
        given = strip(z, first), strip(dy, first)
        stock, exact = plain(*given), plain(*(tensor.double() for tensor in given))
        actual = {name: strip(part, first).double() for name, part in found.items()}
        wrong = gate.failure(actual, stock, {name: exact[name] for name in actual}, z.dtype)
        if wrong:
            return wrong
    return None


def measured(case: PointwiseCase, backends: Mapping[str, Any], device: str) -> Row:
    """A row of results: each kernel (modules by their backends' names) is checked, and the right ones are timed in turns with the copy."""
    dtype = getattr(torch, case.dtype)
    z, dy = (torch.randn(case.rows, k * case.columns, device=device, dtype=dtype) for k in (case.act.arity, 1))
    right: dict[str, timing.Call] = {}
    failed, held = {}, []  # held: what a kernel leaves unwritten must not be memory with another's results
    for name, launchers in backends.items():
        call = pass_of(case, launchers, z, dy)
        try:
            held.append(call())
            wrong = failure(case, z, dy, held[-1])
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}".splitlines()[0]
        if wrong:
            failed[name] = {"failed": wrong}
        else:
            right[name] = call
    source = torch.empty(case.bytes // 2, dtype=torch.int8, device=device).random_()
    target = torch.empty_like(source)
    times = timing.measure({"copy": lambda: target.copy_(source), **right}, device)
    copy = times["copy"].median
    found = {
        name: {"us": us, "gbps": round(case.bytes / us.median / 1e3, 1), "of_copy": round(copy / us.median, 3)}
        for name, us in times.items()
    }
    return {**case._asdict(), "bytes": case.bytes, "results": {**found, **failed}}


def run(
    cases: Sequence[PointwiseCase], backends: Mapping[str, Any], device: str, path: Path | None, seconds: float
) -> list[Row]:
    """Return a row for each case that begins in time. With a path, the file is written again after each."""
    start, rows = time.monotonic(), []
    head = {**machine(), "target": TARGET}
    for case in progress(cases, "bandwidth", len(cases), "case", str):
        if time.monotonic() - start > seconds:
            break
        rows.append(measured(case, backends, device))
        if path:
            write(path, {**head, "rows": rows, "not_run": [str(case) for case in cases[len(rows) :]]})
    return rows


def cells(rows: Iterable[Row], names: Sequence[str]) -> list[tuple[str, ...]]:
    """The lines of the table, the backends side by side."""
    columns = [column for name in names for column in (f"{name}, us", "GB/s", "of the copy")]
    lines = [("pass", "activation", "dtype", "shape", "copy, GB/s", *columns)]
    for row in rows:
        shape, results = f"{row['rows']} x {row['columns']}", row["results"]
        line = [row["what"], row["activation"], row["dtype"], shape, f"{results['copy']['gbps']:.0f}"]
        for found in (results[name] for name in names):
            if "failed" in found:
                line += [f"FAILED: {found['failed']}", "", ""]
            else:
                share = f"{found['of_copy']:.1%}" + (", below" if found["of_copy"] < TARGET else "")
                line += [f"{found['us'][1]:.1f}", f"{found['gbps']:.0f}", share]
        lines.append(tuple(line))
    return lines


def verdict(rows: Sequence[Row], name: str) -> str:
    """Say how many of the backend's rows reach the target. One that failed does not."""
    shares = [row["results"][name].get("of_copy", 0.0) for row in rows]
    reached = sum(share >= TARGET for share in shares)
    return f"{name}: {reached} of {len(rows)} cases reach {TARGET:.0%} of the copy, the lowest {min(shares):.1%}"


def main(path: Path | None, seconds: float) -> int:
    """Measure and print, beginning no case after so long; 1 where a result is wrong. Without a GPU: list what would be measured."""
    if not torch.cuda.is_available():
        print(f"There is no GPU here. On one, these would be held against a copy, for {seconds:.0f} seconds:")
        print("\n".join(map(str, CASES)))
        return 0
    x = torch.empty(1, 1, device="cuda", dtype=torch.bfloat16)
    refusals = {name: kernels(name).refusal(x, x) for name in BACKENDS}
    backends = {name: kernels(name).launchers() for name, refusal in refusals.items() if refusal is None}
    if not backends:
        raise SystemExit(f"epilogue bandwidth: no kernel runs here, {'; '.join(map(str, refusals.values()))}")
    rows = run(CASES, backends, "cuda", path, seconds)
    print(table(cells(rows, [*backends])))
    for name, refusal in refusals.items():
        print(verdict(rows, name) if refusal is None else f"{name}: {refusal}")
    print(f"{len(rows)} cases, {len(CASES) - len(rows)} more for which there was no time")
    if path:
        print(f"written: {path}")
    return int(any("failed" in found for row in rows for found in row["results"].values()))
