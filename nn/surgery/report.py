"""The report of `fuse`: a row for each module, printed as a table."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A module that was fused, or that was refused although it looks like an MLP, for the reason given."""

    path: str
    pattern: str
    activation: str
    reason: str = ""


@dataclass
class Report:
    """The rows of what `fuse` found. It prints as a table, in which rows whose paths differ only in numbers are one, with their count:
    layers.0…31.mlp. As a context manager it undoes at its end what that call fused."""

    fused: list[Row] = field(default_factory=list)
    refused: list[Row] = field(default_factory=list)
    before: int = 0  # modules that an earlier call fused
    undo: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def __str__(self) -> str:
        header = ("module", "count", "pattern", "activation", "reason" if self.refused else "")
        before = f", {self.before} fused before" if self.before else ""
        if not (self.fused or self.refused):
            return f"nothing to fuse found{before}"
        lines = [header, *_grouped(self.fused), *_grouped(self.refused)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        would = self.fused and not self.undo  # a dry run changes nothing that could be undone
        fused = f"would fuse {len(self.fused)}" if would else f"{len(self.fused)} fused"
        return "\n".join([f"{fused}, {len(self.refused)} refused{before}", *table])

    def __enter__(self) -> "Report":  # noqa: PYI034  typing.Self is of Python 3.11
        return self

    def __exit__(self, *exception: object) -> None:
        for undo in reversed(self.undo):
            undo()


def _grouped(rows: list[Row]) -> list[tuple[str, ...]]:
    """Return (path, count, pattern, activation, reason) for each group of rows whose paths differ only in numbers."""
    groups: dict[tuple[Any, ...], list[list[str]]] = {}
    for path, *rest in rows:
        names = path.split(".")
        key = tuple("0" if name.isdecimal() else name for name in names)
        groups.setdefault((key, *rest), []).append(names)
    return [(_joined(paths) or "(the model)", str(len(paths)), *rest) for (_, *rest), paths in groups.items()]


def _joined(paths: list[list[str]]) -> str:
    """[["layers", "0", "mlp"], ["layers", "1", "mlp"]] -> "layers.0…1.mlp"."""
    columns = [sorted(set(column), key=lambda name: (len(name), name)) for column in zip(*paths, strict=True)]
    return ".".join(names[0] if len(names) == 1 else f"{names[0]}…{names[-1]}" for names in columns)
