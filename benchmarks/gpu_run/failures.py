"""A pytest plugin, `-p epilogue.benchmarks.gpu_run.failures`: every failure as a row of data, and an end in time; for `epilogue gpu-run`.

A row says of what kind the failure is: "compile" (Triton, ptxas, NVRTC), "launch" (CUDA refused or broke), "number" (a result is wrong),
"crash" (the process is gone) or "other"; and which operation, dtype and shape it was, the worst element, and how far off against torch's
own error, where the test told (checks.Inaccurate).
"""

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from epilogue.benchmarks.provenance import machine
from epilogue.benchmarks.report import write

STOPPED, STOPPED_FAILED = 75, 76
"""Exit statuses where the time was up: without and with a failure until then."""
SECONDS = 5.0
"""Time between two writes of the file, so that a run that is killed leaves one."""

KINDS = {
    "compile": r"CompilationError|CompileException|PTXASError|PassManager::run failed|CalledProcessError|nvrtc",
    "launch": r"CUDA error|CUDA driver|Triton Error \[CUDA\]|OutOfResources|CUDA\w+Error|AcceleratorError|CUBLAS_STATUS",
    "number": r"^(?:AssertionError|Inaccurate|Failed)\b",
}
"""A failure's kind is the first whose pattern is in the name or message of the exception, or of one that it came from."""
LOST = re.compile(
    r"illegal memory access|misaligned address|unspecified launch failure|device-side assert|illegal instruction|"
    r"invalid program counter|hardware stack error|context is destroyed"
)
"""After these every further call of CUDA in that process fails, too."""
WORST = re.compile(r"Greatest absolute difference: (\S+) at index \(([\d, ]*)\)")
"""The part of torch.testing.assert_close's message that is read."""


def row(item: pytest.Item, error: BaseException) -> dict[str, Any]:
    """One failure as data; None for what the test did not tell."""
    callspec = getattr(item, "callspec", None)
    params = callspec.params if callspec else {}
    told = dict(getattr(error, "found", {}))
    worst = WORST.search(str(error))
    if worst and not told:
        told = {"error": float(worst[1]), "index": [int(i) for i in worst[2].split(",") if i.strip()]}
    dtype = params.get("dtype")
    return {
        "kind": kind(error),
        "op": params.get("op", getattr(item, "originalname", item.name)),
        "dtype": told.get("dtype", None if dtype is None else str(dtype).removeprefix("torch.")),
        **{
            name: told.get(name) for name in ("shape", "index", "actual", "exact", "measure", "error", "torch", "ratio")
        },
        "message": _texts(error)[0][:300],
        "parameters": callspec.id if callspec else "",
    }


def kind(error: BaseException) -> str:
    texts = _texts(error)
    return next((name for name, pattern in KINDS.items() if any(re.search(pattern, text) for text in texts)), "other")


def _texts(error: BaseException | None) -> list[str]:
    """ "Type: message" of an exception and of all that it came from."""
    texts = []
    while error is not None:
        texts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return texts


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("epilogue")
    group.addoption("--failures", type=Path, metavar="FILE", help="write every failure as a row of JSON")
    group.addoption("--minutes", type=float, metavar="N", help="after which no further test begins")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Worker())
    else:
        config.pluginmanager.register(Report(config.getoption("--failures"), config.getoption("--minutes")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A run that may be stopped has tried some of everything: of the files named, and of each file's tests, in a fixed random order."""
    if config.getoption("--minutes") is None:
        return
    files = [str(argument) for argument in config.invocation_params.args if str(argument).endswith(".py")]

    def turn(item: pytest.Item) -> tuple[int, str]:
        file = item.nodeid.partition("::")[0]
        rank = 0 if [file] == files[:1] else 1 if file in files else 2
        return rank, hashlib.sha256(item.nodeid.encode()).hexdigest()

    items.sort(key=turn)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and call.excinfo:
        report.user_properties.append(("failure", row(item, call.excinfo.value)))  # pytest-xdist carries it over
    return report


def _failure(report: pytest.TestReport) -> dict[str, Any] | None:
    return next((value for name, value in report.user_properties if name == "failure"), None)  # type: ignore[return-value]


def _lost(failure: dict[str, Any] | None) -> bool:
    """True for a failure that took the GPU's context with it."""
    return bool(failure and failure["kind"] == "launch" and LOST.search(failure["message"]))


class Worker:
    """A worker of pytest-xdist: it ends itself once its context on the GPU is lost, and xdist starts another in its place."""

    lost = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.lost |= _lost(_failure(report))

    @pytest.hookimpl(trylast=True)  # once the report is away
    def pytest_runtest_logfinish(self) -> None:
        if self.lost:
            os._exit(1)


class Report:
    """Counts the tests, keeps the failures as rows, and watches the clock."""

    def __init__(self, path: Path | None, minutes: float | None) -> None:
        self.path, self.minutes = path, minutes
        self.begun = self.written = time.monotonic()
        self.head: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()
        self.rows: dict[str, dict[str, Any]] = {}  # by the test's name
        self.planned, self.stopped = 0, ""

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session
        self.head = dict(machine())

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.planned = max(self.planned, len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.planned = len(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.nodeid not in self.rows:  # pytest-xdist tells of a Worker's end, too
            self.counts["failed"] += 1
            crash = {"kind": "crash", "message": str(report.longrepr)[:300]}
            self.rows[report.nodeid] = {"test": report.nodeid, **(_failure(report) or crash)}
            if _lost(_failure(report)) and not self._xdist():
                self._stop("the GPU's context is lost")
        elif report.skipped or (report.passed and report.when == "call"):
            self.counts[report.outcome] += 1
        now = time.monotonic()
        if self.minutes is not None and now - self.begun > 60 * self.minutes:
            self._stop(f"{self.minutes:g} minutes are over")
        if now - self.written > SECONDS:
            self._write()

    def _xdist(self) -> Any:
        return self.session.config.pluginmanager.getplugin("dsession")

    def _stop(self, reason: str) -> None:
        self.stopped = self.stopped or reason
        (self._xdist() or self.session).shouldstop = self.stopped

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._write()
        if self.stopped:
            session.exitstatus = STOPPED_FAILED if self.rows else STOPPED

    def _write(self) -> None:
        self.written = time.monotonic()
        if self.path:
            counts = {name: self.counts[name] for name in ("passed", "failed", "skipped")}
            head = {**self.head, "tests": counts, "planned": self.planned, "stopped": self.stopped}
            write(self.path, {**head, "rows": [*self.rows.values()]})
