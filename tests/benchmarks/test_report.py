"""What every result says of where it was made, and how it is written."""

import json
import re
import subprocess
from types import SimpleNamespace

import pytest

from epilogue.benchmarks import report


def test_a_result_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "result.json"
    report.write(path, {"a": 1})
    with pytest.raises(TypeError):
        report.write(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    report.write(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert list(path.parent.iterdir()) == [path]


def test_the_driver_is_the_first_gpus(monkeypatch):
    monkeypatch.setattr(report.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(stdout="570.1\n570.1\n"))
    assert report.driver() == "570.1"
    monkeypatch.setattr(report.shutil, "which", lambda name: None)
    assert report.driver() == "unknown"


def test_the_commit_is_that_of_the_repository(monkeypatch):
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", report.commit())
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(stdout=""))
    assert report.commit() == "unknown"


def test_a_wheel_knows_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "__file__", str(tmp_path / "report.py"))
    assert report.commit() == "unknown"
    (tmp_path / "commit.txt").write_text("0123abc-dirty\n")  # which `make wheel` puts beside it
    assert report.commit() == "0123abc-dirty"


def test_no_cell_ends_its_row():
    assert report.markdown([("a", "b"), ("x | y", "z")]) == "| a | b |\n| --- | --- |\n| x \\| y | z |"
