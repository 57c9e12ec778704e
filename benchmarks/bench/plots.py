"""The pictures of `epilogue bench --report`: a dot for each bfloat16 case, a line for each model, a panel for each operation and mode."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epilogue.benchmarks.bench.cases import Case
from epilogue.benchmarks.bench.results import LIBRARIES, TORCH, CaseRow, GPUResults
from epilogue.benchmarks.report import slug


class Picture(NamedTuple):
    title: str
    value: Callable[[CaseRow], float | None]


PICTURES = {
    "speed": Picture(
        "Our time over the fastest other provider's: left of the line epilogue is faster",
        lambda row: row.ratio_to_best((*TORCH, *LIBRARIES)),
    ),
    "roof": Picture("Share of the roof: the time of the bare cuBLAS products over ours", CaseRow.of_roof),
    "peak": Picture("Our peak of memory over eager's: left of the line epilogue takes less", CaseRow.peak_ratio),
}


def path_of(name: str, results: GPUResults, directory: Path) -> Path:
    return directory / f"{name}-{slug(results.gpu)}.png"


def draw(results: GPUResults, directory: Path) -> list[Path]:
    """Draw every picture for which there are cases; the paths of their files."""
    paths = []
    for name, picture in PICTURES.items():
        rows = [row for row in results.rows.values() if row.case.dtype == "bfloat16"]
        dots = [(row.case, value) for row in rows if (value := picture.value(row)) is not None]
        if dots:
            paths.append(path_of(name, results, directory))
            _figure(dots, f"{picture.title}\n{results.gpu}, bfloat16").savefig(paths[-1], dpi=120)
    return paths


def _figure(dots: Sequence[tuple[Case, float]], title: str) -> Figure:
    panels: dict[str, list[tuple[Case, float]]] = {}
    for case, value in dots:
        panels.setdefault(f"{case.op}, {case.mode}", []).append((case, value))
    tokens = sorted({case.tokens for case, _ in dots})
    models = [len({case.model for case, _ in members}) for members in panels.values()]
    figure = Figure(figsize=(9, 2 + sum(0.5 + 0.25 * count for count in models)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=models)[:, 0]
    for axes, (name, members) in zip(all_axes, panels.items(), strict=True):
        axes.set_title(name, fontsize=9, loc="left")
        _panel(axes, members, tokens)
    figure.suptitle(title, fontsize=10)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), title="tokens", frameon=False)
    return figure


def _panel(axes: Axes, dots: Sequence[tuple[Case, float]], tokens: Sequence[int]) -> None:
    """Draw one line for each model, its dots coloured by the number of tokens."""
    models = list(dict.fromkeys(case.model for case, _ in dots))
    for index, count in enumerate(tokens):
        values = [value for case, value in dots if case.tokens == count]
        places = [models.index(case.model) for case, _ in dots if case.tokens == count]
        color = matplotlib.colormaps["viridis"](index / max(len(tokens) - 1, 1))
        axes.scatter(values, places, color=color, s=18, label=str(count))
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(models)), models, fontsize=8)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
