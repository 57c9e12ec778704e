"""`epilogue gpu-run`: everything that needs a GPU, the most valuable first, within a number of minutes; the results in one flat folder.

Each step is a process of its own with its own limit, so that one that fails or hangs stops no other. The folder holds

    summary.json   each step: its command, its status and its seconds
    results.json   step -> name of a file that it wrote -> its contents; `epilogue bench --report` reads them
    log.txt        what each step printed, the middle of a long one left out
    demo.png       and all other files that the steps wrote and that are not JSON

and is written again every few seconds, each file in one move: a run that is cut off leaves what it had. A second run into the same folder
goes on from there: it does not repeat a step that ended, well or not, with the same command, code, packages and GPU.
Nothing here needs a network.
"""

import contextlib
import functools
import hashlib
import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import epilogue
from epilogue.benchmarks.gpu_run.failures import STOPPED, STOPPED_FAILED
from epilogue.benchmarks.gpu_run.folder import Folder, Outcome
from epilogue.benchmarks.gpu_run.steps import Step, allowance, command_of, named, refusal, steps
from epilogue.benchmarks.provenance import commit, machine, versions
from epilogue.benchmarks.report import table

PATIENCE = 10
"""Seconds between asking a step to end and killing it."""
SAVED = 10.0
"""Seconds between two writes of what a running step has so far."""


def identity() -> str:
    """A hash of the code, the tests, the packages and the GPU; needs no repository."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    digest = hashlib.sha256(json.dumps([gpu, versions()]).encode())
    for root in (Path(epilogue.__file__).parent, Path("tests")):
        for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".cu", ".json")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def stale() -> str | None:
    """The first file of the checkout here that differs from the installed package's, or None."""
    package = Path(epilogue.__file__).parent
    folders = {"kernels": package, "nn": package / "nn", "benchmarks": package / "benchmarks"}
    for name, installed in folders.items():
        for path in sorted(Path(name).rglob("*.py")):
            other = installed / path.relative_to(name)
            if not other.is_file() or other.read_bytes() != path.read_bytes():
                return path.as_posix()
    return None


def run(steps: Sequence[Step], minutes: float, out: Path, force: bool = False) -> list[Outcome]:
    """Run every step in turn, within so many minutes altogether; force: repeat those too that have ended in this folder before."""
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
        if before is None or before.status.startswith("not run"):  # an earlier run's result stays
            folder.outcomes[step.name] = Outcome(step.name, 0.0, f"not run: {reason}", shlex.join(step.command), *ran)
            folder.save()
    return [folder.outcomes[step.name] for step in steps]


def one(step: Step, allowed: float, folder: Folder, ran: tuple[str, str]) -> None:
    """Run the step and end it when its minutes are over; the folder takes up what it printed and wrote, also while it runs."""
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
        # A session of its own, so that what the step starts can be ended with it. SIGINT ends it even if this run ignores that, as under
        # nohup. The folder kernels/ must not be importable by that name.
        process = subprocess.Popen(
            command_of(step, allowed, work), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True, env={**os.environ, "PYTHONSAFEPATH": "1"},
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
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
    """A step's status, from its exit status; None where it still runs."""
    if code is None and allowed == step.minutes:
        return f"failed: over its limit of {step.minutes:g} minutes"
    if code is None or code == STOPPED:
        return "stopped: its time was up"
    if code == STOPPED_FAILED:
        return "failed: some tests, until its time was up"
    return f"failed: exit status {code}" if code else "ok"


def stop(process: subprocess.Popen) -> None:
    """End a step and all that it started: interrupt it as Ctrl-C does, upon which pytest still prints what failed, then kill it."""
    os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    with contextlib.suppress(ProcessLookupError):  # nothing of it is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(names: Sequence[str] | None, minutes: float, out: Path, force: bool) -> int:
    """Run these steps or all and print the summary; 1 where one failed. Without a GPU: list them."""
    try:
        todo = steps() if names is None else named(names, steps())
    except ValueError as error:
        raise SystemExit(f"epilogue gpu-run: {error}") from error
    if not torch.cuda.is_available():
        print(f"torch finds no GPU here. With one, this would run in at most {minutes:g} minutes, in this order:")
        lines = [(step.name, f"{step.minutes:g}", ", ".join(step.missing), shlex.join(step.command)) for step in todo]
        print(table([("step", "minutes", "not found here", "command"), *lines]))
        return 0
    changed = stale()
    if changed:
        raise SystemExit(
            f"epilogue gpu-run: {changed} is not what is installed; build and install it anew (`make wheel gpu`)"
        )
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # so that the running step is ended too, and the folder written
    outcomes = run(todo, minutes, out, force)
    print(table([("step", "seconds", "status"), *((o.step, f"{o.seconds:.0f}", o.status) for o in outcomes)]))
    print(f"written: {', '.join(sorted(path.name for path in out.iterdir()))} in {out}")
    return int(any(outcome.status.startswith("failed") for outcome in outcomes))
