"""Print versions, the GPU, the backend that each kind of array takes and why not another, and check one kernel against the NumPy reference.
Exit status 1 where that check fails, torch is missing or EPILOGUE_BACKEND names no backend."""

import argparse
import importlib.util
import os
import subprocess
import sys

from epilogue import backends

HELP = "what is installed, what runs where, and one kernel's check"
EXAMPLES = """\
  epilogue doctor              what is installed, what runs where, and whether a kernel computes rightly
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    from epilogue.benchmarks.provenance import versions
    from epilogue.benchmarks.report import table

    try:
        backends.chosen()
    except ValueError as error:
        print(f"FAILED: {error}. Without that variable:\n")
        environment = {name: value for name, value in os.environ.items() if name != "EPILOGUE_BACKEND"}
        return subprocess.run([sys.executable, "-m", "epilogue", *args.argv], env=environment).returncode or 1
    print(table([("package", "version"), *versions().items()]), end="\n\n")
    try:
        from epilogue.benchmarks.machine import doctor
    except (ImportError, OSError) as error:  # OSError: one of torch's own libraries is missing
        print(f"FAILED: {_said(error)}. Until then epilogue serves NumPy arrays alone, by its reference.")
        return 1
    return doctor.main()


def _said(error: Exception) -> str:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed; pip install torch"
    return f"torch is installed and does not import, {error}"
