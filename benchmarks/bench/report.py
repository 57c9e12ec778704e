"""`epilogue bench --report`: tables and plots from the result files of a folder, and where we lose.

Every ratio is of times, ours over theirs: below 1 epilogue is faster. The targets are those that the project set itself before it measured.
"""

import collections
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from epilogue.benchmarks.bench.plots import PICTURES, draw, path_of
from epilogue.benchmarks.bench.results import LIBRARIES, OURS, PRODUCT, TORCH, CaseRow, GPUResults, load
from epilogue.benchmarks.machine.host_cost import TARGET
from epilogue.benchmarks.report import check_place, counted, fill, markdown, table
from epilogue.benchmarks.train import training

Cells = list[tuple[str, ...]]

UNKNOWN = "not measured yet"
NOTHING = "No result of `epilogue bench` on a GPU is here yet."
HEADLINES = 10
"""Number of lost cases that the README names; SPEED has all of them."""
SPEED = "speed.md"


def targets(results: GPUResults | None) -> Cells:
    """Rows of (what, target, what was measured)."""
    rows = list(results.rows.values()) if results else []
    forward = [row for row in rows if row.case.op in ("linear", "glu") and _large(row)]
    trained = [row for row in rows if row.case.mode == "forward+backward" and row.case.op in ("mlp", "gated_mlp")]
    lines: Cells = [("what", "target", "measured")]
    for mode in ("inference", "training"):
        ratios = [(row.ratio(PRODUCT), row) for row in forward if row.case.mode == mode]
        what = f"fused forward, {mode}, over the bare cuBLAS product; 4096 ≤ tokens ≤ 16384, K, N ≥ 2048"
        lines.append((what, "worst ≤ 1.03", judged(ratios, 1.03)))
    ratios = [(row.ratio_to_best(TORCH), row) for row in rows]
    what = "any call over the best of eager, torch.compile, max-autotune, addmm_activation"
    lines.append((what, "worst ≤ 1.02, geometric mean ≤ 0.90", judged(ratios, 1.02, 0.90)))
    lines.append(
        ("MLP forward + backward over torch.compile, d 768 … 8192", "≥ 70 % of what the limit allows", reached(trained))
    )
    for name in LIBRARIES:
        what = f"MLP forward + backward over {name}"
        lines.append((what, "worst ≤ 1.00", judged([(row.ratio(name), row) for row in trained], 1.0)))
    lines.append(("host time of one 4×8 call over eager's", f"≤ {TARGET}", hosted(results.host if results else {})))
    return lines


def _large(row: CaseRow) -> bool:
    return 4096 <= row.case.tokens <= 16384 and min(row.case.d, row.case.hidden) >= 2048


def judged(pairs: Sequence[tuple[float | None, CaseRow]], worst: float, mean: float | None = None) -> str:
    """Verdict on the worst ratio and the geometric mean against their upper limits; missed too where ours failed."""
    known = [(ratio, row) for ratio, row in pairs if ratio is not None]
    failed = sum(OURS in row.absent for _, row in pairs)
    if not known:
        return f"missed: ours failed in {counted(failed, 'case')}" if failed else UNKNOWN
    highest, row = max(known, key=lambda pair: pair[0])
    average = statistics.geometric_mean(ratio for ratio, _ in known)
    met = highest <= worst and (mean is None or average <= mean) and not failed
    text = f"{_verdict(met)}: worst {highest:.3f} ({row.case}), geometric mean {average:.3f}, {counted(len(known), 'case')}"
    return f"{text}, ours failed in {failed} more" if failed else text


def reached(rows: Iterable[CaseRow]) -> str:
    """Verdict on the share reached of the possible gain over torch.compile, in 16-bit cases large enough for `gain_limit`."""
    known = []
    for row in rows:
        ratio = row.ratio("torch.compile")
        if ratio and row.case.dtype != "float32" and row.case.tokens >= 4096 and 768 <= row.case.d <= 8192:
            known.append(((1 / ratio - 1) / row.gain_limit(), row))
    if not known:
        return UNKNOWN
    least, row = min(known, key=lambda pair: pair[0])
    middle = statistics.median(share for share, _ in known)
    cases = f"{counted(len(known), 'case')} of 4096 tokens or more"
    return f"{_verdict(least >= 0.7)}: least {least:.0%} ({row.case}), median {middle:.0%}, {cases}"


def hosted(ratios: dict[str, float]) -> str:
    if not ratios:
        return UNKNOWN
    each = ", ".join(f"{mode} {ratio:.2f}" for mode, ratio in ratios.items())
    return f"{_verdict(max(ratios.values()) <= TARGET)}: {each}"


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def by_operation(rows: Sequence[CaseRow]) -> Cells:
    """Rows of geometric means, one for each operation, mode and dtype."""
    others = _others(rows)
    groups: dict[tuple[str, str, str], list[CaseRow]] = collections.defaultdict(list)
    for row in rows:
        groups[row.case.op, row.case.mode, _dtype(row)].append(row)
    lines: Cells = [("operation", "mode", "dtype", "cases", "of the roof", *others, "peak / eager's")]
    for group, members in groups.items():
        ratios = [_mean(row.ratio(name) for row in members) for name in others]
        roof, peak = _mean((row.of_roof() for row in members), "{:.0%}"), _mean(row.peak_ratio() for row in members)
        lines.append((*group, str(len(members)), roof, *ratios, peak))
    return lines


def _mean(values: Iterable[float | None], form: str = "{:.3f}") -> str:
    known = [value for value in values if value is not None]
    return form.format(statistics.geometric_mean(known)) if known else ""


def _others(rows: Iterable[CaseRow]) -> list[str]:
    """The providers to compare with that ran at all."""
    ran = {name for row in rows for name in row.measured}
    return [name for name in (*TORCH, *LIBRARIES) if name in ran]


def _dtype(row: CaseRow) -> str:
    return f"float32 {row.case.precision}" if row.case.dtype == "float32" else row.case.dtype


def by_shape(rows: Sequence[CaseRow]) -> Cells:
    """Rows of our time and what follows from it, then our time over each provider's; one for each case."""
    others = _others(rows)
    lines: Cells = [
        (
            "operation", "mode", "model", "tokens", "activation", "dtype", "us", "quartiles", "host us", "TFLOP/s", "GB/s",
            "of the roof", *others, "peak MiB", "peak / eager's",
        )
    ]  # fmt: skip
    for row in rows:
        case, ours = row.case, row.measured.get(OURS)
        head = (case.op, case.mode, case.model, str(case.tokens), case.activation, _dtype(row))
        if ours is None:
            lines.append((*head, row.absent.get(OURS, ""), *[""] * (len(lines[0]) - len(head) - 1)))
            continue
        lines.append(
            (
                *head, f"{ours.median:.1f}", f"{ours.low:.1f} - {ours.high:.1f}", f"{ours.host:.1f}",
                f"{row.flops / ours.median / 1e6:.0f}", f"{row.bytes / ours.median / 1e3:.0f}",
                _cell(row.of_roof(), "{:.0%}"), *(_cell(row.ratio(name)) for name in others),
                _cell(None if ours.peak is None else ours.peak / 2**20, "{:.0f}"), _cell(row.peak_ratio()),
            )
        )  # fmt: skip
    return lines


def _cell(value: float | None, form: str = "{:.3f}") -> str:
    return "" if value is None else form.format(value)


def losses(rows: Iterable[CaseRow]) -> Cells:
    """Rows of the cases that another provider runs faster by more than the spread, the worst first."""
    lost = [(row.ratio(name) or 0.0, name, row) for row in rows if (name := row.lost_to())]
    lines: Cells = [("case", "faster is", "its us", "ours", "ours / its")]
    for ratio, name, row in sorted(lost, key=lambda entry: -entry[0]):
        theirs, ours = row.measured[name].median, row.measured[OURS].median
        lines.append((str(row.case), name, f"{theirs:.1f}", f"{ours:.1f}", f"{ratio:.3f}"))
    return lines


def absences(results: GPUResults) -> Cells:
    """Rows of (provider, why it has no number, in how many cases)."""
    reasons = collections.Counter((name, why) for row in results.rows.values() for name, why in row.absent.items())
    lines: Cells = [("provider", "why it has no number", "cases")]
    lines += [(name, why, str(count)) for (name, why), count in reasons.most_common()]
    waiting = set(results.not_run) - set(map(str, results.rows))  # another suite may have had the time
    if waiting:
        lines.append(("all", "the time was up", str(len(waiting))))
    return lines


def heads(results: GPUResults) -> str:
    """A list with an item for each file: when it was measured, and with what."""
    lines = []
    for head in results.heads:
        ran = [f"{name} {head['versions'].get(name, 'unknown')}" for name in ("torch", "triton")]
        parts = [
            head["date"][:10],
            *ran,
            f"driver {head['driver'] or 'unknown'}",
            f"commit {(head['commit'] or 'unknown')[:12]}",
        ]
        if head["roof"]:
            parts.append("roof {product_tflops:.0f} TFLOP/s, {copy_gbps:.0f} GB/s".format(**head["roof"]))
        lines.append(f"- {head['file']}: {', '.join(parts)}")
    return "\n".join(lines)


RATIOS = (
    "Ratios are of medians of time, ours / theirs: below 1 epilogue is faster. Of the roof: the time of the bare cuBLAS products, "
    "without bias and activation, over ours."
)


def parts(results: GPUResults, form: Callable[[Cells], str], headlines: int | None) -> list[str]:
    """The report on one GPU, without its tables by shape; headlines: the most lost cases to name, None for all."""
    rows = list(results.rows.values())
    found = [heads(results), form(targets(results))]
    if rows:
        lost = losses(rows)
        shown = lost if headlines is None else lost[: headlines + 1]
        more = f", the worst {headlines} of them" if len(shown) < len(lost) else ""
        found += [f"{RATIOS} Geometric means by operation:", form(by_operation(rows))]
        found += [f"Where we lose, by more than the spread: {len(lost) - 1} of {counted(len(rows), 'case')}{more}"]
        found += [form(shown)] if len(lost) > 1 else []
        found += [
            f"No number of ours: {row.case}, {row.absent.get(OURS, 'not run')}"
            for row in rows
            if OURS not in row.measured
        ]
    if results.steps:
        found += [
            "One step of training; ratios are ours / stock, eager to eager and compiled to compiled:",
            form(training.cells(results.steps)),
        ]
    return found


def text(results: GPUResults, form: Callable[[Cells], str]) -> str:
    """The whole report on one GPU."""
    rows = list(results.rows.values())
    found = [f"# {results.gpu}", *parts(results, form, None)]
    found += ["Every case:", form(by_shape(rows))] if rows else []
    missing = absences(results)
    found += ["What is missing:", form(missing)] if len(missing) > 1 else []
    return "\n\n".join(found)


def readme(found: Sequence[GPUResults], directory: Path, document: Path) -> str:
    """The README's part, which links to the folder's pictures and to every case."""
    if not found:
        return f"{NOTHING}\n\n{markdown(targets(None))}"
    folder = Path(os.path.relpath(directory, document.parent)).as_posix()
    sections = []
    for results in found:
        sections += [f"**{results.gpu}**", *parts(results, markdown, HEADLINES)]
        for name, picture in PICTURES.items():
            path = path_of(name, results, directory)
            if path.exists():
                sections.append(
                    f"[{picture.title}]({folder}/{path.name})"
                )  # no image: on PyPI a relative one is broken
    return "\n\n".join([*sections, f"Every case: [{SPEED}]({folder}/{SPEED})."])


def main(directory: Path, document: Path | None, plots: bool) -> int:
    """Print the report on a folder's results; draw pictures into it; fill a README's part, and write every case into SPEED."""
    if document:
        check_place(document, "speed")
    found, left_out = load(directory)
    for message in left_out:
        print(message)
    print("\n\n\n".join(text(results, table) for results in found) or f"{NOTHING}\n\n{table(targets(None))}")
    written = [path for results in found for path in draw(results, directory)] if plots else []
    if document:
        fill(document, "speed", readme(found, directory, document))
        written.append(document)
    if document and found:
        written.append(directory / SPEED)
        written[-1].write_text("\n\n".join(text(results, markdown) for results in found) + "\n", encoding="utf-8")
    for path in written:
        print(f"written: {path}")
    return 0
