"""What the commands print and write alike: aligned tables, results, the README's parts, and what they ran with."""

import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

GPU_RUN = "results.json"
"""The file in which `epilogue gpu-run` joins those of its steps: step -> file name -> contents."""


def table(rows: Iterable[Sequence[str]]) -> str:
    """The rows as aligned columns; the first is the heading."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """The rows as a table of the README; the first is the heading."""
    heading, *body = rows
    lines = ([cell.replace("|", r"\|") for cell in row] for row in (heading, ["---"] * len(heading), *body))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(path: Path, result: dict[str, Any]) -> None:
    """The result as JSON, at once: who reads the file meanwhile, or after a crash, finds a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(partial, path)


def slug(name: str) -> str:
    """A name, such as a GPU's, as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def fill(path: Path, name: str, text: str) -> None:
    """Put the text between the file's lines `<!-- name -->` and `<!-- /name -->`."""
    check_place(path, name)
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def check_place(path: Path, name: str) -> None:
    """Before a result is measured: that there is a file with a place for it."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not 0 <= text.find(begin) < text.find(end):
        raise SystemExit(f"{path} has no lines {begin} and {end}, between which the result would go")


def versions() -> dict[str, str]:
    """Package -> version, "not installed", or why it does not import."""
    packages = ("epilogue", "numpy", "torch", "triton", "cupy")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(name: str) -> str:
    if importlib.util.find_spec(name) is None:
        return "not installed"
    try:
        return importlib.import_module(name).__version__
    except Exception as error:  # a package may fail in any way where its driver or libraries are missing
        return f"does not import: {error}"


def driver() -> str:
    """The version of NVIDIA's driver, or "unknown"."""
    return _line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def commit() -> str:
    """The commit of the code that runs, `-dirty` where it was changed since, or "unknown"; of a wheel what `make wheel` wrote into it."""
    here = Path(__file__).resolve()
    built = here.with_name("commit.txt")
    git = ("git", "-C", str(here.parent))
    tracked = _line(*git, "ls-files", here.name)  # nothing where the package is installed inside another repository
    if tracked != here.name:
        return built.read_text().strip() if built.is_file() else "unknown"
    return _line(*git, "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40")


def _line(program: str, *arguments: str) -> str:
    """The first line that the program prints, "unknown" where there is none."""
    tool = shutil.which(program)
    if tool is None:
        return "unknown"
    printed = subprocess.run([tool, *arguments], capture_output=True, text=True).stdout.splitlines()
    return printed[0] if printed else "unknown"
