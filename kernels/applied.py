"""The records that every backend's launchers take: an activation as a call applies it, and the results needed of a backward kernel."""

from typing import Any, NamedTuple

from .catalogue import Activation


class Applied(NamedTuple):
    """An activation as a call applies it: to z [M, N], or where gated to gate|up [M, 2N], followed by dropout.

    values: its parameters in the formula's order, numbers and arrays. dropout: an operands.Dropout, or None.
    """

    act: Activation
    values: tuple = ()
    gated: bool = False
    dropout: Any = None


class Needs(NamedTuple):
    """The results that are needed of a backward kernel."""

    dz: bool = True
    h: bool = False
    """act(z), computed again."""
    dbias: bool = False
    dparam: bool = False
    """The gradients of the parameters that are arrays, by column: [P, N]."""
