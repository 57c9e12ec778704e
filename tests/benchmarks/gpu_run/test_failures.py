"""Failures as rows: of each kind, from tests that fail on purpose in a pytest of their own, in one process and in several."""

import json
import subprocess

import pytest
import torch.distributed.tensor  # noqa: F401  # assert_close imports it, once a process; pytester forgets what a test imports

import checks
from epilogue.benchmarks.gpu_run import failures

pytest_plugins = "pytester"

TESTS = """
import pytest, torch
from checks import assert_accurate

class CompilationError(Exception):
    pass

def test_good():
    pass

def test_skipped():
    pytest.skip("not here")

@pytest.mark.parametrize(("op", "dtype"), [("glu", torch.float16)])
def test_far_off(op, dtype):
    exact = torch.arange(6, dtype=torch.float64).view(2, 3)
    torchs, actual = exact.to(dtype), exact.to(dtype)
    torchs[0, 1] += 0.25
    actual[1, 2] += 2
    assert_accurate(actual, torchs, exact)

def test_close():
    torch.testing.assert_close(torch.tensor([[1.0, 2.0], [3.0, 4.5]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))

def test_compile():
    try:
        raise CompilationError("at 3:4: no such thing")
    except CompilationError as error:
        raise RuntimeError("the launcher's") from error

def test_launch():
    raise RuntimeError("Triton Error [CUDA]: invalid argument")

def test_other():
    raise TypeError("takes 2 positional arguments")
"""
SIX = """
import pytest

@pytest.mark.parametrize("i", range(6))
def test_one(i):
    if {}:
        raise RuntimeError("CUDA error: an {} memory access was encountered")
"""
GOOD, LAUNCH, LOST = (
    SIX.format("False", "illegal"),
    SIX.format("True", "all too legal"),
    SIX.format("i == 1", "illegal"),
)
CRASH = """
import os

def test_dies():
    os._exit(1)
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """(exit status, the file) of a pytest of its own; it runs in this process, its workers in theirs."""
    monkeypatch.setattr(failures, "machine", lambda: {"gpu": "a test's"})

    def run(tests, *options):
        pytester.makepyfile(**tests)
        path = pytester.path / "failures.json"
        plugin = ("-p", failures.__name__, "--failures", path)
        strict = ("-W", "error", "-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning")
        status = pytester.runpytest_inprocess(*plugin, *strict, *options).ret
        return status, json.loads(path.read_text())

    return run


@pytest.mark.parametrize("parallel", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_every_failure_is_a_row(run, parallel):
    if parallel:
        pytest.importorskip("xdist")
    status, found = run({"test_these": TESTS}, *parallel)
    assert status == 1
    assert found["tests"] == {"passed": 1, "failed": 5, "skipped": 1}
    assert (found["planned"], found["stopped"], found["gpu"]) == (7, "", "a test's")
    rows = {row["test"].partition("::")[2]: row for row in found["rows"]}
    kinds = {
        "far_off[glu-dtype0]": "number",
        "close": "number",
        "compile": "compile",
        "launch": "launch",
        "other": "other",
    }
    assert {name: row["kind"] for name, row in rows.items()} == {f"test_{name}": kind for name, kind in kinds.items()}
    far = rows["test_far_off[glu-dtype0]"]
    assert far == far | {
        "op": "glu", "dtype": "float16", "shape": [2, 3], "index": [1, 2], "actual": 7.0, "exact": 5.0, "measure": "largest",
        "error": 2.0, "torch": 0.25, "ratio": 8.0, "parameters": "glu-dtype0",
    }  # fmt: skip
    close = rows["test_close"]
    assert (close["op"], close["index"], close["error"], close["ratio"]) == ("test_close", [1, 1], 0.5, None)
    assert rows["test_launch"]["message"] == "RuntimeError: Triton Error [CUDA]: invalid argument"


@pytest.mark.parametrize("parallel", [(), ("-n", "2")], ids=["one process", "xdist"])
@pytest.mark.parametrize(
    ("tests", "status"), [(GOOD, failures.STOPPED), (LAUNCH, failures.STOPPED_FAILED)], ids=["passed", "failed"]
)
def test_the_time_is_up(tests, status, run, parallel):
    if parallel:
        pytest.importorskip("xdist")
    ended, found = run({"test_these": tests}, "--minutes", "0", *parallel)
    assert ended == status
    assert found["stopped"] == "0 minutes are over"
    assert 1 <= found["tests"]["passed"] + found["tests"]["failed"] <= found["planned"] == 6
    assert {row["kind"] for row in found["rows"]} == ({"launch"} if status == failures.STOPPED_FAILED else set())


def test_a_run_in_time_tries_some_of_everything(pytester):
    """The first file's tests come first, then those of the others that are named, then the rest, each in mixed order."""
    for name in ("a", "b", "c"):
        pytester.makepyfile(**{f"test_{name}": GOOD})
    command = ("-p", failures.__name__, "-q", "--minutes", "1", "test_c.py", "test_b.py", ".")
    ordered = pytester.runpytest_subprocess(*command, "--collect-only").outlines[:18]
    assert [line[5] for line in ordered] == [*"c" * 6, *"b" * 6, *"a" * 6]
    assert [line[-2] for line in ordered[:6]] != [*"012345"]
    pytester.runpytest_subprocess(*command).assert_outcomes(passed=18)


def test_a_lost_context_is_not_every_later_tests_failure(run):
    """In one process nothing more can be learnt."""
    status, found = run({"test_these": LOST})
    assert status == failures.STOPPED_FAILED
    assert found["stopped"] == "the GPU's context is lost"
    assert found["tests"] == {"passed": 1, "failed": 1, "skipped": 0}


def test_a_worker_that_is_gone_is_replaced(run):
    """One that ended itself, since its context was lost, and one that crashed."""
    pytest.importorskip("xdist")
    status, found = run({"test_lost": LOST, "test_crash": CRASH}, "-n", "1")
    assert status == 1
    assert found["tests"] == {"passed": 5, "failed": 2, "skipped": 0}
    rows = {row["kind"]: row for row in found["rows"]}
    assert rows.keys() == {"launch", "crash"}
    assert rows["launch"]["op"] == "test_one"
    assert "illegal memory access" in rows["launch"]["message"]
    assert "crashed" in rows["crash"]["message"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AssertionError("x"), "number"),
        (checks.Inaccurate(error=1.0), "number"),
        (RuntimeError("PassManager::run failed"), "compile"),
        (subprocess.CalledProcessError(1, ["ptxas"]), "compile"),
        (RuntimeError("CUDA error: invalid argument"), "launch"),
        (type("OutOfResources", (Exception,), {})("shared memory"), "launch"),
        (type("CUDARuntimeError", (Exception,), {})("cudaErrorInvalidValue"), "launch"),
        (RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED"), "launch"),
        (ValueError("an AssertionError in the midst"), "other"),
    ],
)
def test_kinds(error, kind):
    assert failures.kind(error) == kind
