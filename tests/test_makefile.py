"""What make would do. `make gpu`: with a wheel that lies there it asks no network for anything, without one it builds it."""

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


def planned(folder, *arguments):
    """The commands that make would run in a folder of the Makefile alone."""
    shutil.copy(Path(__file__).parent.parent / "Makefile", folder)
    command = ["make", "--dry-run", "--no-print-directory", "PYTHON=/its/own/python", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.fixture
def project(tmp_path):
    """A folder with what an installation depends on, and a virtual environment."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", ".venv/bin/python"):
        (tmp_path / name).touch()
    return tmp_path


def test_the_demo_installs_its_own_extra_alone(project):
    commands = "\n".join(planned(project, "demo"))
    assert ' -e ".[demo]" ' in commands
    assert "timm" not in commands
    assert commands.endswith(".venv/bin/epilogue demo ")


def test_the_reference_installs_its_own_extra_alone(project):
    commands = planned(project, "docs")
    assert any(' -e ".[docs]" ' in command for command in commands)
    assert commands[-1].endswith(" epilogue epilogue.nn epilogue.typing epilogue.vocabulary")


def test_what_the_tests_installed_serves_the_demo(project):
    commands = planned(project, "check")
    assert any(' -e ".[test]" ' in command for command in commands)
    assert any(command.endswith(" timm") for command in commands)
    (marker,) = (command.removeprefix("touch ") for command in commands if command.startswith("touch "))
    (project / marker).touch()
    assert [command.strip() for command in planned(project, "demo")] == [".venv/bin/epilogue demo"]


def test_a_wheel_that_is_there_is_installed(tmp_path):
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "epilogue-0.1.0-py3-none-any.whl").touch()
    assert planned(tmp_path, "gpu", "ARGS=--minutes 5") == [
        "/its/own/python -m pip install --quiet --no-index --no-deps --force-reinstall dist/*.whl",
        "/its/own/python -m epilogue gpu-run --minutes 5",
    ]


def test_one_that_is_not_is_built(tmp_path):
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "liger_kernel-1.0-py3-none-any.whl").touch()
    commands = planned(tmp_path, "gpu")
    assert commands[0] == "/its/own/python -m venv .venv"
    assert any(command.startswith(".venv/bin/python -m pip wheel ") for command in commands)
    assert commands[-2:] == [
        "/its/own/python -m pip install --quiet --no-index --no-deps --force-reinstall dist/*.whl",
        "/its/own/python -m epilogue gpu-run ",
    ]
