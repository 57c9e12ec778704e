"""The primitives that an activation's formula may use, in NumPy, and `bind`, which moves a formula to another backend.

Every backend has functions of these names; `bind` gives a formula's code object those of one backend.
"""

import types
from collections.abc import Callable, Mapping
from math import erfc
from math import sqrt as _sqrt
from typing import Any

import numpy as np

absolute = np.absolute
exp = np.exp
expm1 = np.expm1
log = np.log
log1p = np.log1p
maximum = np.maximum
minimum = np.minimum
reciprocal = np.reciprocal  # 1 / x for denominators below 2¹²⁶ only, so that a backend may use a fast form
sqrt = np.sqrt
tanh = np.tanh
where = np.where


def sigmoid(x):
    """1 / (1 + e⁻ˣ), through e^-|x| so that nothing overflows and both tails keep their relative accuracy."""
    e = np.exp(-np.absolute(x))
    return np.where(x < 0.0, e, 1.0) / (1.0 + e)


def normal_cdf(x):
    """Φ(x) = erfc(-x/√2) / 2: erfc rather than 1 + erf, which cancels for x < 0. NumPy itself has neither."""
    x = np.asarray(x)
    values = np.frompyfunc(lambda v: 0.5 * erfc(-v / _sqrt(2.0)), 1, 1)(x.astype(np.float64))
    return np.asarray(values, dtype=np.float64).astype(x.dtype)


PRIMITIVES = (
    "absolute", "exp", "expm1", "log", "log1p", "maximum", "minimum", "normal_cdf", "reciprocal", "sigmoid",
    "sqrt", "tanh", "where",
)  # fmt: skip

NUMPY: dict[str, Any] = {name: globals()[name] for name in PRIMITIVES}


def bind(formula: Callable, vocabulary: Mapping[str, Any]) -> types.FunctionType:
    """The formula in another backend's arithmetic: the same code object with `vocabulary` as its globals."""
    bound = types.FunctionType(formula.__code__, dict(vocabulary), formula.__name__)
    bound.__module__ = formula.__module__  # Triton tells device functions apart by module and name
    bound.__doc__ = formula.__doc__
    return bound
