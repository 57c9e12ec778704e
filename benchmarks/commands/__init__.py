"""A module per command of the command line: `epilogue gpu-run` is gpu_run.py. ../cli.py finds them all.

A module's docstring is the command's description, HELP its line in `epilogue --help`, EXAMPLES its examples there; add_options declares its
options; run runs it and returns the exit status. None imports torch or Triton before it runs, so that `--help` is quick, `doctor` works on
a broken installation, and `demo --interpret` can set Triton's switch in time.

This file holds what several share: a type of option, and checks of what a command needs.
"""

import argparse
import importlib.util
import math
import os
import sys

FILES = {"bash": "_shtab_compgen_files", "zsh": "_files"}
"""What completes a file's name, in shtab's scripts: the value of an option's attribute `complete`."""


def minutes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"a number of minutes is more than 0, got {text!r}")
    return number


def need(command: str, extra: str, distributions: dict[str, str]) -> None:
    missing = [name for module, name in distributions.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SystemExit(
            f'epilogue {command}: {", ".join(missing)} not installed; pip install ".[{extra}]" in a copy of the repository'
        )


def need_triton(what: str) -> None:
    if importlib.util.find_spec("triton") is None:
        raise SystemExit(f"epilogue {what} needs Triton, which pip installs on Linux alone: pip install triton")


def restart_interpreted(what: str, argv: list[str]) -> None:
    """Run the same command in a fresh process: this one has read Triton's switch already, when it imported `epilogue`."""
    from epilogue.triton import interpreter_refusal

    refusal = interpreter_refusal()
    if refusal:
        raise SystemExit(f"epilogue {what}: {refusal}")
    command = [sys.executable, "-m", "epilogue", *argv]
    os.execve(sys.executable, command, {**os.environ, "TRITON_INTERPRET": "1"})
