"""Failures as rows: of each kind, from tests that fail on purpose in a pytest of their own, in one process and in several."""

import json
import os
import subprocess
import sys

import pytest

import checks
from epilogue.benchmarks.gpu_run import failures

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
LOST = """
import pytest

@pytest.mark.parametrize("i", range(6))
def test_one(i):
    if i == 1:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
"""
CRASH = """
import os

def test_dies():
    os._exit(1)
"""


@pytest.fixture(params=[(), ("-n", "2")], ids=["one process", "xdist"])
def parallel(request):
    if request.param:
        pytest.importorskip("xdist")
    return request.param


@pytest.fixture
def run(tmp_path):
    """(exit status, the file) of a pytest of its own."""

    def run(tests, *options):
        (tmp_path / "test_these.py").write_text(tests)
        (tmp_path / "pytest.ini").touch()
        path = tmp_path / "failures.json"
        options = ("-q", "-p", "epilogue.benchmarks.gpu_run.failures", "--failures", path, "-W", "error", *options)
        shared = os.path.dirname(checks.__file__)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": shared},
            capture_output=True,
            text=True,
        )
        assert path.exists(), done.stdout + done.stderr
        return done.returncode, json.loads(path.read_text())

    return run


def test_every_failure_is_a_row(run, parallel):
    status, found = run(TESTS, *parallel)
    assert status == 1
    assert found["tests"] == {"passed": 1, "failed": 5, "skipped": 1}
    assert (found["planned"], found["stopped"]) == (7, "")
    assert {"gpu", "driver", "versions", "commit", "date"} <= found.keys()
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


def test_the_time_is_up(run, parallel):
    status, found = run(LOST.replace("== 1", "> 9"), "--minutes", "0", *parallel)
    assert status == failures.STOPPED
    assert found["stopped"] == "0 minutes are over"
    assert 1 <= found["tests"]["passed"] <= found["planned"] == 6
    status, found = run(LOST.replace("== 1", ">= 0").replace("illegal", "all too legal"), "--minutes", "0", *parallel)
    assert status == failures.STOPPED_FAILED
    assert found["rows"][0]["kind"] == "launch"


def test_a_lost_context_is_not_every_later_tests_failure(run):
    """In one process nothing more can be learnt."""
    status, found = run(LOST)
    assert status == failures.STOPPED_FAILED
    assert found["stopped"] == "the GPU's context is lost"
    assert found["tests"] == {"passed": 1, "failed": 1, "skipped": 0}


def test_a_worker_whose_context_is_lost_is_replaced(run):
    pytest.importorskip("xdist")
    status, found = run(LOST, "-n", "1")
    assert status == 1
    assert found["tests"] == {"passed": 5, "failed": 1, "skipped": 0}
    (row,) = found["rows"]
    assert (row["kind"], row["op"]) == ("launch", "test_one")
    assert "illegal memory access" in row["message"]


def test_a_crash_is_a_row(run):
    pytest.importorskip("xdist")
    status, found = run(CRASH, "-n", "1")
    assert status == 1
    (row,) = found["rows"]
    assert row["kind"] == "crash"
    assert "crashed" in row["message"]


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
