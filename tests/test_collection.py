"""A package that only some tests need may be missing: those are skipped, and say so; nothing else is."""

import os
import subprocess
import sys
from pathlib import Path

OPTIONAL = [
    "cupy",
    "matplotlib",
    "ml_dtypes",
    "nvmath",
    "peft",
    "platformdirs",
    "sklearn",
    "timm",
    "tqdm",
    "transformers",
    "xdist",
]
WITHOUT = f"""
import importlib.machinery, sys

finder, hidden = importlib.machinery.PathFinder, {OPTIONAL}
find_spec = finder.find_spec
finder.find_spec = classmethod(lambda cls, name, *rest: None if name.split(".")[0] in hidden else find_spec(name, *rest))

import pytest

sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider"]))
"""


def test_the_suite_is_collected_without_the_optional_packages():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert skipped
    assert all("could not import" in line for line in skipped)
    assert "tests/kernels/triton/test_dispatch.py::" in done.stdout
