"""Loss curves: how far two are apart, and whether a model learnt."""

import math
from collections.abc import Sequence


def gaps(losses: Sequence[float], others: Sequence[float]) -> list[float]:
    """The distance of two loss curves, step by step; infinite where one is not finite."""
    distances = (abs(a - b) for a, b in zip(losses, others, strict=True))
    return [distance if math.isfinite(distance) else math.inf for distance in distances]


def stuck(name: str, losses: Sequence[float]) -> list[str]:
    """A message where the last loss is not below the first."""
    if losses[-1] < losses[0]:
        return []
    return [f"{name}: the loss went from {losses[0]:.4f} to {losses[-1]:.4f}"]
