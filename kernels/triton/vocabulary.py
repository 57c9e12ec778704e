"""The primitives of `epilogue.vocabulary` as jitted functions, and formulas bound to them.

float32 in, float32 out. Compiled, tanh, expm1, log1p and Φ are libdevice's; the interpreter has neither libdevice nor PTX, so there they
are written out in `tl`. For results that will be rounded to 16 bits some have a fast form, cheap enough for a product's epilogue: their
largest errors are stated in units of that type's last place (ulp), of which rounding alone takes a half.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from ..vocabulary import PRIMITIVES, bind
from . import INTERPRET

INTERPRETED = tl.constexpr(INTERPRET)


@triton.jit
def absolute(x):
    return tl.abs(x)


@triton.jit
def exp(x):
    return tl.exp(x)


@triton.jit
def expm1(x):
    if INTERPRETED:
        # Kahan: the error of u cancels between numerator and logarithm.
        u = tl.exp(x)
        safe = tl.where((u == 1.0) | (u - 1.0 == -1.0) | (u == float("inf")), 2.0, u)
        return tl.where(u == 1.0, x, tl.where(safe == u, (u - 1.0) * (x / tl.log(safe)), u - 1.0))
    else:
        return libdevice.expm1(x)


@triton.jit
def log(x):
    return tl.log(x)


@triton.jit
def log1p(x):
    if INTERPRETED:
        u = 1.0 + x
        safe = tl.where((u == 1.0) | (u == float("inf")), 2.0, u)
        return tl.where(u == 1.0, x, tl.where(safe == u, tl.log(safe) * (x / (safe - 1.0)), u))
    else:
        return libdevice.log1p(x)


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def normal_cdf(x):
    if INTERPRETED:
        return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        return 0.5 * libdevice.erfc(x * -0.7071067811865476)


@triton.jit
def reciprocal(x):
    return 1.0 / x


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def sqrt(x):
    return tl.sqrt(x)


@triton.jit
def tanh(x):
    if INTERPRETED:
        e = expm1(-2.0 * tl.abs(x))
        t = -e / (e + 2.0)
        return tl.where(x < 0.0, -t, t)
    else:
        return libdevice.tanh(x)


@triton.jit
def where(condition, a, b):
    return tl.where(condition, a, b)


@triton.jit
def exp2_approx(x):
    """2ˣ by ex2.approx.ftz: relative error 2⁻²², results below 2⁻¹²⁶ are 0. Without ftz the same costs three more instructions."""
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def log2_approx(x):
    """log₂ x by lg2.approx.ftz: absolute error 2⁻²² for x in [0.5, 2], elsewhere relative error 2⁻²²."""
    if INTERPRETED:
        return tl.log2(x)
    else:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


# The fast forms. Stated are the errors after rounding, the largest over all finite values of that type as inputs.
# Results below 2⁻¹²⁶, the smallest normal number of bfloat16 and float32, may be 0.


@triton.jit
def fast_exp(x):
    """2^(x log₂ e). 0.50 ulp of bfloat16, 0.50 ulp of float16."""
    return exp2_approx(x * 1.4426950408889634)


@triton.jit
def fast_expm1(x):
    """x + x²/2 for |x| < 2⁻⁶, else 2^(x log₂ e) - 1. 0.50 ulp of bfloat16, 0.58 ulp of float16."""
    return tl.where(tl.abs(x) < 0.015625, x * (1.0 + 0.5 * x), fast_exp(x) - 1.0)


@triton.jit
def fast_log1p(x):
    """ln 2 · log₂(1 + x), for |x| < 2⁻⁷ x - x²/2. 0.50 ulp of bfloat16, 0.54 ulp of float16.

    The factor ln 2 comes last, where it fuses with an addition that follows.
    """
    series = x * (1.4426950408889634 - 0.7213475204444817 * x)
    return 0.6931471805599453 * tl.where(tl.abs(x) < 0.0078125, series, log2_approx(1.0 + x))


@triton.jit
def fast_reciprocal(x):
    """1 / x by rcp.approx.ftz, relative error 2⁻²³ before rounding. 0.50 ulp of bfloat16, 0.50 ulp of float16.

    Inputs below 2⁻¹²⁶ count as 0. As an operator, division is right up to 2¹²⁸ and takes up to seven instructions more.
    """
    if INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def fast_sigmoid(x):
    """1 / (1 + 2^(-x log₂ e)). 0.50 ulp of bfloat16, 0.50 ulp of float16."""
    return fast_reciprocal(1.0 + exp2_approx(x * -1.4426950408889634))


@triton.jit
def fast_tanh(x):
    """x - x³/3 for |x| < 1/16, else 1 - 2 / (1 + e²ˣ). 0.50 ulp of bfloat16, 0.50 ulp of float16.

    Its absolute error, 3e-7, is what tanhshrink needs; tanh.approx would be one instruction with a relative error of 2⁻¹¹.
    """
    tail = 1.0 - 2.0 * fast_reciprocal(1.0 + exp2_approx(x * 2.8853900817779268))
    return tl.where(tl.abs(x) < 0.0625, x * (1.0 - 0.3333333333333333 * (x * x)), tail)


# Φ(-|x|) = 2^G(|x|), Φ(x) = 1 - Φ(-x). G is the polynomial with the smallest largest relative error of 2^G (Remez's exchange, or linear
# programming over a grid). As 1 / (1 + 2^(x P(|x|))) the same degree is ten times less accurate and has a reciprocal more.
# The leading coefficients are negative, so that 2^G is 0 beyond the fit without a clamp.


@triton.jit
def bfloat16_normal_cdf(x):
    """Φ(x), fitted on [0, 12.98], where Φ(-x) reaches 2⁻¹²⁶: relative error 5.2e-4. 0.62 ulp of bfloat16."""
    a = tl.abs(x)
    g = 5.556616e-03 + a * (-4.311288e-04 + a * (1.859811e-05 + a * -3.382239e-07))
    q = exp2_approx(-1.000724 + a * (-1.143460 + a * (-0.4721826 + a * (-0.04481225 + a * g))))
    return tl.where(x < 0.0, q, 1.0 - q)


@triton.jit
def float16_normal_cdf(x):
    """Φ(x), fitted on [0, 5.6]: error 6e-5 relative to the larger of Φ(-|x|) and 2⁻¹⁴, float16's smallest normal. 0.62 ulp of float16."""
    a = tl.abs(x)
    g = -0.04912681 + a * (6.097592e-03 + a * -3.488934e-04)
    q = exp2_approx(-1.000083 + a * (-1.149709 + a * (-0.4629449 + a * g)))
    return tl.where(x < 0.0, q, 1.0 - q)


# The interpreter looks `tl` up in a function's globals.
EXACT: dict[str, Any] = {**{name: globals()[name] for name in PRIMITIVES}, "tl": tl}
_FAST: dict[str, Any] = {
    **EXACT, "exp": fast_exp, "expm1": fast_expm1, "log1p": fast_log1p, "reciprocal": fast_reciprocal,
    "sigmoid": fast_sigmoid, "tanh": fast_tanh,
}  # fmt: skip
VOCABULARIES: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: EXACT,
    torch.bfloat16: {**_FAST, "normal_cdf": bfloat16_normal_cdf},
    torch.float16: {**_FAST, "normal_cdf": float16_normal_cdf},
}
"""By the dtype of the result."""


@functools.cache
def device_function(formula: Callable, dtype: torch.dtype) -> Any:
    """The formula as a jitted function of float32 tiles whose result will have this dtype.

    One object per formula and vocabulary, since Triton caches kernels by it.
    """
    bound = bind(formula, VOCABULARIES[dtype])
    bound.__module__ += f".{dtype}"  # Triton merges functions of one module and name
    return triton.jit(bound)
