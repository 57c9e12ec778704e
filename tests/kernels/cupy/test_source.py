"""The printed formulas, and what NVRTC makes of every kernel, for chips that need not be here."""

import re

import numpy as np
import pytest

import checks
from epilogue import ACTIVATIONS
from epilogue.catalogue import formulas
from epilogue.cupy.source import STORED, function, source
from epilogue.vocabulary import where

ARCHITECTURES = (70, 75, 80, 90, 100, 120)
DEAREST = ("gelu", "mish", "softplus", "prelu", "maxout")


def kernels(entry, dtype):
    """The sources of an activation's kernels: forward, and backward of everything that may be kept; plain, gated or pair."""
    values = checks.cases(entry.arity, every=False)
    values = next(case.values[1] for case in values if case.values[0] is entry)
    wide = dtype in ("float16", "bfloat16") and len(entry.name) % 2 == 0  # arrays of CuPy, and else tensors
    for gated in (False, True) if entry.arity == 1 else (False,):
        head = (dtype, wide, len(values), gated, entry.arity == 2)
        yield source(*head, entry.value)
        yield source(*head, **formulas(entry, values, "input"))
        if entry.output_derivative(values) and not gated:
            yield source(*head, **formulas(entry, values, "output"))
        if entry.learnable:
            yield source(*head, **formulas(entry, (np.ones(3),), "input"))


@pytest.fixture(scope="module")
def nvrtc():
    """CuPy's binding of NVRTC, which asks for no driver."""
    return pytest.importorskip("cupy_backends.cuda.libs", reason="no CuPy here", exc_type=ImportError).nvrtc


def compiled(nvrtc, code, target):
    """(the compiler's log, the program) for sm_90 or, as text, compute_90."""
    program = nvrtc.createProgram(code, "pointwise.cu", (), ())
    try:
        nvrtc.compileProgram(program, (f"--gpu-architecture={target}", "-std=c++17"))
    except Exception as error:
        raise AssertionError(nvrtc.getProgramLog(program)) from error
    log = nvrtc.getProgramLog(program)
    result = nvrtc.getCUBIN(program) if target.startswith("sm_") else nvrtc.getPTX(program)
    nvrtc.destroyProgram(program)
    return log.strip("\0\n "), result


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("entry", ACTIVATIONS.values(), ids=repr)
def test_every_kernel_compiles(entry, dtype, nvrtc):
    """Without a word from the compiler. The dearest for every architecture, the others for one, in turns: nothing in them depends on it."""
    known = [arch for arch in ARCHITECTURES if arch in nvrtc.getSupportedArchs()]
    turn = list(ACTIVATIONS).index(entry.name)
    for code in kernels(entry, dtype):
        turn += 1
        for arch in known if entry.name in DEAREST and dtype == "bfloat16" else [known[turn % len(known)]]:
            log, cubin = compiled(nvrtc, code, f"sm_{arch}")
            assert log == ""
            assert len(cubin) > 1000


@pytest.mark.parametrize("dtype", STORED)
def test_vectors_and_registers(dtype, nvrtc):
    """Memory is read and written by 16 bytes, and nothing is indexed that would have to live in memory."""
    silu = ACTIVATIONS["silu"]
    per_row = {"float16": 1, "bfloat16": 1, "float32": 2, "float64": 4}[dtype]
    _, program = compiled(nvrtc, source(dtype, False, 0, True, False, **formulas(silu, (), "input")), "compute_80")
    text = program.decode()
    assert len(re.findall(r"ld\.global(\.nc)?\.v[24]", text)) == 3 * per_row  # dy, gate, up
    assert len(re.findall(r"st\.global\.v[24]", text)) == 3 * per_row  # dgate, dup, h
    assert ".local" not in text


def test_a_printed_formula():
    assert function("grad", ACTIVATIONS["silu"].derivatives["x"]) == (
        "INLINE real grad(real x0) {\n"
        "  const real t0 = sigmoid_(x0);\n"
        "  const real t1 = (real)1.0 - t0;\n"
        "  const real t2 = x0 * t1;\n"
        "  const real t3 = (real)1.0 + t2;\n"
        "  const real t4 = t0 * t3;\n"
        "  return t4;\n"
        "}\n"
    )
    assert "return (real)1.0;" in function("grad", ACTIVATIONS["identity"].derivatives["x"])
    assert "const real t0 = x0 > (real)0.0 ? x0 : (real)-2.0;" in function("value", _where)


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


def _branches(x):
    return x if x > 0.0 else 0.0


def _power(x):
    return x**2.0


def test_what_is_no_formula_raises():
    with pytest.raises(TypeError, match="straight-line: it chooses with where"):
        function("value", _branches)
    with pytest.raises(TypeError, match="unsupported operand"):
        function("value", _power)


def test_the_source_is_ascii_and_names_no_activation():
    """NVRTC on Windows reads it in the code page of the machine."""
    code = source("float32", False, 0, False, False, ACTIVATIONS["relu"].value)
    assert code.isascii()
    for name in ("relu", "gelu", "silu", "mish"):
        assert name not in code
