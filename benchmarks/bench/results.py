"""The contents of `epilogue bench`'s result files, and the numbers that follow from them.

Every ratio is of times, ours over theirs: below 1 epilogue is faster.
"""

import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from epilogue.benchmarks.bench.cases import Case
from epilogue.benchmarks.report import BENCH, GPU_RUN, HOST_COST, TRAINING
from epilogue.benchmarks.timing import Timing
from epilogue.benchmarks.train import training

OURS, PRODUCT = "epilogue", "cublas"
TORCH = ("eager", "torch.compile", "torch.compile max-autotune", "addmm_activation")
LIBRARIES = ("liger", "quack")


class Measured(NamedTuple):
    """One provider's call: lower quartile, median, upper quartile on the device and the host's time, microseconds; bytes at the peak."""

    low: float
    median: float
    high: float
    host: float
    peak: int | None


class Roof(NamedTuple):
    """Speeds that the GPU reached in the same run: a large bfloat16 product (TFLOP/s), a large copy (GB/s, read and written)."""

    product_tflops: float
    copy_gbps: float


@dataclass(frozen=True)
class CaseRow:
    """One case and its providers; absent: provider -> why it has no number."""

    case: Case
    flops: int
    bytes: int
    roof: Roof
    measured: dict[str, Measured]
    absent: dict[str, str]

    def ratio(self, provider: str) -> float | None:
        """Our time over the provider's; None where either is missing."""
        if OURS not in self.measured or provider not in self.measured:
            return None
        return self.measured[OURS].median / self.measured[provider].median

    def best(self, providers: Iterable[str]) -> str | None:
        """The fastest of those providers that ran."""
        ran = [name for name in providers if name in self.measured]
        return min(ran, key=lambda name: self.measured[name].median, default=None)

    def ratio_to_best(self, providers: Iterable[str]) -> float | None:
        best = self.best(providers)
        return self.ratio(best) if best else None

    def of_roof(self) -> float | None:
        """The bare product's time over ours: 1 is a call whose epilogue costs nothing."""
        ratio = self.ratio(PRODUCT)
        return 1 / ratio if ratio else None

    def peak_ratio(self) -> float | None:
        """Our peak of memory over eager's; None where either is unknown."""
        ours, eager = (self.measured[name].peak if name in self.measured else None for name in (OURS, "eager"))
        return ours / eager if ours and eager else None

    def lost_to(self) -> str | None:
        """The fastest other provider, if it beats us by more than the spread: its upper quartile lies below our lower one."""
        best = self.best((*TORCH, *LIBRARIES))
        if best and OURS in self.measured and self.measured[best].high < self.measured[OURS].low:
            return best
        return None

    def gain_limit(self) -> float:
        """The most by which an MLP's forward + backward can be faster than torch.compile's, as a share of our time (0.044: 4.4 %).

        Ours takes at least its products, flops / P. torch.compile takes the same and its pointwise kernels, bytes / B: with elements of
        2 bytes, M tokens and F hidden features it reads z and writes h, 4MF, reads dh and z and writes dz, 6MF; of a gated block 6MF (gate,
        up, h) and 10MF (dh, gate, up, dgate, dup), and 6Md for the sum of dx's two halves, which it may fold into a product: the limit is
        then lower, and what we reach of it understated. P and B are the run's measured roof; it holds where the products bound the time.
        """
        m, d, f = self.case.tokens, self.case.d, self.case.hidden
        passes = (6 + 10) * m * f + 6 * m * d if self.case.op == "gated_mlp" else (4 + 6) * m * f
        saved = passes / (self.roof.copy_gbps * 1e9)
        return saved / (self.flops / (self.roof.product_tflops * 1e12))


@dataclass
class GPUResults:
    """Everything that one file, or all files of a folder, hold about one GPU."""

    gpu: str
    heads: list[dict[str, Any]] = field(default_factory=list)  # one per file, in the order of their dates
    rows: dict[Case, CaseRow] = field(default_factory=dict)  # the later one where two files have the same case
    not_run: list[str] = field(default_factory=list)  # cases for which there was no time
    steps: list[training.TrainingRow] = field(default_factory=list)
    host: dict[str, float] = field(default_factory=dict)  # mode -> the host's time for one 4x8 call over eager's

    def add(self, later: "GPUResults") -> None:
        self.heads += later.heads
        self.rows |= later.rows
        self.not_run += later.not_run
        self.steps = later.steps or self.steps
        self.host |= later.host


def load(directory: Path) -> tuple[list[GPUResults], list[str]]:
    """(the results by GPU, a message for each file that is left out)."""
    read, left_out = [], []
    for name, text in _documents(directory):
        try:
            results = _read(name, text)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = f"is no result as this version writes it ({type(error).__name__}: {error})"
            left_out.append(f"left out: {name} {reason}")
            continue
        if results.gpu:
            read.append(results)
        else:
            left_out.append(f"left out: {name} was measured without a GPU")
    found: dict[str, GPUResults] = {}
    for results in sorted(read, key=lambda results: results.heads[0]["date"]):
        found.setdefault(results.gpu, GPUResults(results.gpu)).add(results)
    return list(found.values()), left_out


def _documents(directory: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of each result: of the files, and of those that a GPU run joined."""
    for path in sorted(path for pattern in READERS for path in directory.glob(pattern)):
        yield path.name, path.read_text(encoding="utf-8")
    joined = directory / GPU_RUN
    if joined.is_file():
        for files in json.loads(joined.read_text(encoding="utf-8")).values():
            for name, document in files.items():
                if any(fnmatch(name, pattern) for pattern in READERS):
                    yield name, json.dumps(document)


def _read(name: str, text: str) -> GPUResults:
    document = json.loads(text)
    head = {"date": document["date"], "versions": dict(document["versions"]), "file": name}
    head |= {name: document.get(name) for name in ("driver", "commit", "roof")}
    results = GPUResults(document["gpu"] or "", [head])
    (add,) = (READERS[pattern] for pattern in READERS if fnmatch(name, pattern))
    add(results, document)
    return results


def _add_bench(results: GPUResults, document: dict[str, Any]) -> None:
    roof = Roof(float(document["roof"]["product_tflops"]), float(document["roof"]["copy_gbps"]))
    for row in document["rows"]:
        read = row_of(row, roof)
        results.rows[read.case] = read
    results.not_run = list(document["not_run"])


def row_of(row: dict[str, Any], roof: Roof) -> CaseRow:
    """One row of a file."""
    measured, absent = {}, {}
    for name, found in row["providers"].items():
        if "us" in found:
            low, median, high = map(float, found["us"])
            measured[name] = Measured(low, median, high, float(found["host_us"]), found["peak_bytes"])
        else:
            (kind,) = found.keys() & {"skipped", "failed"}
            absent[name] = textwrap.shorten(f"{kind}: {found[kind]}", 120)  # an error's message may be of any length
    case = Case(**{name: row[name] for name in Case._fields})
    return CaseRow(case, row["flops"], row["bytes"], roof, measured, absent)


def _add_training(results: GPUResults, document: dict[str, Any]) -> None:
    for row in document["rows"]:
        fields = {name: row[name] for name in training.TrainingRow._fields}
        results.steps.append(training.TrainingRow(**{**fields, "us": Timing(*row["us"])}))
    training.cells(results.steps)  # a file that the report cannot show is refused here


def _add_host_cost(results: GPUResults, document: dict[str, Any]) -> None:
    results.host = {cost["mode"]: float(cost["ratio"]) for cost in document["costs_us"] if cost["device"] == "cuda"}


READERS = {BENCH: _add_bench, TRAINING: _add_training, HOST_COST: _add_host_cost}
"""A file's name -> what takes up its contents."""
