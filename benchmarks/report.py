"""What the commands print and write alike: aligned tables, the README's parts, and the versions that they ran with."""

import importlib
import importlib.util
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path


def table(rows: Iterable[Sequence[str]]) -> str:
    """The rows as aligned columns; the first is the heading."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """The rows as a table of the README; the first is the heading."""
    heading, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *body))


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
