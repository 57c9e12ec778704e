"""What mypy and pyright say about a user's scripts, and the types that are lists of names."""

import inspect
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import epilogue
from epilogue import activations, catalogue, explanation, typing

TYPED = Path(__file__).parent / "typed"
SCRIPTS = [str(TYPED / "right.py"), str(TYPED / "wrong.py")]
EXPECTED = [i for i, line in enumerate(Path(SCRIPTS[1]).read_text().splitlines(), 1) if line.endswith("# wrong")]


def checked(folder, *command):
    """The checker's output. It runs away from the root, whose configuration is not the user's."""
    done = subprocess.run([sys.executable, "-m", *command, *SCRIPTS], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_mypy_finds_a_users_mistakes_and_nothing_else(tmp_path, request):
    pytest.importorskip("mypy")
    cache = request.config.cache.mkdir("mypy")  # kept between runs: the types of torch take 15 seconds
    out = checked(tmp_path, "mypy", "--strict", "--config-file=", "--cache-dir", str(cache))
    found = [line for line in out.splitlines() if ": error: " in line]
    assert [int(re.match(r".*wrong\.py:(\d+): ", line)[1]) for line in found] == EXPECTED, out


def test_pyright_finds_a_users_mistakes_and_nothing_else(tmp_path):
    pytest.importorskip("pyright")
    out = checked(tmp_path, "pyright", "--pythonpath", sys.executable, "--outputjson")
    found = {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1) for each in json.loads(out)["generalDiagnostics"]
    }
    assert found == {("wrong.py", line) for line in EXPECTED}, out


def test_the_script_that_is_right_runs():
    runpy.run_path(SCRIPTS[0])


@pytest.mark.parametrize(
    "documented",
    [getattr(epilogue, name) for name in explanation.OPS] + [epilogue.nn.FusedLinear, epilogue.nn.FusedGLU]
    + [epilogue.nn.FusedMLP, epilogue.nn.FusedGatedMLP],
)  # fmt: skip
def test_a_docstring_names_every_argument(documented):
    sections = dict(re.findall(r"\n {4}(\w+):\n((?: {8}.*\n)+)", documented.__doc__ + "\n"))
    arguments = re.findall(r"^ {8}([\w*]+): ", sections["Args"], re.MULTILINE)
    assert [name.strip("*") for name in arguments] == [*inspect.signature(documented).parameters]
    assert {"Shape", "Raises"} <= {*sections}


def test_the_names_of_activations_are_those_of_the_catalogue():
    names = {*get_args(typing.ActivationName)}
    shipped = {
        key: entry for key, entry in catalogue.BY_KEY.items() if entry.base.value.__module__ == activations.__name__
    }
    assert {catalogue.key_of(name) for name in names} == {*shipped}  # where no "_" tells log_sigmoid from logsigmoid
    assert {entry.name for entry in shipped.values()} <= names
