"""The cost of an activation in an epilogue: the sum of a weight for each operation in its formulas."""

import functools
from collections import Counter
from collections.abc import Callable

import torch

from ...catalogue import Activation
from ...trace import COMPARISONS, Value, traced, vocabulary

WEIGHTS = {
    "*": (0.95, 0.0), "+": (0.95, 0.0), "fused": (-1.0, 0.0), "absolute": (0.0, 0.0), "negative": (0.85, 0.0),
    "maximum": (0.9, 0.0), "where": (0.9, 0.0), "reciprocal": (6.6, 1.0), "reciprocal_approx": (1.3, 1.0),
    "exp": (5.3, 1.0), "exp2_approx": (0.95, 1.0), "expm1": (24.6, 1.0), "log": (25.0, 0.0), "log1p": (28.6, 0.0),
    "log2_approx": (0.0, 1.0), "normal_cdf": (51.2, 3.0), "sigmoid": (11.1, 2.0), "sqrt": (1.6, 1.0), "tanh": (16.0, 2.0),
    "erf": (28.5, 1.0), "rsqrt": (1.0, 1.0), "sin": (27.0, 1.0), "softplus": (36.8, 1.0),
}  # fmt: skip
"""Operation -> (instructions, special functions among them) per element on sm_90.

Fitted by least squares to the instructions that Triton 3.9.0 makes of every formula of the catalogue (`epilogue audit` counts them), then
rounded. The error is 0.8 instructions RMS, and at most 7, of laplace's 60. No formula of the catalogue has `log` and the last four, which
were counted alone: of `sin` what runs for |x| < 105615, beyond which it takes some 90 more.
"""

ALIKE = {"-": "+", "cos": "sin", "minimum": "maximum", "/": "reciprocal", **dict.fromkeys(COMPARISONS, "where")}
"""Operation -> another that costs the same."""


def epilogue_formulas(act: Activation, backward: bool) -> list[Callable]:
    """The formulas that a product kernel computes for each element: the value; in backward the derivatives and, for h, the value again."""
    base = act.base
    derivatives = [base.derivatives[operand] for operand in base.operands] if backward else []
    return [*derivatives, base.value]


def operations(formula: Callable, arity: int, dtype: torch.dtype) -> Counter[str]:
    """The number of each operation per element, in the formula for results of that dtype.

    A value that depends on the activation's parameters alone is computed once for all elements and does not count. A division by such a
    value counts as a multiplication. The compiler fuses a product and a sum that is its only use; "fused" counts these.
    """
    trace = traced(formula, vocabulary(str(dtype).removeprefix("torch.")))
    varying = {argument.place for argument in trace.arguments[:arity]}
    found: Counter[str] = Counter()
    users: Counter[int] = Counter()
    products, sums = set(), []

    def varies(operand: object) -> bool:
        return isinstance(operand, Value) and operand.place in varying

    for value in trace.values:
        of = [operand.place for operand in value.operands if varies(operand)]
        if not of:
            continue
        varying.add(value.place)
        users.update(of)
        operation = "*" if value.operation == "/" and not varies(value.operands[1]) else value.operation
        found[ALIKE.get(operation, operation)] += 1
        if operation == "*":
            products.add(value.place)
        elif operation in ("+", "-"):
            sums.append(of)
    found["fused"] = sum(any(place in products and users[place] == 1 for place in of) for of in sums)
    return found


@functools.cache
def formula_cost(act: Activation, backward: bool, dtype: torch.dtype) -> tuple[float, float]:
    """(instructions, special functions among them) per element, for results of that dtype. What two formulas share counts twice."""
    base = act.base
    costs = [cost_of(formula, base.arity, dtype) for formula in epilogue_formulas(act, backward)]
    return sum(cost[0] for cost in costs), sum(cost[1] for cost in costs)


def cost_of(formula: Callable, arity: int, dtype: torch.dtype) -> tuple[float, float]:
    """(instructions, special functions among them) of one formula, per element."""
    counted = operations(formula, arity, dtype).items()
    instructions = sum(WEIGHTS[operation][0] * count for operation, count in counted)
    return instructions, sum(WEIGHTS[operation][1] * count for operation, count in counted)
