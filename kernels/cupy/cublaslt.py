"""Matrix products with cuBLASLt's own epilogues, through the bindings of nvmath-python, in float16 and bfloat16.

cuBLASLt stores matrices by columns. It takes d [M, N] stored by rows as dᵀ, so its first operand is b and its second a. The rows of its
result, along which a bias lies, are d's columns.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

DTYPES = ("float16", "bfloat16")
WORKSPACE = 32 << 20
"""Bytes that an algorithm may ask for: as many as cuBLAS itself takes on sm_90."""


class Matrix(NamedTuple):
    """A matrix [rows, cols] in memory: element (i, j) is at i · lead + j, or at j · lead + i where it is stored by columns."""

    pointer: int
    rows: int
    cols: int
    lead: int
    by_rows: bool


def stored(shape: tuple[int, int], strides: tuple[int, int]) -> tuple[int, bool] | None:
    """(lead, by_rows) of a matrix with these strides in elements, or None where it is stored neither way."""
    (rows, cols), (down, along) = shape, strides
    if along == 1 and (down >= cols or rows == 1):
        return max(down, cols), True
    if down == 1 and (along >= rows or cols == 1):
        return max(along, rows), False
    return None


class Product(NamedTuple):
    """d [M, N] = epilogue(a b) for a [M, K] and b [K, N], d stored by rows.

    epilogue: a name of cublasLtEpilogue_t. bias: the pointer to the vector that is added to each row, or that BGRAD writes. aux: the
    pointer to what forward keeps for backward, in rows of aux_lead elements, or of aux_lead bits for relu. 0 where absent.
    """

    epilogue: str
    dtype: str
    a: Matrix
    b: Matrix
    d: Matrix
    bias: int = 0
    aux: int = 0
    aux_lead: int = 0


def multiply(product: Product, workspace: Callable[[int], tuple[Any, int]]) -> bool:
    """Compute the product on CuPy's current device and stream, and return True; or return False where cuBLASLt does not, and write nothing.

    Sizes of 1 and vectors not aligned to 16 bytes are refused, since releases of cuBLASLt have computed them wrongly or crashed on them.
    workspace: number of bytes -> (an object that holds so many, their pointer).
    """
    import cupy

    sizes = (product.a.rows, product.a.cols, product.b.cols)
    if min(sizes) < 2 or product.bias % 16 or product.aux % 16:
        return False
    lt, device = _bindings(), cupy.cuda.runtime.getDevice()
    found = _algorithm(_aligned(product), device)
    if found is None:
        return False
    algorithm, size = found
    _held, scratch = workspace(size) if size else (None, 0)
    with _described(product) as (operation, a, b, d), contextlib.suppress(lt.cuBLASLtError):
        lt.matmul(
            _handle(device), operation, _ONE.ctypes.data, product.b.pointer, b, product.a.pointer, a,
            _ZERO.ctypes.data, product.d.pointer, d, product.d.pointer, d, algorithm.ctypes.data, scratch, size,
            cupy.cuda.get_current_stream().ptr,
        )  # fmt: skip
        return True
    return False


_ONE, _ZERO = np.array(1, np.float32), np.array(0, np.float32)


def _aligned(product: Product) -> Product:
    """The product with each pointer replaced by its alignment, at most 256: an algorithm's choice depends on nothing else."""

    def alignment(pointer: int) -> int:
        return min(pointer & -pointer, 256)

    a, b, d = (matrix._replace(pointer=alignment(matrix.pointer)) for matrix in (product.a, product.b, product.d))
    return product._replace(a=a, b=b, d=d, bias=alignment(product.bias), aux=alignment(product.aux))


@functools.lru_cache(maxsize=4096)
def _algorithm(product: Product, device: int) -> tuple[np.ndarray, int] | None:
    """(cuBLASLt's first choice, the bytes of workspace that it wants), or None where it has none."""
    lt, handle = _bindings(), _handle(device)
    names = lt.MatmulPreferenceAttribute
    settings: dict[Any, np.generic] = {
        names.MAX_WORKSPACE_BYTES: np.uint64(WORKSPACE),
        names.REDUCTION_SCHEME_MASK: np.uint32(lt.ReductionScheme.COMPUTE_TYPE),  # parts of a sum over k stay float32
        names.MIN_ALIGNMENT_A_BYTES: np.uint32(product.b.pointer),
        names.MIN_ALIGNMENT_B_BYTES: np.uint32(product.a.pointer),
        names.MIN_ALIGNMENT_C_BYTES: np.uint32(product.d.pointer),
        names.MIN_ALIGNMENT_D_BYTES: np.uint32(product.d.pointer),
    }
    result, count = np.zeros(1, lt.matmul_heuristic_result_dtype), np.zeros(1, np.int32)
    with contextlib.ExitStack() as made:
        preference = lt.matmul_preference_create()
        made.callback(lt.matmul_preference_destroy, preference)
        _set(lt.matmul_preference_set_attribute, preference, settings)
        operation, a, b, d = made.enter_context(_described(product))
        try:
            lt.matmul_algo_get_heuristic(
                handle, operation, b, a, d, d, preference, 1, result.ctypes.data, count.ctypes.data
            )
        except lt.cuBLASLtError:  # not served: these sizes, or this alignment with this epilogue
            return None
    if not count[0] or result["state"][0]:
        return None
    size = int(result["workspace_size"][0])
    return result["algo"].copy(), size + 16 if size else 0  # nvmath-python gives it 16 bytes more with an epilogue


@contextlib.contextmanager
def _described(product: Product) -> Iterator[tuple[int, int, int, int]]:
    """cuBLASLt's descriptions of the operation, a, b and d; made for each call, since they hold its pointers."""
    import cupy

    lt, runtime = _bindings(), cupy.cuda.runtime
    kind = {"float16": runtime.CUDA_R_16F, "bfloat16": runtime.CUDA_R_16BF}[product.dtype]
    names = lt.MatmulDescAttribute
    settings: dict[Any, np.generic] = {
        names.TRANSA: np.int32(not product.b.by_rows),
        names.TRANSB: np.int32(not product.a.by_rows),
        names.EPILOGUE: np.uint32(lt.Epilogue[product.epilogue]),
    }
    if product.bias:
        settings[names.BIAS_POINTER] = np.uint64(product.bias)
    if product.aux:
        settings[names.EPILOGUE_AUX_POINTER] = np.uint64(product.aux)
        settings[names.EPILOGUE_AUX_LD] = np.int64(product.aux_lead)
    with contextlib.ExitStack() as made:
        operation = lt.matmul_desc_create(cupy.cuda.cublas.CUBLAS_COMPUTE_32F, runtime.CUDA_R_32F)
        made.callback(lt.matmul_desc_destroy, operation)
        _set(lt.matmul_desc_set_attribute, operation, settings)
        layouts = []
        for matrix in (product.a, product.b, product.d):
            along, across = (matrix.cols, matrix.rows) if matrix.by_rows else (matrix.rows, matrix.cols)
            layouts.append(lt.matrix_layout_create(kind, along, across, matrix.lead))
            made.callback(lt.matrix_layout_destroy, layouts[-1])
        a, b, d = layouts
        yield operation, a, b, d


def _set(set_attribute: Callable[..., None], description: int, settings: dict[Any, np.generic]) -> None:
    for name, value in settings.items():
        held = np.array(value)
        set_attribute(description, name, held.ctypes.data, held.itemsize)


@functools.cache
def _handle(device: int) -> int:
    """cuBLASLt's handle for that device, which must be the current one."""
    return _bindings().create()


def _bindings() -> Any:
    from nvmath.bindings import cublasLt

    return cublasLt
