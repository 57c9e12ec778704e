"""The printed formulas, and what NVRTC makes of every kernel, for chips that need not be here."""

import re

import numpy as np
import pytest

import checks
from epilogue import ACTIVATIONS, activation
from epilogue.catalogue import formulas
from epilogue.cupy.source import STORED, function, source
from epilogue.vocabulary import PRIMITIVES, where
from nvrtc import compiled, compilers

ARCHITECTURES = (70, 75, 80, 90, 100, 120)
DEAREST = ("gelu", "mish", "softplus", "prelu", "maxout")


def kernels(entry, dtype):
    """The sources of an activation's kernels: forward, and backward of everything that may be kept; plain, gated or pair."""
    values = checks.cases(entry.arity, every=False)
    values = next(case.values[1] for case in values if case.values[0] is entry)
    wide = dtype in ("float16", "bfloat16") and len(entry.name) % 2 == 0  # arrays of CuPy, and else tensors
    for gated in (False, True) if entry.arity == 1 else (False,):
        head = (dtype, wide, (False,) * len(values), gated, entry.arity == 2)
        yield source(*head, entry.value)
        yield source(*head, **formulas(entry, values, "input"))
        if entry.output_derivative(values) and not gated:
            yield source(*head, **formulas(entry, values, "output"))
        if entry.learnable and (entry.name, dtype) != (
            "xielu",
            "float64",
        ):  # the one that spills: three functions of doubles
            learned = len(entry.learnable)
            arrays = (*[True] * learned, *head[2][learned:])
            yield source(
                dtype, wide, arrays, *head[3:], **formulas(entry, (*[np.ones(3)] * learned, *values[learned:]), "input")
            )


def assert_clean(code, architecture):
    log, cubin, _ = compiled(code, architecture)
    assert log == ""
    assert len(cubin) > 1000


@pytest.mark.parametrize(
    ("entry", "dtype"),
    [
        pytest.param(entry, dtype, id=f"{entry}-{dtype}")
        for i, entry in enumerate(ACTIVATIONS.values())
        for dtype in (("bfloat16", "float32"), ("float16", "float64"))[i % 2]
    ],
)
def test_every_kernel_compiles(entry, dtype):
    """Without a word from the compiler, so without spills. Each in one dtype of 16 bits, whose primitives are fast, and one with the exact
    ones; for one architecture each, in turns: just bfloat16's rounding depends on it."""
    known = [architecture for architecture in ARCHITECTURES if architecture in compilers()]
    if not known:
        pytest.skip("no NVRTC is installed")
    first = list(ACTIVATIONS).index(entry.name) + list(STORED).index(dtype)
    for turn, code in enumerate(kernels(entry, dtype), first):
        assert_clean(code, known[turn % len(known)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", DEAREST)
def test_the_dearest_compile_for_every_architecture(name, architecture):
    for code in kernels(ACTIVATIONS[name], "bfloat16"):
        assert_clean(code, architecture)


@pytest.mark.parametrize("architecture", [70, 80])
@pytest.mark.parametrize("dtype", STORED)
def test_memory_is_read_and_written_by_16_bytes(dtype, architecture):
    silu = ACTIVATIONS["silu"]
    per_row = {"float16": 1, "bfloat16": 1, "float32": 2, "float64": 4}[dtype]
    code = source(dtype, False, (), True, False, **formulas(silu, (), "input"))
    ptx = compiled(code, architecture).ptx
    assert len(re.findall(r"ld\.global(\.nc)?\.v[24]", ptx)) == 3 * per_row  # dy, gate, up
    assert len(re.findall(r"st\.global\.v[24]", ptx)) == 3 * per_row  # dgate, dup, h
    assert ".local" not in ptx  # nothing is indexed that would have to live in memory


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "elu", "mish"])
def test_results_in_16_bits_are_cheap(name, dtype):
    """At most 27 instructions of PTX an element beside identity's kernel: so many an H200 issues while it copies one of 16 bits."""
    entry = ACTIVATIONS[name]
    values = tuple(entry.params.values())

    def instructions(entry, values):
        ptx = compiled(source(dtype, False, (False,) * len(values), False, False, entry.value), 90).ptx
        assert "div.rn" not in ptx
        return len(re.findall(r"^\t(?:@!?%p\d+ )?[a-z]\S* ", ptx.split(".entry act_fwd")[1], re.MULTILINE))

    assert 8 < instructions(entry, values) - instructions(ACTIVATIONS["identity"], ()) < 8 * 27


@pytest.mark.parametrize("architecture", [70, 90])
def test_the_compiler_speaks(architecture):
    """Of an array that it has to keep in memory, and of what is no C++."""
    kernel = 'extern "C" __global__ void kernel(int* p, int n) { %s }'
    code = kernel % "int items[64]; for (int i = 0; i < n; i++) items[p[i]] = i; *p = items[n];"
    assert "Local memory used for function 'kernel', size of stack frame: 256 bytes" in compiled(code, architecture).log
    with pytest.raises(AssertionError, match='identifier "items" is undefined'):
        compiled(kernel % "*p = items[n];", architecture)


def test_a_printed_formula():
    assert function("grad", ACTIVATIONS["silu"].derivatives["x"], "float32") == (
        "INLINE real grad(real x0) {\n"
        "  const real t0 = sigmoid_(x0);\n"
        "  const real t1 = (real)1.0 - t0;\n"
        "  const real t2 = x0 * t1;\n"
        "  const real t3 = (real)1.0 + t2;\n"
        "  const real t4 = t0 * t3;\n"
        "  return t4;\n"
        "}\n"
    )
    assert "return (real)1.0;" in function("grad", ACTIVATIONS["identity"].derivatives["x"], "float32")
    assert "const real t0 = x0 > (real)0.0 ? x0 : (real)-2.0;" in function("value", _where, "float32")


def test_fast_forms_write_themselves_out():
    """For results in 16 bits; the vocabulary's own names stay for the others."""
    assert function("value", ACTIVATIONS["sigmoid"].value, "bfloat16") == (
        "INLINE real value(real x0) {\n"
        "  const real t0 = x0 * (real)-1.4426950408889634;\n"
        "  const real t1 = exp2_approx_(t0);\n"
        "  const real t2 = (real)1.0 + t1;\n"
        "  const real t3 = reciprocal_approx_(t2);\n"
        "  return t3;\n"
        "}\n"
    )
    assert "normal_cdf_" in function("value", ACTIVATIONS["gelu"].value, "float64")
    narrow = [function("value", ACTIVATIONS["gelu"].value, dtype) for dtype in ("float16", "bfloat16")]
    assert narrow[0] != narrow[1]
    assert not any("normal_cdf_" in text for text in narrow)


def _where(x):
    return where(x > 0.0, x, -2.0)


@pytest.mark.parametrize("dtype", STORED)
def test_a_users_formula_of_every_primitive_compiles(dtype, own_activations):
    """With the derivatives that follow, two of them by arrays. sin and cos keep their slow path's numbers in local memory."""
    assert {*checks.every_primitive.__code__.co_names} == {*PRIMITIVES}
    entry = activation(checks.every_primitive)
    code = source(dtype, False, (True, True), False, False, **formulas(entry, (np.ones(3), np.ones(1)), "input"))
    for name in ("grad_param0", "grad_param1"):
        assert f"INLINE real {name}(real x0, real x1, real x2)" in code
    log, cubin, _ = compiled(code, 80)
    assert "error" not in log
    assert len(cubin) > 1000


def test_the_source_is_ascii_and_names_no_activation():
    """NVRTC on Windows reads it in the code page of the machine."""
    code = source("float32", False, (), False, False, ACTIVATIONS["relu"].value)
    assert code.isascii()
    for name in ("relu", "gelu", "silu", "mish"):
        assert name not in code
