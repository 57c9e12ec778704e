"""The check before anything is timed: results against float64, held to the error that plain torch makes in the same dtype.

A float64 product of every row would take minutes at the largest sizes. Some rows of y and dx need those rows of x and dy alone, and the
gradients of some hidden units' weights need those units alone, since no unit's gradient depends on another unit. Both are exact.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from epilogue.benchmarks.accuracy import accurate
from epilogue.benchmarks.bench.cases import BOTH, Case, Operands
from epilogue.benchmarks.bench.providers import eager

ROWS, UNITS = 64, 32

Parts = Mapping[str, Tensor]
"""The compared tensors: "y" and the operands whose gradients were computed -> float64."""


def parts(case: Case, operands: Operands, result: object) -> Parts:
    """The compared parts of a provider's result: rows of y and dx, hidden units of the weights' gradients."""
    rows, units = _selected(case, operands.x.device)

    def part(name: str, tensor: Tensor) -> Tensor:
        if name in ("y", "x"):
            return tensor[rows]
        return _units(name, tensor, units)

    return {name: part(name, tensor).double() for name, tensor in _named(case, operands, result).items()}


def exact(case: Case, operands: Operands) -> Parts:
    """The same parts, computed from the operands in float64."""
    rows, units = _selected(case, operands.x.device)
    learn = operands.x.requires_grad

    def computed(chosen: Operands) -> Parts:
        doubles: list[Any] = [None if t is None else t.detach().double().requires_grad_(learn) for t in chosen]
        double = Operands(*doubles)._replace(packed=None)
        return _named(case, double, eager(case, double)())

    found = dict(computed(operands._replace(x=operands.x[rows], dy=operands.dy[rows], packed=None)))
    if case.mode == BOTH:
        narrow = {name: _units(name, tensor, units) for name, tensor in operands.leaves.items() if name != "x"}
        dy = operands.dy if case.block else operands.dy[:, units]
        by_unit = computed(operands._replace(**narrow, dy=dy, packed=None))
        found.update((name, by_unit[name]) for name in narrow)
    return found


def failure(actual: Parts, stock: Parts, exact: Parts, dtype: torch.dtype) -> str | None:
    """The first result that is not accurate beside stock torch's, by maximum or by RMS, as text; None where all are."""
    for name, truth in exact.items():
        for what, size in (("largest", _largest), ("RMS", _rms)):
            error, torchs = size(actual[name] - truth), size(stock[name] - truth)
            if not accurate(error, torchs, dtype, size(truth)):
                of = name if name == "y" else f"the gradient of {name}"
                return f"{of}: {what} error {error:.1e}, eager's {torchs:.1e}"
    return None


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max())


def _rms(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt())


def _selected(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of rows and of hidden units, spread from first to last, so that they lie in whole and in partial tiles."""

    def spread(size: int, count: int) -> Tensor:
        return torch.linspace(0, size - 1, min(size, count), dtype=torch.float64, device=device).round().long()

    return spread(case.tokens, ROWS), spread(case.hidden, UNITS)


def _units(name: str, tensor: Tensor, units: Tensor) -> Tensor:
    """The part of an operand or of its gradient that belongs to these hidden units; the whole of down_bias, which belongs to none."""
    if name == "down_bias":
        return tensor
    return tensor[:, units] if name == "down" else tensor[units]


def _named(case: Case, operands: Operands, result: object) -> dict[str, Tensor]:
    results = result if isinstance(result, tuple) else (result,)
    names = ("y", *operands.leaves) if case.mode == BOTH else ("y",)
    return {name: tensor.detach() for name, tensor in zip(names, results, strict=True)}
