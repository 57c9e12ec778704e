"""The provenance that every result states."""

import re
import subprocess
from types import SimpleNamespace

from epilogue.benchmarks import provenance


def test_the_driver_is_the_first_gpus(monkeypatch):
    monkeypatch.setattr(provenance.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(stdout="570.1\n570.1\n"))
    assert provenance.driver() == "570.1"
    monkeypatch.setattr(provenance.shutil, "which", lambda name: None)
    assert provenance.driver() == "unknown"


def test_the_commit_is_that_of_the_repository(monkeypatch):
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", provenance.commit())
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(stdout=""))
    assert provenance.commit() == "unknown"


def test_a_wheel_knows_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert provenance.commit() == "unknown"
    (tmp_path / "commit.txt").write_text("0123abc-dirty\n")  # which `make wheel` puts beside it
    assert provenance.commit() == "0123abc-dirty"
