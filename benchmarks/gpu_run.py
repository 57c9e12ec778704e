"""`epilogue gpu-run`: all that needs a GPU, in the minutes there are, the most valuable first; logs and results in one folder.

Each step is a process of its own with its own limit, so that one that fails or hangs stops no other.
"""

import contextlib
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from epilogue.benchmarks.report import commit, table, versions, write

EDGES, TENSORS = "tests/kernels/triton/test_edges.py", "tests/kernels/cupy/test_tensors.py"
PATIENCE = 10
"""Seconds between asking a step to end and killing it."""


class Step(NamedTuple):
    """One command, and the programs or files without which it is left out; "{minutes}" in it becomes what it may plan for."""

    name: str
    minutes: float  # at most
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """How a step went: status is "ok", "failed: …", "stopped: …" where the whole run's time was up, or "not run: …", without a log."""

    step: str
    seconds: float
    status: str
    log: str
    command: str


def steps(out: Path) -> list[Step]:
    """What is run, in this order."""
    epilogue, pytest = (sys.executable, "-m", "epilogue"), (sys.executable, "-m", "pytest")
    results = ("--json", str(out))
    tune = (
        *epilogue,
        "tune",
        "--model-dims",
        "4096",
        "14336",
        "--minutes",
        "{minutes}",
        "--out",
        str(out / "tuned.json"),
    )

    def checked(tool: str) -> tuple[str, ...]:
        # Every tensor in memory of its own: in torch's large blocks one would overrun into the next unseen.
        sanitizer = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--error-exitcode", "1")
        return (*sanitizer, "--tool", tool, *pytest, "-q")

    sanitized, on_cupy = ("compute-sanitizer", EDGES), ("compute-sanitizer", TENSORS)
    return [
        Step("doctor", 3, (*epilogue, "doctor")),
        Step("tests", 15, (*pytest, "-n", "logical"), ("tests",)),
        Step("bench-smoke", 5, (*epilogue, "bench", "--suite", "smoke", *results)),
        Step("bench-headline", 14, (*epilogue, "bench", "--suite", "headline", *results)),
        Step("bandwidth", 4, (*epilogue, "bandwidth", "--json", str(out / "bandwidth.json"))),
        Step("memcheck", 10, (*checked("memcheck"), EDGES), sanitized),
        Step("memcheck-cupy", 5, (*checked("memcheck"), TENSORS, "-k", "operation or learnable"), on_cupy),
        Step("racecheck", 10, (*checked("racecheck"), EDGES, "-k", "config"), sanitized),
        Step("tune", 10, tune),
        Step("training", 6, (*epilogue, "training", *results)),
        Step("host-cost", 2, (*epilogue, "host-cost", "--json", str(out / "host_cost_gpu.json"))),
        Step("memory", 4, (*epilogue, "memory", "--json", str(out / "memory_gpu.json"))),
        Step("demo", 3, (*epilogue, "demo", "--out", str(out))),
    ]


def run(steps: Sequence[Step], minutes: float, out: Path) -> list[Outcome]:
    """Every step in turn, within so many minutes altogether; summary.json is written again after each."""
    deadline = time.monotonic() + 60 * minutes
    outcomes: list[Outcome] = []
    head = {"minutes": minutes, "versions": versions(), "commit": commit()}
    for step in steps:
        left = (deadline - time.monotonic()) / 60
        reason = refusal(step, left)
        if reason:
            outcomes.append(Outcome(step.name, 0.0, f"not run: {reason}", "", shlex.join(step.command)))
        else:
            outcomes.append(one(step, left, out))
        write(out / "summary.json", {**head, "steps": [outcome._asdict() for outcome in outcomes]})
        print(f"{step.name}: {outcomes[-1].status}, {outcomes[-1].seconds:.0f} s", flush=True)
    return outcomes


def refusal(step: Step, left: float) -> str | None:
    """Why the step is not begun, or None; minutes left that are less than half of what it may need are kept for later, shorter steps."""
    missing = [need for need in step.needs if not (shutil.which(need) or Path(need).exists())]
    if missing:
        return f"{', '.join(missing)} not found here"
    if left < step.minutes / 2:
        return f"{max(left, 0):.1f} minutes left, it may need {step.minutes:g}"
    return None


def command_of(step: Step, allowed: float) -> list[str]:
    """The command, told to stop by itself after four fifths of the minutes that it is allowed, where it can be."""
    return [word.replace("{minutes}", str(math.ceil(0.8 * allowed))) for word in step.command]


def one(step: Step, left: float, out: Path) -> Outcome:
    """Run the step, its output into a log, and end it when its minutes or the run's are over."""
    allowed = min(step.minutes, left)
    command = command_of(step, allowed)
    log = out / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{step.name}: at most {allowed:.1f} minutes, {log}", flush=True)
    start = time.monotonic()
    with log.open("wb") as file:
        # A session of its own, so that what the step starts can be ended with it. The folder kernels/ must not be importable by that name.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )  # fmt: skip
        try:
            code = process.wait(60 * allowed)
            status = f"failed: exit status {code}" if code else "ok"
        except subprocess.TimeoutExpired:
            over = f"failed: over its limit of {step.minutes:g} minutes"
            status = over if allowed == step.minutes else "stopped: the run's time was up"
        finally:
            if process.poll() is None:
                stop(process)
    return Outcome(step.name, round(time.monotonic() - start, 1), status, str(log), shlex.join(command))


def stop(process: subprocess.Popen) -> None:
    """End a step and all that it started: ask as Ctrl-C does, whereupon pytest still says what failed, then kill."""
    os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    with contextlib.suppress(ProcessLookupError):  # nothing of it is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(minutes: float, out: Path) -> int:
    """Run every step, print the summary; 1 where one failed. Without a GPU list them."""
    todo = steps(out)
    if not torch.cuda.is_available():
        print(f"torch finds no GPU here. With one, this would run in at most {minutes:g} minutes, in this order:")
        lines = [(step.name, f"{step.minutes:g}", shlex.join(command_of(step, step.minutes))) for step in todo]
        print(table([("step", "minutes", "command"), *lines]))
        return 0
    outcomes = run(todo, minutes, out)
    print(
        table(
            [("step", "seconds", "status", "log"), *((o.step, f"{o.seconds:.0f}", o.status, o.log) for o in outcomes)]
        )
    )
    return int(any(outcome.status.startswith("failed") for outcome in outcomes))
