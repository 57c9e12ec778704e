"""What the commands print alike: aligned tables, and the versions that they ran with."""

import importlib
import importlib.util
import platform
from collections.abc import Iterable, Sequence


def table(rows: Iterable[Sequence[str]]) -> str:
    """The rows as aligned columns; the first is the heading."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


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
