"""The primitives that an activation's formula may use, in NumPy, and `bind`, which moves a formula to another backend.

Every backend has functions of these names; `bind` gives a formula's code object those of one backend. Called with the values of a trace
(trace.py), they record themselves: NumPy's own through `__array_ufunc__`, those written here through `_primitive`.
"""

import functools
import types
from collections.abc import Callable, Mapping
from math import erf as _erf
from math import erfc
from math import sqrt as _sqrt
from typing import Any

import numpy as np

absolute = np.absolute
cos = np.cos
exp = np.exp
expm1 = np.expm1
log = np.log
log1p = np.log1p
maximum = np.maximum
minimum = np.minimum
sin = np.sin
sqrt = np.sqrt
tanh = np.tanh
where: Callable[..., Any] = np.where  # its many overloads say nothing of what a formula passes


def _primitive(function: Callable) -> Callable[..., Any]:
    """The function of arrays, which a trace records by its name."""

    @functools.wraps(function)
    def call(x):
        return x.then(function.__name__, x) if hasattr(x, "then") else function(x)

    return call


def _elementwise(function: Callable[[float], float], x: Any) -> Any:
    """Python's function of each element, in the dtype of x. Whole numbers become float64, as in NumPy's own functions."""
    x = np.asarray(x)
    dtype = np.float64 if x.dtype.kind in "biu" else x.dtype
    return np.asarray(np.frompyfunc(function, 1, 1)(x.astype(np.float64)), dtype=np.float64).astype(dtype)


@_primitive
def erf(x):
    """The error function, 2/√π ∫₀ˣ e^(-t²) dt. NumPy itself has none."""
    return _elementwise(_erf, x)


@_primitive
def normal_cdf(x):
    """Φ(x) = erfc(-x/√2) / 2: erfc rather than 1 + erf, which cancels for x < 0."""
    return _elementwise(lambda v: 0.5 * erfc(-v / _sqrt(2.0)), x)


@_primitive
def reciprocal(x):
    """1 / x for denominators below 2¹²⁶ only, so that a backend may use a fast form. NumPy's own is 0 for the whole number 2."""
    return 1.0 / x


@_primitive
def rsqrt(x):
    """1 / √x."""
    return 1.0 / np.sqrt(x)


@_primitive
def sigmoid(x):
    """1 / (1 + e⁻ˣ), through e^-|x| so that nothing overflows and both tails keep their relative accuracy."""
    e = np.exp(-np.absolute(x))
    return np.where(x < 0.0, e, 1.0) / (1.0 + e)


@_primitive
def softplus(x):
    """log(1 + eˣ) = max(x, 0) + log(1 + e^-|x|), without torch's threshold."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.absolute(x)))


PRIMITIVES = (
    "absolute", "cos", "erf", "exp", "expm1", "log", "log1p", "maximum", "minimum", "normal_cdf", "reciprocal", "rsqrt",
    "sigmoid", "sin", "softplus", "sqrt", "tanh", "where",
)  # fmt: skip

NUMPY: dict[str, Any] = {name: globals()[name] for name in PRIMITIVES}


def bind(formula: Callable, vocabulary: Mapping[str, Any]) -> types.FunctionType:
    """The formula in another backend's arithmetic: the same code object with `vocabulary` as its globals."""
    bound = types.FunctionType(formula.__code__, dict(vocabulary), formula.__name__)
    bound.__module__ = formula.__module__  # Triton tells device functions apart by module and name
    bound.__doc__ = formula.__doc__
    return bound
