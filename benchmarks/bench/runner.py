"""`epilogue bench`: every provider of a case checked against float64, then timed in turns; the results as data.

A provider whose results are wrong gets no time. The file is written again after each case, so that a run cut short leaves what it measured.
What is derived from the numbers, throughputs and ratios, is the report's.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from epilogue import triton
from epilogue.benchmarks import timing
from epilogue.benchmarks.bench import gate, providers
from epilogue.benchmarks.bench.cases import SUITES, Case, Operands, Suite, operands
from epilogue.benchmarks.bench.providers import PROVIDERS, TUNED, Provider
from epilogue.benchmarks.progress import progress
from epilogue.benchmarks.provenance import machine
from epilogue.benchmarks.report import slug, table, write

ROOF_SIZE, ROOF_BYTES = 8192, 1 << 30

Result = dict[str, Any]


def main(name: str, ops: Sequence[str], directory: Path | None, seconds: float | None = None) -> int:
    """Run the suite's cases of these operations; 1 where a result of epilogue is wrong. Without a GPU: say what would run.

    seconds: after which no further case begins, instead of the suite's own.
    """
    suite = SUITES[name]._replace(cases=tuple(case for case in SUITES[name].cases if case.op in ops))
    if seconds is not None:
        suite = suite._replace(seconds=seconds)
    if not torch.cuda.is_available():
        print(f"There is no GPU here. On one, the suite {name} is:\n{plan(suite)}")
        return 0
    x = torch.empty(1, 1, device="cuda", dtype=torch.bfloat16)
    refusal = triton.refusal(x, x)
    if refusal:
        raise SystemExit(f"epilogue bench: no Triton kernel runs here, {refusal}")
    return status(run(name, suite, "cuda", directory))


def status(result: Result) -> int:
    """Print how the run went; 1 where epilogue failed."""
    wrong = [row for row in result["rows"] if "failed" in row["providers"]["epilogue"]]
    print(
        f"{len(result['rows'])} cases: {len(wrong)} failed; {len(result['not_run'])} more for which there was no time"
    )
    return int(bool(wrong))


def plan(suite: Suite) -> str:
    """Text: the cases, the providers that take part in each, and why the others do not."""
    lines = [f"{len(suite.cases)} cases, of which those run that begin within {suite.seconds / 60:g} minutes", ""]
    counts: dict[str, Counter[str | None]] = {name: Counter() for name in PROVIDERS}
    for index, case in enumerate(suite.cases):
        refusals = {name: provider.refusal(case) for name, provider in chosen(suite, index).items()}
        lines.append(f"{case}: {', '.join(name for name, refusal in refusals.items() if refusal is None)}")
        for name, refusal in refusals.items():
            counts[name][refusal] += 1
    rows = [("provider", "cases", "skipped")]
    for name, found in counts.items():
        skipped = (f"{count}: {reason}" for reason, count in found.items() if reason is not None)
        rows.append((name, str(found[None]), "; ".join(skipped)))
    return "\n".join([*lines, "", table(rows)])


def chosen(suite: Suite, index: int) -> Mapping[str, Provider]:
    """The providers for the suite's case of that index."""
    if index < suite.tuned:
        return PROVIDERS
    reason = f"tunes for long; the suite has it in its first {suite.tuned} cases"
    return {**PROVIDERS, TUNED: PROVIDERS[TUNED]._replace(refusal=lambda case: reason)}


def run(name: str, suite: Suite, device: str, directory: Path | None) -> Result:
    """Run the suite; with a directory the result's file is there from the first case on."""
    start = time.monotonic()
    head: Result = machine()
    head["versions"] = {**head["versions"], **providers.versions()}
    result: Result = {**head, "suite": name, "roof": roof(device), "rows": [], "not_run": list(map(str, suite.cases))}
    path = directory / f"bench-{name}-{slug(head['gpu'] or head['cpu'])}.json" if directory else None
    if path:
        write(path, result)
    for index, case in enumerate(progress(suite.cases, "bench", len(suite.cases), "case", str)):
        if time.monotonic() - start > suite.seconds:
            break
        row = measured(case, device, chosen(suite, index))
        result["rows"].append(row)
        del result["not_run"][0]
        tqdm.write(f"{case}: {summary(row['providers'])}")
        if path:
            write(path, result)
    if path:
        print(f"written: {path}")
    return result


def roof(device: str) -> dict[str, float]:
    """Measure the device's limits: TFLOP/s of a bfloat16 product, GB/s of a copy, bytes read and bytes written."""
    a, b = (torch.randn(ROOF_SIZE, ROOF_SIZE, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.zeros(ROOF_BYTES, device=device, dtype=torch.int8)
    target = torch.empty_like(source)
    times = timing.measure({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, device)
    return {
        "product_tflops": round(2 * ROOF_SIZE**3 / times["product"].median / 1e6, 1),
        "copy_gbps": round(2 * ROOF_BYTES / times["copy"].median / 1e3, 1),
    }


def measured(case: Case, device: str, taking_part: Mapping[str, Provider]) -> Result:
    """Check and time one case: a row of the result."""
    torch.compiler.reset()  # every case is a recompilation of one function, and torch allows eight
    with float32_products(case.precision):
        found, calls = checked(case, operands(case, device), taking_part)
        times = timing.measure(calls, device)
        for name, call in calls.items():
            found[name] = {
                "us": list(times[name]),
                "host_us": round(timing.host_time(call, device), 2),
                "peak_bytes": timing.peak_bytes(call, device),
            }
    results = {name: found[name] for name in taking_part}
    return {**case._asdict(), "flops": case.flops, "bytes": case.bytes, "providers": results}


def checked(
    case: Case, given: Operands, taking_part: Mapping[str, Provider]
) -> tuple[dict[str, Result], dict[str, timing.Call]]:
    """Provider -> why it gets no time, and the calls of the others; eager, by which they are judged, comes first."""
    found: dict[str, Result] = {}
    calls: dict[str, timing.Call] = {}
    truth = gate.exact(case, given)
    stock: gate.Parts | None = None
    for name, provider in taking_part.items():
        refusal = provider.refusal(case)
        if refusal is None and stock is None and name not in ("eager", "cublas"):
            refusal = "eager failed, and there is nothing to compare with"
        if refusal is not None:
            found[name] = {"skipped": refusal}
            continue
        wrong = None
        try:
            call = provider.call(case, given)
            results = call()
            if name != "cublas":
                results = gate.parts(case, given, results)
                stock = stock or results
                wrong = gate.failure(results, stock, truth, given.x.dtype)
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}".splitlines()[0]
            if given.x.is_cuda:
                torch.cuda.synchronize()  # after an error that has broken the GPU's context the run ends here
        if wrong:
            found[name] = {"failed": wrong}
        else:
            calls[name] = call
    return found, calls


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Set the precision of float32 products, "tf32" or "ieee", by torch's own switch, as users do."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def summary(results: dict[str, Result]) -> str:
    """One line: epilogue's time, and the others' over it."""
    ours = results["epilogue"]
    if "us" not in ours:
        return "; ".join(f"{what}: {why}" for what, why in ours.items())
    median = ours["us"][1]
    others = (
        f"{name} {results[name]['us'][1] / median:.2f}"
        for name in results
        if "us" in results[name] and name != "epilogue"
    )
    failed = (f"{name} failed" for name in results if "failed" in results[name])
    return f"{median:.1f} us; relative to it: {', '.join([*others, *failed])}"
