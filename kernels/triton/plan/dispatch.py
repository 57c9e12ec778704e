"""The choice among the ways to compute a product with its epilogue: measured where `epilogue tune` has run, else predicted.

A choice depends on the problem, the chip and the tuned table alone, so the same call takes the same way every time.
"""

import functools
from typing import NamedTuple

from . import tuned
from .chips import Machine
from .configs import TABLE, Choice, shared_bytes
from .model import fused_time, unfused_time
from .problem import Problem


class Candidate(NamedTuple):
    """A choice and the microseconds that it takes, by measurement or by the model."""

    choice: Choice
    microseconds: float
    measured: bool


@functools.lru_cache(maxsize=4096)
def choose(problem: Problem, chip: Machine) -> Choice:
    """The choice of least time. In the interpreter that is always a fused kernel, which is what it is there to test."""
    return candidates(problem, chip)[0].choice


def candidates(problem: Problem, chip: Machine) -> list[Candidate]:
    """Every choice whose time can be predicted, fastest first; before them the one that was measured for this problem, if any."""
    itemsize = problem.dtype.itemsize
    configs = TABLE[problem.family, problem.tma, itemsize]
    fitting = [c for c in configs if shared_bytes(c, problem.family, itemsize) <= chip.shared_bytes] or [configs[-1]]
    # Where memory decides, the times are equal. Then the tiles of fewest rows and most columns are best: they load the most of a weight.
    fitting.sort(key=lambda config: (config.BLOCK_M, -config.BLOCK_N))
    predicted = [Candidate(config, fused_time(problem, config, chip), False) for config in fitting]
    if not chip.interpreted:
        predicted.append(Candidate("unfused", unfused_time(problem, chip), False))
    predicted.sort(key=lambda candidate: candidate.microseconds)
    found = None if chip.interpreted else tuned.lookup(problem, chip)
    if found is not None and found[0] == "library" and not problem.library:
        found = None
    return predicted if found is None else [Candidate(*found, True), *(c for c in predicted if c.choice != found[0])]
