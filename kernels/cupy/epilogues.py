"""Layers whose bias, activation or derivative is cuBLASLt's epilogue: identity, relu and gelu_tanh, where nvmath-python is installed.

NVIDIA does not document all that decides whether the results equal those of our kernels, such as what its relu makes of a NaN. So an
epilogue is used only where trials on the device found the reference's values. Only float16 and bfloat16 are served: a float32 product takes
so long that a pass beside it hardly counts, and torch and CuPy have settings of their own for TF32.
"""

import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..catalogue import ACTIVATIONS, CUBLASLT, Activation
from .cublaslt import DTYPES, Matrix, Product, multiply, stored
from .launch import Library, cupy_library, dtype_of

STEMS = {"identity": "", **CUBLASLT}
"""Activation -> the beginning of its epilogues' names. Identity has only those with a bias."""

Results = tuple[Any, Any] | None


def serves(library: Library, x: Any, act: Activation, backward: bool) -> bool:
    """True if the activation has epilogues and those of forward, or of backward, are used on x's device."""
    if act.name not in STEMS or dtype_of(x) not in DTYPES or not _installed():
        return False
    import cupy

    with library.on_device(x):
        return refusal(act.name, dtype_of(x), cupy.cuda.runtime.getDevice(), backward) is None


def forward(library: Library, x: Any, weight: Any, bias: Any, act: Activation, keep: bool = False) -> Results:
    """(y [M, N] = act(x Wᵀ + b), what `backward` needs if `keep`, else None), or None where cuBLASLt does not serve.

    x [M, K], weight [N, K], bias [N], contiguous, or None. gelu_tanh keeps z [M, N], its rows filled up to a multiple of 8; relu keeps
    one bit for each element.
    """
    name = _forward_name(act, keep, bias is not None)
    if name is None or not serves(library, x, act, False):
        return None
    m, n = x.shape[0], weight.shape[0]
    y = library.empty(x, (m, n), False)
    aux = library.empty(x, _aux_shape(act, m, n), False) if keep else None
    return (y, aux) if _multiply(library, name, dtype_of(x), x, weight.T, y, bias, aux) else None


def backward(library: Library, dy: Any, weight: Any, aux: Any, act: Activation, bias: bool) -> Results:
    """(dz [M, F] = (dy W) ⊙ act'(z), dbias [F] if `bias`, else None), or None. dy [M, N], weight [N, F], aux as `forward` keeps it."""
    if act.name not in CUBLASLT or not serves(library, dy, act, True):
        return None
    m, f = dy.shape[0], weight.shape[1]
    dz, dbias = library.empty(dy, (m, f), False), library.empty(dy, (f,), False) if bias else None
    done = _multiply(library, _backward_name(act, bias), dtype_of(dy), dy, weight, dz, dbias, aux)
    return (dz, dbias) if done else None


def weight_gradient(library: Library, dy: Any, x: Any) -> Results:
    """(dW [N, K] = dyᵀ x, db [N], the sum of dy's rows), or None. dy [M, N], x [M, K]."""
    if not serves(library, dy, ACTIVATIONS["identity"], True):
        return None
    n, k = dy.shape[1], x.shape[1]
    dw, db = library.empty(dy, (n, k), False), library.empty(dy, (n,), False)
    return (dw, db) if _multiply(library, "BGRADB", dtype_of(dy), dy.T, x, dw, db, None) else None


def keeps_z(act: Activation, n: int) -> bool:
    """True if what `forward` keeps is z [M, N] without padding."""
    return STEMS.get(act.name) == "GELU" and _aux_shape(act, 1, n) == (1, n)


def _forward_name(act: Activation, keep: bool, bias: bool) -> str | None:
    stem = STEMS.get(act.name)
    if stem is None or (not stem and (keep or not bias)):  # identity keeps nothing; without a bias it is cuBLAS's
        return None
    return "_".join(part for part in (stem, "AUX" if keep else "", "BIAS" if bias else "") if part)


def _backward_name(act: Activation, bias: bool) -> str:
    return f"D{STEMS[act.name]}{'_BGRAD' if bias else ''}"


def _aux_shape(act: Activation, m: int, n: int) -> tuple[int, int]:
    """The shape of what forward keeps, in 16-bit elements. cuBLASLt wants rows of a multiple of 8 elements, or of 128 of relu's bits."""
    return (m, -(-n // 128) * 8) if STEMS[act.name] == "RELU" else (m, -(-n // 8) * 8)


def _multiply(library: Library, name: str, dtype: str, a: Any, b: Any, d: Any, bias: Any, aux: Any) -> bool:
    """Write epilogue(a b) to d, all of that dtype, and return True; or return False where cuBLASLt does not serve."""

    def matrix(array: Any) -> Matrix | None:
        found, (rows, cols) = stored(array.shape, library.strides(array)), array.shape
        return Matrix(library.pointer(array), rows, cols, *found) if found else None

    def workspace(size: int) -> tuple[Any, int]:
        array = library.empty(d, (-(-size // 2),), False)
        return array, library.pointer(array)

    first, second, into = matrix(a), matrix(b), matrix(d)
    if first is None or second is None or into is None:
        return False
    bias_ptr, aux_ptr = (0 if array is None else library.pointer(array) for array in (bias, aux))
    lead = 0 if aux is None else aux.shape[1] * (16 if "RELU" in name else 1)
    with library.on_device(d):
        return multiply(Product(name, dtype, first, second, into, bias_ptr, aux_ptr, lead), workspace)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("nvmath") is not None


def refusal(activation: str, dtype: str, device: int, backward: bool) -> str | None:
    """The reason why that activation's epilogues are not used on that device, the current one; None where trials found them right."""
    if not _installed():
        return "nvmath-python is not installed"
    try:
        return _refusal(activation, dtype, device, backward)
    except _NotNow as error:
        return str(error)


class _NotNow(Exception):
    """Raised where a trial cannot run now, but may at a later call."""


@functools.cache
def _refusal(activation: str, dtype: str, device: int, backward: bool) -> str | None:
    import cupy

    if cupy.cuda.get_current_stream().is_capturing():
        raise _NotNow("a trial waits for the device, which a CUDA graph's capture does not allow")
    trials = _backward_trials if backward else _forward_trials
    try:
        with np.errstate(all="ignore"):
            for name, got, expected in trials(ACTIVATIONS[activation], dtype):
                if not _agree(_numbers(got, dtype), expected, dtype):
                    return f"cuBLASLt's {name} computes something else"
    except MemoryError as error:
        raise _NotNow(str(error)) from error
    except Exception as error:  # a library that is missing or too old, or an error of cuBLASLt's own
        return f"{type(error).__name__}: {error}"
    return None


def _operands(m: int, n: int, k: int) -> tuple[np.ndarray, ...]:
    """x [M, K], weight [N, K], bias [N], dy [M, K], down [K, N]: numbers that 16 bits hold, and products that float32 sums exactly."""
    rng, unit = np.random.default_rng(0), 2.0 ** -round(np.log2(k) / 2)

    def draw(unit: float, *shape: int) -> np.ndarray:
        return unit * rng.integers(-8, 9, shape)

    bias = draw(0.25, n)
    bias[3] = np.nan
    return draw(0.25, m, k), draw(unit / 2, n, k), bias, draw(0.25, m, k), draw(unit / 2, k, n)


SHAPES = ((96, 256, 64), (16, 24, 4096), (33, 40, 24))
"""M, N, K of the trials: one for whole tiles, one that may be split along K, and one that is no multiple of a tile."""


def _forward_trials(act: Activation, dtype: str) -> Iterator[tuple[str, Any, np.ndarray]]:
    """Yield (epilogue, its result in CuPy's memory, the reference's result)."""
    for m, n, k in SHAPES:
        x, weight, bias, *_ = _operands(m, n, k)
        weight[:, 0] = 0.25
        x[0, 0], x[1, 0] = np.nan, np.inf
        for added, keep in ((added, keep) for added in (None, bias) for keep in (False, True)):
            name = _forward_name(act, keep, added is not None)
            if name:
                z = x @ weight.T + (0.0 if added is None else added)
                aux = _bits(np.zeros(_aux_shape(act, m, n)), dtype) if keep else None
                given = None if added is None else _bits(added, dtype)
                yield name, _tried(name, dtype, _bits(x, dtype), _bits(weight, dtype).T, given, aux), act.value(z)
                if keep and keeps_z(act, n):
                    yield name, aux, z


def _backward_trials(act: Activation, dtype: str) -> Iterator[tuple[str, Any, np.ndarray]]:
    for m, n, k in SHAPES:
        x, weight, bias, dy, down = _operands(m, n, k)
        if act.name == "identity":
            dy[0, 5] = np.nan
            db = _bits(np.zeros(k), dtype)
            yield "BGRADB", _tried("BGRADB", dtype, _bits(dy, dtype).T, _bits(x, dtype), db, None), dy.T @ x
            yield "BGRADB", db, dy.sum(0)
            continue
        aux = _bits(np.zeros(_aux_shape(act, m, n)), dtype)
        name = _forward_name(act, True, True)
        assert name is not None
        _tried(name, dtype, _bits(x, dtype), _bits(weight, dtype).T, _bits(bias, dtype), aux)
        z = _numbers(aux, dtype) if keeps_z(act, n) else x @ weight.T + bias
        dz = (dy @ down) * act.derivatives["x"](z)
        for summed in (False, True):
            name, dbias = _backward_name(act, summed), _bits(np.zeros(n), dtype) if summed else None
            yield name, _tried(name, dtype, _bits(dy, dtype), _bits(down, dtype), dbias, aux), dz
            if summed:
                yield name, dbias, dz.sum(0)


def _tried(name: str, dtype: str, a: Any, b: Any, bias: Any, aux: Any) -> Any:
    """The bits of epilogue(a b), from the bits of a and b."""
    d = _bits(np.zeros((a.shape[0], b.shape[1])), dtype)
    if not _multiply(cupy_library(), name, dtype, a, b, d, bias, aux):
        raise LookupError(f"cuBLASLt has no {name} here")
    return d


def _bits(numbers: np.ndarray, dtype: str) -> Any:
    """The bits, in CuPy's memory, of numbers that 16 bits hold. CuPy has bfloat16 itself only with ml_dtypes."""
    import cupy

    single = numbers.astype(np.float32)
    bits = single.astype(np.float16).view(np.uint16) if dtype == "float16" else single.view(np.uint32) >> 16
    return cupy.asarray(bits.astype(np.uint16))


def _numbers(bits: Any, dtype: str) -> np.ndarray:
    import cupy

    found = cupy.asnumpy(bits)
    numbers = found.view(np.float16) if dtype == "float16" else (found.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float64)


def _agree(got: np.ndarray, expected: np.ndarray, dtype: str) -> bool:
    """True if both agree within one unit of rounding, of the number itself and of their typical size, NaN and inf included."""
    unit = 2.0**-10 if dtype == "float16" else 2.0**-7
    typical = np.sqrt(np.mean(expected[np.isfinite(expected)] ** 2))
    return np.allclose(got, expected, rtol=unit, atol=unit * typical, equal_nan=True)
