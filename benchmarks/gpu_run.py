"""`epilogue gpu-run`: all that needs a GPU, in the minutes there are, the most valuable first; what came of it in one flat folder.

Each step is a process of its own with its own limit, so that one that fails or hangs stops no other. The folder holds

    summary.json   what each step was, how it went, in how many seconds
    results.json   step -> name of a file that it wrote -> its contents; `epilogue bench --report` reads them
    log.txt        what each step printed, the middle of a long one left out
    demo.png       and whatever else the steps wrote that is no JSON

and is written again every few seconds, each file at once: a run that is cut off leaves what it had. Called again with the same folder it
goes on: a step that came to its end, well or not, with the same command, code, packages and GPU, is not repeated.
Nothing here asks for a network.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import epilogue
from epilogue.benchmarks.failures import STOPPED, STOPPED_FAILED
from epilogue.benchmarks.host_cost import machine
from epilogue.benchmarks.report import GPU_RUN, commit, table, versions, write

TRITON, CUPY = "tests/kernels/triton", "tests/kernels/cupy"
EDGES, TENSORS = f"{TRITON}/test_edges.py", f"{CUPY}/test_tensors.py"
VALUABLE = (
    EDGES,
    *(f"{TRITON}/test_{name}.py" for name in ("fast", "formulas", "kernels", "mlp", "autograd")),
    TENSORS,
)
"""The kernel tests that tell the most, before all others."""
PATIENCE = 10
"""Seconds between asking a step to end and killing it."""
SAVED = 10.0
"""Seconds after which what a running step has so far is written."""
LOG = 1 << 20
"""Bytes of a step's log: of a longer one the first quarter and the rest from its end. All steps' together stay under 16 MiB."""
PAGE = "\n\f===== "
"""Between the steps' logs."""
LEAST = 1.0
"""Minutes for which a step that can plan is worth beginning."""


class Step(NamedTuple):
    """One command, and the programs, files or Python packages without which it is left out.

    In it "{out}" becomes a folder for its files, and "{minutes}" what it may plan for.
    """

    name: str
    minutes: float  # at most
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def plans(self) -> bool:
        """Whether it ends by itself when it is told to."""
        return "{minutes}" in self.command

    @property
    def least(self) -> float:
        """Minutes with fewer than which it is not begun; one that cannot plan needs half of its own."""
        return min(LEAST, self.minutes) if self.plans else self.minutes / 2


class Outcome(NamedTuple):
    """How a step went: status is "ok", "failed: …", "stopped: …" where its time was up, "running", or "not run: …"."""

    step: str
    seconds: float
    status: str
    command: str
    commit: str
    code: str  # `identity` of what ran

    @property
    def finished(self) -> bool:
        return self.status == "ok" or self.status.startswith("failed: exit status")


def steps() -> list[Step]:
    """What is run, in this order."""
    ours, pytest = (sys.executable, "-m", "epilogue"), (sys.executable, "-m", "pytest", "-q")
    parallel = ("-n", "logical") if importlib.util.find_spec("xdist") else ()

    def tests(name: str, *what: str) -> tuple[str, ...]:
        report = ("--failures", f"{{out}}/{name}.json", "--minutes", "{minutes}")
        return (*pytest, "-p", "epilogue.benchmarks.failures", *report, *what)

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
    """The steps of these names, in this order. ValueError for a name that there is not."""
    by_name = {step.name: step for step in known}
    unknown = [repr(name) for name in names if name not in by_name]
    if unknown:
        raise ValueError(f"no step is called {', '.join(unknown)}; there are {', '.join(by_name)}")
    return [by_name[name] for name in dict.fromkeys(names)]


class Folder:
    """What a run leaves: its outcomes, results and logs by step, and those of earlier runs into the same folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head: dict[str, Any] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        if (path / "summary.json").exists():
            steps = json.loads((path / "summary.json").read_text(encoding="utf-8"))["steps"]
            self.outcomes = {step["step"]: Outcome(**step) for step in steps}
            self.results = json.loads((path / GPU_RUN).read_text(encoding="utf-8"))
            pages = (path / "log.txt").read_text(encoding="utf-8").split(PAGE)[1:]
            self.logs = {name: text for name, _, text in (page.partition("\n") for page in pages)}

    def save(self) -> None:
        """The summary last: a step that it calls finished has left its results. The log has a page for each step."""
        write(self.path / GPU_RUN, self.results)
        partial = self.path / "log.txt.partial"
        partial.write_text("".join(f"{PAGE}{name}\n{text}" for name, text in self.logs.items()), encoding="utf-8")
        os.replace(partial, self.path / "log.txt")
        write(self.path / "summary.json", {**self.head, "steps": [each._asdict() for each in self.outcomes.values()]})

    def take(self, outcome: Outcome, work: Path, log: Path) -> None:
        """How a step stands: what it printed and wrote so far."""
        self.outcomes[outcome.step] = outcome
        self.logs[outcome.step] = excerpt(log, LOG).replace("\f", "\n")
        for path in sorted(work.iterdir()):
            if path.suffix == ".json":
                try:
                    document = json.loads(path.read_text(encoding="utf-8"))
                except ValueError as error:  # half written, by a step that is at it or was ended
                    document = f"no JSON: {error}"
                self.results.setdefault(outcome.step, {})[path.name] = document
            elif path.is_file() and path.suffix != ".partial" and outcome.status != "running":
                shutil.copyfile(path, self.path / path.name)
        self.save()


def excerpt(path: Path, limit: int) -> str:
    """The text of a file; of one with more bytes its first quarter of the limit, and its end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size <= limit:
            return file.read().decode(errors="ignore")
        head = file.read(limit // 4)
        file.seek(size - (limit - limit // 4))
        tail = file.read(limit - limit // 4)
    left_out = f"\n[{size - limit} bytes left out]\n"
    return head.decode(errors="ignore") + left_out + tail.decode(errors="ignore")


def identity() -> str:
    """One for all runs of the same code, tests, packages and GPU; no repository need be there."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    digest = hashlib.sha256(json.dumps([gpu, versions()]).encode())
    for root in (Path(epilogue.__file__).parent, Path("tests")):
        for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".cu", ".json")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def stale() -> str | None:
    """A file of the checkout here that is another one in the package that runs, or None."""
    package = Path(epilogue.__file__).parent
    folders = {"kernels": package, "nn": package / "nn", "benchmarks": package / "benchmarks"}
    for name, installed in folders.items():
        for path in sorted(Path(name).rglob("*.py")):
            other = installed / path.relative_to(name)
            if not other.is_file() or other.read_bytes() != path.read_bytes():
                return path.as_posix()
    return None


def run(steps: Sequence[Step], minutes: float, out: Path, force: bool = False) -> list[Outcome]:
    """Every step in turn, within so many minutes altogether; force: also those that came to their end in this folder before."""
    deadline = time.monotonic() + 60 * minutes
    folder = Folder(out)
    folder.head = {**machine(), "minutes": minutes}
    ran = commit(), identity()
    todo = []
    for step in steps:
        done = folder.outcomes.get(step.name)
        if done and done.finished and (done.command, done.code) == (shlex.join(step.command), ran[1]) and not force:
            print(f"{step.name}: {done.status}, from an earlier run; --force repeats it", flush=True)
        else:
            todo.append(step)
    for index, step in enumerate(todo):
        allowed = allowance(step, (deadline - time.monotonic()) / 60, todo[index + 1 :])
        reason, before = refusal(step, allowed), folder.outcomes.get(step.name)
        if reason is None:
            one(step, allowed, folder, ran)
            print(f"{step.name}: {folder.outcomes[step.name].status}", flush=True)
            continue
        print(f"{step.name}: not run: {reason}", flush=True)
        if before is None or before.status.startswith("not run"):  # else what an earlier run found is not lost
            folder.outcomes[step.name] = Outcome(step.name, 0.0, f"not run: {reason}", shlex.join(step.command), *ran)
            folder.save()
    return [folder.outcomes[step.name] for step in steps]


def allowance(step: Step, left: float, later: Sequence[Step]) -> float:
    """Minutes for a step: what it may need, if the later ones keep what they need at least; of one that can plan its share."""
    share = step.minutes / (step.minutes + sum(other.minutes for other in later)) if step.plans else 1.0
    spared = max(step.least, left - sum(other.least for other in later))
    return max(0.0, min(step.minutes, left, spared, max(step.least, left * share)))


def refusal(step: Step, allowed: float) -> str | None:
    """Why the step is not begun, or None."""
    missing = [need for need in step.needs if not _found(need)]
    if missing:
        return f"{', '.join(missing)} not found here"
    if allowed < step.least:
        return f"{allowed:.1f} minutes left for it, it needs {step.least:g}"
    return None


def _found(need: str) -> bool:
    """A program, a file or folder from here, or a Python package."""
    return bool(
        shutil.which(need)
        or Path(need).exists()
        or (need.isidentifier() and importlib.util.find_spec(need) is not None)
    )


def command_of(step: Step, allowed: float, work: str) -> list[str]:
    """The command, told where to write, and to stop by itself after four fifths of the minutes that it is allowed, where it can be."""
    return [word.replace("{minutes}", f"{0.8 * allowed:.2f}").replace("{out}", work) for word in step.command]


def one(step: Step, allowed: float, folder: Folder, ran: tuple[str, str]) -> None:
    """Run the step and end it when its minutes are over; the folder takes what it printed and wrote, while it runs, too."""
    print(f"{step.name}: at most {allowed:.1f} minutes", flush=True)
    start = time.monotonic()
    for book in (folder.results, folder.logs, folder.outcomes):
        book.pop(step.name, None)
    with tempfile.TemporaryDirectory() as work, tempfile.NamedTemporaryFile() as log:

        def take(status: str) -> None:
            seconds = round(time.monotonic() - start, 1)
            outcome = Outcome(step.name, seconds, status, shlex.join(step.command), *ran)
            folder.take(outcome, Path(work), Path(log.name))

        status = "stopped: the run was ended"
        # A session of its own, so that what the step starts can be ended with it. The folder kernels/ must not be importable by that name.
        process = subprocess.Popen(
            command_of(step, allowed, work), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True, env={**os.environ, "PYTHONSAFEPATH": "1"},
        )  # fmt: skip
        try:
            while process.poll() is None and (rest := 60 * allowed - (time.monotonic() - start)) > 0:
                take("running")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(rest, SAVED))
            status = verdict(process.poll(), step, allowed)
        finally:
            if process.poll() is None:
                stop(process)
            take(status)


def verdict(code: int | None, step: Step, allowed: float) -> str:
    """A step's status by its exit status; None: it goes on."""
    if code is None and allowed == step.minutes:
        return f"failed: over its limit of {step.minutes:g} minutes"
    if code is None or code == STOPPED:
        return "stopped: its time was up"
    if code == STOPPED_FAILED:
        return "failed: some tests, until its time was up"
    return f"failed: exit status {code}" if code else "ok"


def stop(process: subprocess.Popen) -> None:
    """End a step and all that it started: ask as Ctrl-C does, whereupon pytest still says what failed, then kill."""
    os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    with contextlib.suppress(ProcessLookupError):  # nothing of it is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(names: Sequence[str] | None, minutes: float, out: Path, force: bool) -> int:
    """Run these steps or all, print the summary; 1 where one failed. Without a GPU list them."""
    try:
        todo = steps() if names is None else named(names, steps())
    except ValueError as error:
        raise SystemExit(f"epilogue gpu-run: {error}") from error
    if not torch.cuda.is_available():
        print(f"torch finds no GPU here. With one, this would run in at most {minutes:g} minutes, in this order:")
        lines = [
            (
                step.name,
                f"{step.minutes:g}",
                ", ".join(need for need in step.needs if not _found(need)),
                shlex.join(step.command),
            )
            for step in todo
        ]
        print(table([("step", "minutes", "not found here", "command"), *lines]))
        return 0
    changed = stale()
    if changed:
        raise SystemExit(
            f"epilogue gpu-run: {changed} is not what is installed; build and install it anew (`make wheel gpu`)"
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what runs is ended with this, and the folder written
    outcomes = run(todo, minutes, out, force)
    print(table([("step", "seconds", "status"), *((o.step, f"{o.seconds:.0f}", o.status) for o in outcomes)]))
    print(f"written: {', '.join(sorted(path.name for path in out.iterdir()))} in {out}")
    return int(any(outcome.status.startswith("failed") for outcome in outcomes))
