"""The steps of `epilogue gpu-run`, the most valuable first: what each one runs, needs and may take."""

import importlib.util
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

TRITON, CUPY = "tests/kernels/triton", "tests/kernels/cupy"
EDGES, TENSORS = f"{TRITON}/test_edges.py", f"{CUPY}/test_tensors.py"
VALUABLE = (
    EDGES,
    *(
        f"{TRITON}/test_{name}.py"
        for name in ("fast", "formulas", "kernels", "mlp", "mlp_kept", "mlp_odd", "dropout", "autograd")
    ),
    TENSORS,
)
"""The kernel tests that tell the most, before all others."""
LEAST = 1.0
"""The least minutes for which a step that can plan is begun."""


class Step(NamedTuple):
    """One command, and the programs, files or Python packages that it needs: it is left out where one is missing.

    "{out}" in the command becomes a folder for its files, "{minutes}" the minutes that it may plan for.
    """

    name: str
    minutes: float  # at most
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def plans(self) -> bool:
        """True for a step that ends by itself after the minutes it is told."""
        return "{minutes}" in self.command

    @property
    def least(self) -> float:
        """The least minutes for which the step is begun; for one that cannot plan, half of its own."""
        return min(LEAST, self.minutes) if self.plans else self.minutes / 2

    @property
    def missing(self) -> list[str]:
        """The needs that are not found here."""
        return [need for need in self.needs if not found(need)]


def found(need: str) -> bool:
    """True where this program, file, folder or Python package is here."""
    return bool(
        shutil.which(need)
        or Path(need).exists()
        or (need.isidentifier() and importlib.util.find_spec(need) is not None)
    )


def steps() -> list[Step]:
    """All steps, in the order in which they run."""
    ours, pytest = (sys.executable, "-m", "epilogue"), (sys.executable, "-m", "pytest", "-q", "-p", "no:benchmark")
    parallel = ("-n", "logical") if importlib.util.find_spec("xdist") else ()

    def tests(name: str, *what: str) -> tuple[str, ...]:
        report = ("--failures", f"{{out}}/{name}.json", "--minutes", "{minutes}")
        return (*pytest, "-p", "epilogue.benchmarks.gpu_run.failures", *report, *what)

    def checked(name: str, tool: str, *what: str) -> tuple[str, ...]:
        # Every tensor in memory of its own: in torch's large blocks one would overrun into the next unseen.
        sanitizer = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--error-exitcode", "1")
        return (*sanitizer, "--tool", tool, *tests(name, *what))

    def bench(suite: str) -> tuple[str, ...]:
        return (*ours, "bench", "--suite", suite, "--json", "{out}", "--minutes", "{minutes}")

    tune = ("tune", "--model-dims", "4096", "14336", "--minutes", "{minutes}", "--out", "{out}/tuned.json")
    bandwidth = ("bandwidth", "--json", "{out}/bandwidth.json", "--minutes", "{minutes}")
    small = "shapes or config or layouts"
    sanitized, plots = ("compute-sanitizer", "pytest"), ("matplotlib", "tqdm")
    return [
        Step("doctor", 2, (*ours, "doctor")),
        Step("kernels", 9, tests("kernels", *parallel, *VALUABLE, "tests/kernels"), ("pytest", "tests/kernels")),
        Step("memcheck", 3, checked("memcheck", "memcheck", EDGES, "-k", small), (*sanitized, EDGES)),
        Step("bench-smoke", 4, bench("smoke"), ("tqdm",)),
        Step("bench-headline", 14, bench("headline"), ("tqdm",)),
        Step("tune", 8, (*ours, *tune), ("tqdm",)),
        Step("training", 6, (*ours, "training", "--json", "{out}"), ("tqdm",)),
        Step("bandwidth", 4, (*ours, *bandwidth), ("tqdm",)),
        Step("demo", 2, (*ours, "demo", "--out", "{out}"), (*plots, "sklearn")),
        Step("tests", 9, tests("tests", *parallel, "tests", "--ignore", "tests/kernels"), ("pytest", "tests")),
        Step("racecheck", 6, checked("racecheck", "racecheck", EDGES, "-k", "config"), (*sanitized, EDGES)),
        Step(
            "memcheck-cupy",
            5,
            checked("memcheck-cupy", "memcheck", TENSORS, "-k", "operation or learnable"),
            (*sanitized, TENSORS, "cupy"),
        ),
        Step("host-cost", 2, (*ours, "host-cost", "--json", "{out}/host_cost_gpu.json")),
        Step("memory", 4, (*ours, "memory", "--json", "{out}/memory_gpu.json"), plots),
    ]


def named(names: Iterable[str], known: Sequence[Step]) -> list[Step]:
    """The steps of these names, in this order; ValueError for an unknown name."""
    by_name = {step.name: step for step in known}
    unknown = [repr(name) for name in names if name not in by_name]
    if unknown:
        raise ValueError(f"no step is called {', '.join(unknown)}; there are {', '.join(by_name)}")
    return [by_name[name] for name in dict.fromkeys(names)]


def allowance(step: Step, left: float, later: Sequence[Step]) -> float:
    """Minutes for a step: its own, as far as the later steps keep their least ones; at most its share for a step that can plan."""
    share = step.minutes / (step.minutes + sum(other.minutes for other in later)) if step.plans else 1.0
    spared = max(step.least, left - sum(other.least for other in later))
    return max(0.0, min(step.minutes, left, spared, max(step.least, left * share)))


def refusal(step: Step, allowed: float) -> str | None:
    """The reason why the step is not begun, or None."""
    if step.missing:
        return f"{', '.join(step.missing)} not found here"
    if allowed < step.least:
        return f"{allowed:.1f} minutes left for it, it needs {step.least:g}"
    return None


def command_of(step: Step, allowed: float, work: str) -> list[str]:
    """The command, told where to write and, if it can plan, to stop by itself after four fifths of its minutes."""
    return [word.replace("{minutes}", f"{0.8 * allowed:.2f}").replace("{out}", work) for word in step.command]
