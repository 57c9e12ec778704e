"""Tables, results and the README's parts, as all commands print and write them."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = BENCH, TRAINING, HOST_COST = "bench-*.json", "training-*.json", "host_cost*.json"
"""The names of the files that `epilogue bench --report` reads."""
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
    """Write the result as JSON, in one move: a reader finds a whole file at any time, and after a crash too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(partial, path)


def counted(number: int, name: str) -> str:
    """The number with the name, in the plural where it is not one."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


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
    """Stop before a result is measured where the file has no place for it."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not 0 <= text.find(begin) < text.find(end):
        raise SystemExit(f"{path} has no lines {begin} and {end}, between which the result would go")
