"""What the activations cost in an epilogue: costs.json, counted by `epilogue audit --costs` in what the compiler made for sm_90."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import torch

from ..catalogue import Activation

PATH = Path(__file__).with_name("costs.json")
UNKNOWN = (20.0, 2.0)
"""Of a formula that is not in the file, a user's own: about the dearest of those that are, in 16 bits."""


def formulas(act: Activation, backward: bool) -> list[Callable]:
    """What a product kernel computes of each element: the value, in backward the derivatives and, for h, the value again."""
    base = act.gate or act
    derivatives = [base.derivatives[operand] for operand in base.operands] if backward else []
    return [*derivatives, base.value]


@functools.cache
def formula_cost(act: Activation, backward: bool, dtype: torch.dtype) -> tuple[float, float]:
    """(instructions, special functions among them) per element, of results of that dtype; what two formulas share counts twice."""
    costs = _read()[str(dtype).removeprefix("torch.")]
    both = [costs.get(formula.__name__, UNKNOWN) for formula in formulas(act, backward)]
    return sum(cost[0] for cost in both), sum(cost[1] for cost in both)


@functools.cache
def _read() -> dict[str, dict[str, tuple[float, float]]]:
    """dtype -> formula -> (instructions, special functions)."""
    return json.loads(PATH.read_text())
