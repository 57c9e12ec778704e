"""The catalogue's formulas printed as CUDA C (trace.py), and the source of the kernels around them (pointwise.cu)."""

import functools
from collections.abc import Callable
from pathlib import Path

from ..trace import C, printed, traced, vocabulary

STORED = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "SINGLE", "float64": "DOUBLE"}


def function(name: str, formula: Callable, dtype: str) -> str:
    """The formula for results of that dtype as a C function of that name: `real` arguments, `real` result."""
    arguments, statements, result = printed(traced(formula, vocabulary(dtype)), C)
    body = "".join(f"  {statement}\n" for statement in statements)
    declared = ", ".join(f"real {argument}" for argument in arguments)
    return f"INLINE real {name}({declared}) {{\n{body}  return {result};\n}}\n"


@functools.cache
def source(
    dtype: str, wide: bool, arrays: tuple[bool, ...], gated: bool, pair: bool, value: Callable, grad: Callable | None = None,
    grad_up: Callable | None = None, grad_params: tuple[Callable, ...] = (),
) -> str:  # fmt: skip
    """The whole source for arrays of that dtype, with the derivative kernel where there is a `grad`.

    arrays: for each of the activation's parameters, whether it is an array or a number. wide: z is in the kernels' arithmetic, float32 or
    float64, whatever the dtype.
    """
    learned = {f"grad_param{i}": formula for i, formula in enumerate(grad_params)}
    formulas = {"value": value, "grad": grad, "grad_up": grad_up, **learned}
    flags = {STORED[dtype]: True, "WIDE": wide, "PAIR": pair, "GATED": gated, "BACKWARD": grad}
    taken, loaded, values = "", "", ""
    for i, array in enumerate(arrays):
        taken += f", const real* array{i}, offset stride{i}" if array else f", real number{i}"
        loaded += (
            f"real values{i}[WIDTH]; load_parameter(array{i}, stride{i}, col, count, values{i}); " if array else ""
        )
        values += f", values{i}[i]" if array else f", number{i}"
    return "\n".join(
        [
            *(f"#define {flag}" for flag, given in flags.items() if given),
            *([f"#define LEARNED {len(learned)}"] if learned else []),
            f"#define REALS {', real' * (len(arrays) + pair)}",
            f"#define PARAMETERS {taken}",
            f"#define LOAD_PARAMETERS {loaded}",
            f"#define VALUES {values}",
            Path(__file__).with_name("pointwise.cu").read_text(encoding="ascii"),
            *(function(name, formula, dtype) for name, formula in formulas.items() if formula),
            _chosen([*learned], 1 + pair + len(arrays)) if learned else "",
        ]
    )


def _chosen(functions: list[str], arguments: int) -> str:
    """The C function grad_param(which, …) of those functions. `which` is a constant once its loop is unrolled."""
    names = [f"x{i}" for i in range(arguments)]
    calls = [f"{function}({', '.join(names)})" for function in functions]
    choice = " : ".join((*(f"which == {i} ? {call}" for i, call in enumerate(calls[:-1])), calls[-1]))
    return f"INLINE real grad_param({', '.join(('int which', *(f'real {name}' for name in names)))}) {{ return {choice}; }}"
