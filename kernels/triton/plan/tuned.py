"""The measurements of `epilogue tune`: a file per GPU in the user's cache, and the file shipped for that GPU, where there is one.

A file: {"gpu", "driver", "torch", "triton", "entries": [{"problem": …, "choice": …, "us": …}, …]}. The user's file counts only for the GPU,
driver, torch and Triton it was measured with. The shipped one counts on every machine with that GPU, where the user's has no entry.
"""

import ctypes
import functools
import json
import os
import re
import tempfile
import warnings
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .chips import Machine
from .configs import Choice, Config
from .problem import DACT, DROPPED, GLU, LINEAR, Problem

SHIPPED = Path(__file__).with_name("tuned")
_FAMILIES = {"linear": LINEAR, "glu": GLU, "dact": DACT, "dact dropout": DROPPED}
STANDS_FOR_ALL = {False: "gelu", True: "silu"}
"""Gated? -> the activation that is compiled and measured in place of all others."""

Table = dict[Problem, tuple[Choice, float]]


def lookup(problem: Problem, chip: Machine) -> tuple[Choice, float] | None:
    """(choice, microseconds) as measured for the same n and k, and m rounded up to a power of two; None where absent.

    An activation that was not measured itself has the choice of the one that stands for all."""
    table = load(chip)
    key = key_of(problem)
    if key in table:
        return table[key]
    found = table.get(key._replace(activation=STANDS_FOR_ALL[problem.gated]))
    return None if found is None or found[0] == "library" else found


def key_of(problem: Problem) -> Problem:
    return problem._replace(m=1 << max(problem.m - 1, 0).bit_length(), library=False)


@functools.cache
def load(chip: Machine) -> Table:
    """All measurements of this chip. A file that cannot be read, or was measured on another machine, is left out with a warning."""
    known: Table = {}
    shipped, users = SHIPPED / file_name(chip), user_path(chip)
    for path in (shipped, users):
        if path is None or not path.is_file():
            continue
        try:
            known |= read(path, {"gpu": chip.name} if path is shipped else head(chip))
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(
                f"epilogue ignores {path}: {error}. `epilogue tune` writes it anew", RuntimeWarning, stacklevel=2
            )
    return known


def read(path: Path, expected: dict[str, str]) -> Table:
    """The file's entries; ValueError where its head is not the expected one."""
    contents = json.loads(path.read_text(encoding="utf-8"))
    for name, value in expected.items():
        if contents[name] != value:
            raise ValueError(f"it was measured with {name} {contents[name]}, here is {value}")
    return {_problem(entry["problem"]): (_choice(entry["choice"]), float(entry["us"])) for entry in contents["entries"]}


def save(found: Table, chip: Machine, path: Path) -> None:
    """Write the file in one move, so that nobody reads half of it."""
    entries = [
        {"problem": _problem_fields(problem), "choice": _choice_fields(choice), "us": us}
        for problem, (choice, us) in found.items()
    ]
    text = json.dumps({**head(chip), "entries": entries}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        file.write(text + "\n")
    try:
        os.replace(file.name, path)
    except OSError:
        os.remove(file.name)
        raise


def head(chip: Machine) -> dict[str, str]:
    """The GPU and the versions that a measurement holds for."""
    return {"gpu": chip.name, "driver": _driver(), "torch": torch.__version__, "triton": version("triton")}


def file_name(chip: Machine) -> str:
    return re.sub(r"\W+", "_", chip.name).strip("_") + ".json"


def user_path(chip: Machine) -> Path | None:
    """The path of the user's measurements, or None without platformdirs, which `tune` needs."""
    if find_spec("platformdirs") is None:
        return None
    import platformdirs

    return platformdirs.user_cache_path("epilogue", appauthor=False) / "tuned" / file_name(chip)


@functools.cache
def _driver() -> str:
    """The version of CUDA that the driver supports, which a process can query without a tool. torch 2.11 cannot."""
    if not torch.cuda.is_available():
        return "none"
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return str(version.value)


def _problem_fields(problem: Problem) -> dict[str, Any]:
    family = next(name for name, family in _FAMILIES.items() if family == problem.family)
    fields = {name: value for name, value in problem._asdict().items() if name != "library"}
    return {**fields, "family": family, "dtype": str(problem.dtype).removeprefix("torch.")}


def _problem(fields: dict[str, Any]) -> Problem:
    return Problem(**{**fields, "family": _FAMILIES[fields["family"]], "dtype": getattr(torch, fields["dtype"])})


def _choice_fields(choice: Choice) -> Any:
    return asdict(choice) if isinstance(choice, Config) else choice


def _choice(fields: Any) -> Choice:
    if isinstance(fields, dict):
        return Config(**fields)
    if fields not in ("unfused", "library"):
        raise ValueError(f"unknown choice {fields!r}")
    return fields
