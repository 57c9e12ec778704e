"""The primitives of `epilogue.vocabulary` as jitted functions, and formulas bound to them.

float32 in, float32 out. When compiled, tanh, expm1, log1p and Φ are libdevice's. The interpreter has neither libdevice nor PTX, so there
they are written out in `tl`. Some have a fast form for results that will be rounded to 16 bits (approximations.py).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from ..approximations import APPROXIMATIONS, FAST
from ..formula import compiled, frozen
from ..vocabulary import PRIMITIVES, bind
from . import INTERPRET

INTERPRETED = tl.constexpr(INTERPRET)


@triton.jit
def absolute(x):
    return tl.abs(x)


@triton.jit
def cos(x):
    return tl.cos(x)


@triton.jit
def erf(x):
    return tl.erf(x)


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
def rsqrt(x):
    return tl.rsqrt(x)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def sin(x):
    return tl.sin(x)


@triton.jit
def softplus(x):
    return maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def sqrt(x):
    return tl.sqrt(x)


@triton.jit
def tanh(x):
    if INTERPRETED:
        a = tl.abs(x)
        e, q = expm1(-2.0 * a), tl.exp(-2.0 * a)
        t = tl.where(a < 0.5, -e / (e + 2.0), 1.0 - 2.0 * q / (1.0 + q))
        return tl.where(x < 0.0, -t, t)
    else:
        return libdevice.tanh(x)


@triton.jit
def where(condition, a, b):
    return tl.where(condition, a, b)


@triton.jit
def exp2_approx(x):
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def log2_approx(x):
    if INTERPRETED:
        return tl.log2(x)
    else:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def reciprocal_approx(x):
    if INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


# The interpreter looks `tl` up in a function's globals.
EXACT: dict[str, Any] = {**{name: globals()[name] for name in PRIMITIVES}, "tl": tl}
_GLOBALS = {**EXACT, **{name: globals()[name] for name in APPROXIMATIONS}}


def _fast(dtype: str) -> dict[str, Any]:
    return {name: _jitted(primitive) for name, primitive in FAST[dtype].items()}


@functools.cache
def _jitted(primitive: Callable) -> Any:
    return triton.jit(bind(primitive, _GLOBALS))


VOCABULARIES: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: EXACT,
    torch.bfloat16: {**EXACT, **_fast("bfloat16")},
    torch.float16: {**EXACT, **_fast("float16")},
}
"""Dtype of the result -> the primitives by name."""


@functools.cache
def device_function(formula: Callable, dtype: torch.dtype) -> Any:
    """The formula as a jitted function of float32 tiles whose result will have this dtype.

    One object per formula and vocabulary, since Triton caches kernels by it.
    """
    formula = frozen(
        formula
    )  # Triton reads a function's source, which a lambda or a function from a prompt does not have
    bound = bind(formula, VOCABULARIES[dtype])
    bound.__name__ = formula.__code__.co_name
    # Triton merges functions of the same module and name, and a user may call two derivatives `_`. Its disk cache wants the same name in
    # every process.
    bound.__module__ = f"{formula.__module__}.{dtype}.{formula.__code__.co_filename}"
    return triton.jit(bound)


@functools.cache
def device_functions(formulas: tuple[Callable, ...], dtype: torch.dtype) -> Any:
    """The formulas as one jitted function, which returns a tuple of their results."""
    jitted = {f"formula{i}": device_function(formula, dtype) for i, formula in enumerate(formulas)}
    arguments = [f"x{i}" for i in range(formulas[0].__code__.co_argcount)]
    calls = ", ".join(f"{name}({', '.join(arguments)})" for name in jitted)
    bound = bind(compiled(arguments, [f"return ({calls},)"]), {**jitted, "tl": tl})
    bound.__module__ = f"tuple of {' '.join(function.fn.__module__ for function in jitted.values())}"
    return triton.jit(bound)
