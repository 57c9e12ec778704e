"""Fast forms of some primitives, for results that will be rounded to 16 bits. They are cheap enough for a product's epilogue.

They are written like formulas, over the primitives and three functions that a GPU approximates in one instruction each. Every backend binds
these names to its own functions. Each docstring states the error after rounding, in units of the last place (ulp): the largest over all
finite inputs of that type. Rounding alone takes half a unit. Results below 2⁻¹²⁶, the smallest normal number of bfloat16 and float32, may
be 0.
"""

from collections.abc import Callable

import numpy as np

from .vocabulary import absolute, maximum, where

# ex2.approx.ftz: relative error 2⁻²², results below 2⁻¹²⁶ are 0. Without ftz the same costs three more instructions.
exp2_approx = np.exp2
# lg2.approx.ftz: absolute error 2⁻²² for x in [0.5, 2], elsewhere relative error 2⁻²².
log2_approx = np.log2
# rcp.approx.ftz: relative error 2⁻²³, inputs below 2⁻¹²⁶ count as 0.
reciprocal_approx = np.reciprocal

APPROXIMATIONS = ("exp2_approx", "log2_approx", "reciprocal_approx")


def fast_exp(x):
    """2^(x log₂ e). 0.50 ulp of bfloat16, 0.50 ulp of float16."""
    return exp2_approx(x * 1.4426950408889634)


def fast_expm1(x):
    """x + x²/2 for |x| < 2⁻⁶, else 2^(x log₂ e) - 1. 0.50 ulp of bfloat16, 0.58 ulp of float16."""
    return where(absolute(x) < 0.015625, x * (1.0 + 0.5 * x), exp2_approx(x * 1.4426950408889634) - 1.0)


def fast_log1p(x):
    """x - x²/2 for |x| < 2⁻⁷, else ln 2 · log₂(1 + x). 0.50 ulp of bfloat16, 0.54 ulp of float16.

    The factor ln 2 comes last, where it fuses with an addition that follows.
    """
    series = x * (1.4426950408889634 - 0.7213475204444817 * x)
    return 0.6931471805599453 * where(absolute(x) < 0.0078125, series, log2_approx(1.0 + x))


def fast_reciprocal(x):
    """1 / x. 0.50 ulp of bfloat16, 0.50 ulp of float16.

    The division operator is right for denominators up to 2¹²⁸, and takes up to seven instructions more.
    """
    return reciprocal_approx(x)


def fast_sigmoid(x):
    """1 / (1 + 2^(-x log₂ e)). 0.50 ulp of bfloat16, 0.50 ulp of float16."""
    return reciprocal_approx(1.0 + exp2_approx(x * -1.4426950408889634))


def fast_softplus(x):
    """max(x, 0) + log1p(e^-|x|) in the fast forms above. 0.50 ulp of bfloat16, 0.50 ulp of float16."""
    e = exp2_approx(absolute(x) * -1.4426950408889634)
    series = e * (1.4426950408889634 - 0.7213475204444817 * e)
    return maximum(x, 0.0) + 0.6931471805599453 * where(e < 0.0078125, series, log2_approx(1.0 + e))


def fast_tanh(x):
    """x - x³/3 for |x| < 1/16, else 1 - 2 / (1 + e²ˣ). 0.50 ulp of bfloat16, 0.50 ulp of float16.

    tanhshrink needs its absolute error of 3e-7. tanh.approx would be one instruction, but its relative error is 2⁻¹¹.
    """
    tail = 1.0 - 2.0 * reciprocal_approx(1.0 + exp2_approx(x * 2.8853900817779268))
    return where(absolute(x) < 0.0625, x * (1.0 - 0.3333333333333333 * (x * x)), tail)


# Φ(-|x|) = 2^G(|x|), Φ(x) = 1 - Φ(-x). G is the polynomial that minimises the largest relative error of 2^G (Remez's exchange, or linear
# programming over a grid). The form 1 / (1 + 2^(x P(|x|))) of the same degree is ten times less accurate and needs a reciprocal more.
# The leading coefficients are negative, so 2^G is 0 beyond the fit without a clamp.


def bfloat16_normal_cdf(x):
    """Φ(x), fitted on [0, 12.98], where Φ(-x) reaches 2⁻¹²⁶: relative error 5.2e-4. 0.62 ulp of bfloat16."""
    a = absolute(x)
    g = 5.556616e-03 + a * (-4.311288e-04 + a * (1.859811e-05 + a * -3.382239e-07))
    q = exp2_approx(-1.000724 + a * (-1.143460 + a * (-0.4721826 + a * (-0.04481225 + a * g))))
    return where(x < 0.0, q, 1.0 - q)


def float16_normal_cdf(x):
    """Φ(x), fitted on [0, 5.6]: error 6e-5 relative to the larger of Φ(-|x|) and 2⁻¹⁴, float16's smallest normal. 0.62 ulp of float16."""
    a = absolute(x)
    g = -0.04912681 + a * (6.097592e-03 + a * -3.488934e-04)
    q = exp2_approx(-1.000083 + a * (-1.149709 + a * (-0.4629449 + a * g)))
    return where(x < 0.0, q, 1.0 - q)


_FAST: dict[str, Callable] = {
    "exp": fast_exp, "expm1": fast_expm1, "log1p": fast_log1p, "reciprocal": fast_reciprocal, "sigmoid": fast_sigmoid,
    "softplus": fast_softplus, "tanh": fast_tanh,
}  # fmt: skip
FAST: dict[str, dict[str, Callable]] = {
    "bfloat16": {**_FAST, "normal_cdf": bfloat16_normal_cdf},
    "float16": {**_FAST, "normal_cdf": float16_normal_cdf},
}
"""Dtype of the result -> its fast primitives by name."""
