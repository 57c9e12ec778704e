"""An activation as a call applies it, and the results that are wanted of its derivative; for the arrays of every backend."""

from typing import Any, NamedTuple

from .catalogue import Activation


class Applied(NamedTuple):
    """An activation as a call applies it: to z [M, N], or gated to gate|up [M, 2N], with a dropout behind it.

    values: its parameters in the formula's order, numbers and arrays. dropout: an operands.Dropout.
    """

    act: Activation
    values: tuple = ()
    gated: bool = False
    dropout: Any = None


class Needs(NamedTuple):
    """Which results of a backward kernel are wanted."""

    dz: bool = True
    h: bool = False
    """act(z), computed again."""
    dbias: bool = False
    dparam: bool = False
    """The gradient of the parameter that is an array."""
