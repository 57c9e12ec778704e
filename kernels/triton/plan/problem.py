"""A product with its epilogue, as the choice of a kernel sees it. Calls and `epilogue.explain` both build it here."""

from typing import NamedTuple

import torch

from ...catalogue import Activation, Keep
from ...saving import library_serves
from .chips import precision


class Family(NamedTuple):
    """A kernel family, as far as a choice of tiles depends on it."""

    name: str
    products: int  # accumulators, and weights that a step of K loads
    dropout: bool = False  # drawn in the epilogue


LINEAR, GLU, DACT = Family("linear_fwd", 1), Family("linear_fwd", 2), Family("linear_dact", 1)
DROPPED = DACT._replace(dropout=True)


class Problem(NamedTuple):
    """A product of m rows, n columns and k terms with its epilogue, as far as a choice depends on it."""

    family: Family
    m: int
    n: int
    k: int
    dtype: torch.dtype
    precision: str
    tma: bool  # descriptors serve the operands
    activation: str
    gated: bool
    keeps: bool  # z is stored for backward (linear_fwd), h emitted for dW₂ (linear_dact)
    library: bool = False  # one of cuBLASLt's epilogues serves, too

    @property
    def backward(self) -> bool:
        return self.family.name == DACT.name

    @property
    def reads(self) -> int:
        """The number of matrices [m, n] that the epilogue reads: in backward z, and up in a gated layer."""
        return (1 + self.gated) * self.backward

    @property
    def writes(self) -> int:
        """The number of matrices [m, n] that it writes: y and z, or dz and h. A gated z or dz counts as two."""
        return (1 + self.gated + self.keeps) if self.backward else (1 + self.keeps * (1 + self.gated))


def forward_problem(
    m: int, n: int, k: int, dtype: torch.dtype, act: Activation, gated: bool, bias: bool, dropout: bool, keep: Keep,
    descriptors: bool,
) -> Problem:  # fmt: skip
    """The problem of a layer's forward from k to n features. descriptors: whether tensor descriptors serve x and the weights."""
    problem = _problem(GLU if gated else LINEAR, m, n, k, dtype, act, gated, keep == "input", descriptors)
    return problem._replace(library=library_serves(act, keep, gated, bias, dropout))


def backward_problem(
    m: int, n: int, k: int, dtype: torch.dtype, act: Activation, gated: bool, dropout: bool, emits: bool, descriptors: bool
) -> Problem:  # fmt: skip
    """The problem of dz, for an MLP of n hidden and k output features.

    emits: whether h is written for the down weight's gradient. descriptors: whether they serve dy and the down weight.
    """
    return _problem(DROPPED if dropout else DACT, m, n, k, dtype, act, gated, emits, descriptors)


def _problem(family: Family, m, n, k, dtype, act: Activation, gated: bool, keeps: bool, descriptors: bool) -> Problem:
    tma = descriptors and n * dtype.itemsize % 16 == 0  # so that they serve the results too
    return Problem(family, m, n, k, dtype, precision(dtype), tma, act.base.name, gated, keeps)
