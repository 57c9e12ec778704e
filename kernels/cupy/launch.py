"""The launchers of the pointwise kernels (pointwise.cu), for arrays of torch and of CuPy alike."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from ..applied import Applied, Needs
from ..catalogue import ACTIVATIONS, Keep, formulas
from .source import source

WIDTH = 8
"""Columns per thread, as in pointwise.cu."""
BLOCK = 256
"""Threads per block."""


class Library(NamedTuple):
    """The functions that the launchers need of the arrays' library.

    `strides(matrix)` are counted in elements. `dense_rows(matrix)` has columns of stride 1. `real(array, like)` is the array, contiguous,
    in the dtype in which like's kernels compute: float32, or float64 for float64. `empty(like, shape, real)` is fresh memory in that dtype
    if real, else in like's. Within `on_device(array)`, launches go to the array's device and the library's current stream.
    """

    pointer: Callable[[Any], int]
    strides: Callable[[Any], tuple[int, int]]
    dense_rows: Callable[[Any], Any]
    real: Callable[[Any, Any], Any]
    empty: Callable[[Any, tuple[int, ...], bool], Any]
    on_device: Callable[[Any], AbstractContextManager[Any]]


@functools.cache
def cupy_library() -> Library:
    """The library of CuPy's arrays."""
    import cupy

    def real(array: Any) -> Any:
        return np.float64 if array.dtype == np.float64 else np.float32

    return Library(
        pointer=lambda x: x.data.ptr,
        strides=lambda x: (x.strides[0] // x.itemsize, x.strides[1] // x.itemsize),
        dense_rows=lambda x: x if x.strides[1] == x.itemsize else cupy.ascontiguousarray(x),
        real=lambda array, like: cupy.ascontiguousarray(array, real(like)),
        empty=lambda like, shape, wide: cupy.empty(shape, real(like) if wide else like.dtype),
        on_device=lambda x: x.device,
    )


class Matrices(NamedTuple):
    """gate and up of a gated layer, or z and None, and the biases that are yet to be added. z and up have the same row stride.

    They are in the dtype of y and dy, or in float32.
    """

    z: Any
    up: Any = None
    bias: Any = None
    up_bias: Any = None


def forward(library: Library, z: Matrices, y: Any, signs: Any, applied: Applied) -> None:
    """Write dropout(act(z + bias)) to y [M, N], which may be z, and the bits of act(...) > 0 to signs, uint8 [M, ⌈N/8⌉], unless None."""
    m, n = y.shape
    if not (m and n):
        return
    kernel = _kernel("act_fwd", y, z, applied, {"value": applied.act.base.value})
    matrices = (z.z, z.up, y)
    operands = (z.z, z.up, z.bias, z.up_bias, y, signs)
    sizes = (m, n, library.strides(z.z)[0], library.strides(y)[0])
    with library.on_device(y):
        _launch(library, kernel, _geometry(kernel, m, n), y, operands, sizes, matrices, applied)


class Gradients(NamedTuple):
    """The results of `backward`; None where not needed. dz and dup [M, N] have the same row stride, h is contiguous."""

    dz: Any = None
    dup: Any = None
    h: Any = None
    dbias: Any = None
    dparam: Any = None


def backward(
    library: Library, dy: Any, z: Matrices, signs: Any, keep: Keep, applied: Applied, into: Gradients, needs: Needs
) -> Gradients:  # fmt: skip
    """Write dz = dropout(dy) ⊙ act'(z + bias), with `up` also dup, and h = dropout(act(z + bias)) to `into`. dz may be dy [M, N].

    z is the kept z ("input") or y ("output"); for "sign" it is None, and signs are those that `forward` wrote. dz, dup and h are computed
    where `into` has them. The sums over rows are computed where `needs` says so, in float32 (float64 for float64): dbias [N], or [2N] of a
    gated layer, and dparam [P, N] of the P parameters that are arrays.
    """
    m, n = dy.shape
    gated = z.up is not None
    dy = library.dense_rows(dy)
    width = 2 * n if gated else n

    def sums(rows: int) -> tuple[Any, Any]:
        """Memory for the sums (dbias, dparam) of that many rows of threads."""
        dbias = library.empty(dy, (rows, width), True) if needs.dbias else None
        arrays = sum(not isinstance(value, float) for value in applied.values)
        return dbias, library.empty(dy, (rows, arrays, n), True) if needs.dparam else None

    dbias, dparam = sums(0)
    if m and n:
        kernel = _kernel("act_bwd", dy, z, applied, formulas(applied.act, applied.values, keep))
        matrices = (dy, z.z, z.up, into.dz, into.dup, into.h)
        strides = (0 if t is None else library.strides(t)[0] for t in (dy, z.z, into.dz))
        with library.on_device(dy):
            geometry = (rows, _), (_, down) = _geometry(kernel, m, n)
            dbias, dparam = sums(rows * down)
            dup_bias = dbias[:, n:] if needs.dbias and gated else None
            operands = (dy, *z, signs, into.dz, into.dup, into.h, dbias, dup_bias, dparam)
            _launch(library, kernel, geometry, dy, operands, (m, n, *strides, width), matrices, applied)
    return into._replace(
        dbias=dbias if dbias is None else dbias.sum(0), dparam=dparam if dparam is None else dparam.sum(0)
    )


def mask(library: Library, factors: Any, dropout: Any) -> None:
    """Write the factors of the dropout of `forward` to factors [M, N], float32."""
    m, n = factors.shape
    if m and n:
        identity = Applied(ACTIVATIONS["identity"])
        kernel = _kernel("dropout_mask", factors, Matrices(factors), identity, {"value": identity.act.value})
        seed, threshold, scale = dropout.argument()
        arguments = (np.uint64(library.pointer(seed)), np.int64(threshold), np.float32(scale), np.int64(m), np.int64(n))
        with library.on_device(factors):
            kernel(*_geometry(kernel, m, n), (np.uint64(library.pointer(factors)), *arguments))


def _launch(library: Library, kernel, geometry, like, operands, sizes, matrices, applied: Applied) -> None:
    """Launch the kernel, with 16-byte vectors where all matrices allow them."""
    real = np.float64 if dtype_of(like) == "float64" else np.float32
    vector = all(
        library.pointer(t) % 16 == 0 and (t.shape[0] == 1 or library.strides(t)[0] * t.itemsize % 16 == 0)
        for t in matrices
        if t is not None
    )
    values = applied.values
    seed, threshold, scale = applied.dropout.argument() if applied.dropout else (None, 0, 0.0)
    arrays = [None if isinstance(value, float) else library.real(value, like) for value in values]
    params: list[Any] = []
    for value, array in zip(values, arrays, strict=True):
        if array is None:
            params.append(real(value))
        else:
            params += [_pointer(library, array), np.int64(array.ndim > 0 and array.shape[0] > 1)]
    kernel(
        *geometry,
        (
            *(_pointer(library, operand) for operand in (*operands, seed)), np.int64(threshold), real(scale),
            *map(np.int64, sizes), np.int64(vector), *params,
        ),
    )  # fmt: skip


def _pointer(library: Library, array: Any) -> np.uint64:
    return np.uint64(0 if array is None else library.pointer(array))


def _geometry(kernel: Any, m: int, n: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(grid, block) for the current device. A block runs along the groups of columns in x and along the rows in y. The grid has them the
    other way round, since rows are many. It has no more blocks than run at a time: threads loop over further rows, so that there are few
    rows of sums.
    """
    import cupy

    groups = -(-n // WIDTH)
    across = min(32, 1 << max(groups - 1, 0).bit_length())
    down = BLOCK // across
    columns = max(1, min(-(-groups // across), 2**16 - 1))
    rows = max(1, min(-(-m // down), _blocks(kernel, cupy.cuda.runtime.getDevice()) // columns))
    return (rows, columns), (across, down)


@functools.cache
def _blocks(kernel: Any, device: int) -> int:
    """The number of the kernel's blocks that the device, which is the current one, runs at a time."""
    import cupy

    at_a_time = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(kernel.kernel.ptr, BLOCK, 0)
    return at_a_time * cupy.cuda.Device(device).attributes["MultiProcessorCount"]


def dtype_of(array: Any) -> str:
    return str(array.dtype).removeprefix("torch.")


def _kernel(name: str, like: Any, z: Matrices, applied: Applied, functions: dict[str, Any]) -> Any:
    act = applied.act
    pair = act.arity == 2 and act.gate is None
    wide = z.z is not None and z.z.dtype != like.dtype
    arrays = tuple(not isinstance(value, float) for value in applied.values)
    return compiled(source(dtype_of(like), wide, arrays, z.up is not None and not pair, pair, **functions), name)


@functools.cache
def compiled(code: str, name: str) -> Any:
    """The kernel of that name: callable(grid, block, arguments). CuPy compiles it for each device and caches it on disk."""
    import cupy

    return cupy.RawModule(code=code, options=("-std=c++17",)).get_function(name)
