"""A stand-in for nvmath-python's bindings of cuBLASLt without a GPU: cublasLtMatmul as NVIDIA documents it, on the host's memory.

Matrices are stored by columns. A call checks what the library would: sizes of attributes, leading dimensions, what an epilogue needs. Every
description has to be destroyed again. `quirks` are faults that a trial must find.
"""

import ctypes
import enum
import importlib.machinery
import itertools
from types import ModuleType

import ml_dtypes
import numpy as np

KINDS = {2: np.float16, 14: ml_dtypes.bfloat16}  # cudaDataType_t
BIAS, RELU, GELU, DRELU, BGRAD, DGELU, AUX, BGRADB = 4, 2, 32, 8, 16, 64, 128, 512

Epilogue = enum.IntEnum(
    "Epilogue",
    {
        "DEFAULT": 1, "RELU": 2, "RELU_AUX": 130, "BIAS": 4, "RELU_BIAS": 6, "RELU_AUX_BIAS": 134, "DRELU": 136, "DRELU_BGRAD": 152,
        "GELU": 32, "GELU_AUX": 160, "GELU_BIAS": 36, "GELU_AUX_BIAS": 164, "DGELU": 192, "DGELU_BGRAD": 208, "BGRADA": 256, "BGRADB": 512,
    },
)  # fmt: skip
MatmulDescAttribute = enum.IntEnum(
    "MatmulDescAttribute",
    {"TRANSA": 3, "TRANSB": 4, "EPILOGUE": 7, "BIAS_POINTER": 8, "EPILOGUE_AUX_POINTER": 11, "EPILOGUE_AUX_LD": 12},
)
MatmulPreferenceAttribute = enum.IntEnum(
    "MatmulPreferenceAttribute",
    {
        "MAX_WORKSPACE_BYTES": 1, "REDUCTION_SCHEME_MASK": 3,
        "MIN_ALIGNMENT_A_BYTES": 5, "MIN_ALIGNMENT_B_BYTES": 6, "MIN_ALIGNMENT_C_BYTES": 7,
        "MIN_ALIGNMENT_D_BYTES": 8,
    },
)  # fmt: skip
ReductionScheme = enum.IntEnum("ReductionScheme", {"NONE": 0, "INPLACE": 1, "COMPUTE_TYPE": 2, "OUTPUT_TYPE": 4})
INTEGERS = {4: np.int32, 8: np.int64}
SIZES = {
    MatmulDescAttribute: {3: 4, 4: 4, 7: 4, 8: 8, 11: 8, 12: 8},
    MatmulPreferenceAttribute: {1: 8, 3: 4, 5: 4, 6: 4, 7: 4, 8: 4},
}
matmul_heuristic_result_dtype = np.dtype(
    [("algo", [("data_", "<u8", (8,))]), ("workspace_size", "<u8"), ("state", "<i4"), ("waves_count", "<f4"),
     ("reserved", "<i4", (4,))]
)  # fmt: skip
WORKSPACE = 1000

quirks: set[str] = set()
calls: list[str] = []
"""The epilogues of all products."""
algorithms: list[tuple] = []
"""What each was chosen for: the operation without its pointers, the layouts of a, b, c and d, the alignments promised."""
alive: dict[int, tuple] = {}
_names = itertools.count(1)


class cuBLASLtError(Exception):
    pass


def _made(*what) -> int:
    name = next(_names)
    alive[name] = what
    return name


def create() -> int:
    if "no library" in quirks:
        raise cuBLASLtError("CUBLAS_STATUS_NOT_INITIALIZED")
    return 5


def matmul_desc_create(compute_type, scale_type) -> int:
    assert (compute_type, scale_type) == (68, 0)  # COMPUTE_32F, CUDA_R_32F
    return _made({})


def matrix_layout_create(kind, rows, cols, lead) -> int:
    assert lead >= rows > 0
    assert cols > 0
    return _made(KINDS[kind], rows, cols, lead)


def matmul_preference_create() -> int:
    return _made({})


def _destroy(name) -> None:
    del alive[name]


matmul_desc_destroy = matrix_layout_destroy = matmul_preference_destroy = _destroy


def _setter(attributes):
    def set_attribute(name, attribute, pointer, size) -> None:
        assert SIZES[attributes][attribute] == size
        memory = (ctypes.c_char * size).from_address(pointer)
        alive[name][0][attributes(attribute).name] = int(np.frombuffer(memory, INTEGERS[size])[0])

    return set_attribute


matmul_desc_set_attribute = _setter(MatmulDescAttribute)
matmul_preference_set_attribute = _setter(MatmulPreferenceAttribute)


def _without_pointers(settings: dict[str, int]) -> dict[str, int]:
    return {name: value for name, value in settings.items() if "POINTER" not in name}


def matmul_algo_get_heuristic(handle, operation, a, b, c, d, preference, requested, results, count) -> None:
    assert (handle, requested) == (5, 1)
    (settings,), (preferred,) = alive[operation], alive[preference]
    alignments = [preferred[f"MIN_ALIGNMENT_{name}_BYTES"] for name in "ABCD"]
    assert set(alignments) <= {2, 4, 8, 16, 32, 64, 128, 256}
    assert preferred["REDUCTION_SCHEME_MASK"] == ReductionScheme.COMPUTE_TYPE
    assert preferred["MAX_WORKSPACE_BYTES"] >= WORKSPACE
    assert settings["EPILOGUE"] in iter(Epilogue)
    if "nothing odd" in quirks and any(size % 8 for size in (*alive[d][1:3], alive[b][1])):
        raise cuBLASLtError("CUBLAS_STATUS_NOT_SUPPORTED")
    result = np.zeros(1, matmul_heuristic_result_dtype)
    result["algo"]["data_"][0, 0] = len(algorithms)
    algorithms.append((_without_pointers(settings), *(alive[layout] for layout in (a, b, c, d)), *alignments))
    result["workspace_size"], result["state"] = WORKSPACE, 7 * ("a bad state" in quirks)
    ctypes.memmove(results, result.ctypes.data, result.nbytes)
    ctypes.c_int32.from_address(count).value = "none found" not in quirks


def _memory(pointer, dtype, rows, cols, lead):
    dtype = np.dtype(dtype)
    memory = (ctypes.c_char * (dtype.itemsize * (lead * (cols - 1) + rows))).from_address(pointer)
    strides = (dtype.itemsize, lead * dtype.itemsize)
    return np.lib.stride_tricks.as_strided(np.frombuffer(memory, dtype), (rows, cols), strides)


def matmul(
    handle,
    operation,
    alpha,
    a,
    layout_a,
    b,
    layout_b,
    beta,
    c,
    layout_c,
    d,
    layout_d,
    algorithm,
    workspace,
    size,
    stream,
) -> None:
    assert handle == 5
    assert size == WORKSPACE + 16
    ctypes.memset(workspace, 255, size)
    assert (c, layout_c) == (d, layout_d)
    chosen_for = algorithms[ctypes.c_uint64.from_address(algorithm).value]
    layouts = (alive[layout] for layout in (layout_a, layout_b, layout_c, layout_d))
    assert chosen_for[:5] == (_without_pointers(alive[operation][0]), *layouts)
    assert not any(pointer % alignment for pointer, alignment in zip((a, b, c, d), chosen_for[5:], strict=True))
    if "fails" in quirks:
        raise cuBLASLtError("CUBLAS_STATUS_INVALID_VALUE")
    assert [ctypes.c_float.from_address(pointer).value for pointer in (alpha, beta)] == [1.0, 0.0]
    (settings,) = alive[operation]
    epilogue = settings["EPILOGUE"]
    calls.append(Epilogue(epilogue).name)

    def operand(pointer, layout, transposed):
        found = _memory(pointer, *alive[layout]).astype(np.float32)
        return found.T if transposed else found

    first, second = operand(a, layout_a, settings["TRANSA"]), operand(b, layout_b, settings["TRANSB"])
    dtype, rows, cols, lead = alive[layout_d]
    with np.errstate(all="ignore"):
        result = first @ second
        assert result.shape == (rows, cols)
        sums = _finished(result, second, epilogue, settings, dtype)
        result = result.astype(dtype)
    memory = (ctypes.c_char * (2 * (lead * (cols - 1) + rows))).from_address(d)
    np.lib.stride_tricks.as_strided(np.frombuffer(memory, dtype), (rows, cols), (2, 2 * lead), writeable=True)[...] = (
        result
    )
    if sums is not None:
        into = np.frombuffer((ctypes.c_char * (2 * len(sums))).from_address(settings["BIAS_POINTER"]), dtype)
        into[...] = sums.astype(dtype)


def _finished(z, second, epilogue, settings, dtype):
    """Apply the epilogue to z [rows, cols], float32, in place, and return the bias gradient, or None."""
    rows, cols = z.shape
    assert not settings.get("BIAS_POINTER", 0) % 16
    assert not settings.get("EPILOGUE_AUX_POINTER", 0) % 16
    if epilogue & BIAS:
        z += (1 + ("bias twice" in quirks)) * _memory(settings["BIAS_POINTER"], dtype, rows, 1, rows).astype(np.float32)
    if epilogue & AUX:
        aux, lead = settings["EPILOGUE_AUX_POINTER"], settings["EPILOGUE_AUX_LD"]
        assert lead >= rows
        if epilogue & (RELU | DRELU):
            assert lead % 128 == 0
            memory = (ctypes.c_char * (lead // 8 * cols)).from_address(aux)
            bits = np.frombuffer(memory, np.uint8).reshape(cols, lead // 8)
        else:
            assert lead % 8 == 0
            bits = np.frombuffer((ctypes.c_char * (2 * lead * cols)).from_address(aux), dtype).reshape(cols, lead)
    if epilogue & RELU:
        positive = (z > 0) if "no NaN in relu's bits" in quirks else ~(z <= 0)
        if epilogue & AUX:
            bits[:, : (rows + 7) // 8] = np.packbits(positive.T, axis=1, bitorder="little")
        z[...] = np.where(z > 0, z, 0) if "relu drops NaN" in quirks else np.where(z <= 0, 0, z)
    if epilogue & GELU:
        if epilogue & AUX:
            bits[:, :rows] = (z.T + ("another z kept" in quirks)).astype(dtype)
            z += "another z where it is kept" in quirks
        z[...] = _gelu(z)
    if epilogue & DRELU:
        z *= np.unpackbits(bits, axis=1, bitorder="little")[:, :rows].T
    if epilogue & DGELU:
        z *= _gelu_grad(bits[:, :rows].T.astype(np.float32))
    if epilogue == Epilogue.BGRADB:
        return second.sum(0) + ("wrong sums" in quirks)
    return z.sum(1) + ("wrong sums" in quirks) if epilogue & BGRAD else None


def _gelu(z):
    if "erf" in quirks:
        return z / (1 + np.exp(-1.5957691 * z)) * 1.02
    return 0.5 * z * (1 + np.tanh(0.7978845608 * (z + 0.044715 * z**3)))


def _gelu_grad(z):
    t = np.tanh(0.7978845608 * (z + 0.044715 * z**3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * 0.7978845608 * (1 + 3 * 0.044715 * z * z)


NAMES = (
    "Epilogue", "ReductionScheme", "MatmulDescAttribute",
    "MatmulPreferenceAttribute", "matmul_heuristic_result_dtype", "cuBLASLtError", "create",
    "matmul_desc_create", "matmul_desc_destroy", "matmul_desc_set_attribute", "matrix_layout_create", "matrix_layout_destroy",
    "matmul_preference_create", "matmul_preference_destroy", "matmul_preference_set_attribute", "matmul_algo_get_heuristic", "matmul",
)  # fmt: skip


def modules() -> dict[str, ModuleType]:
    """What `from nvmath.bindings import cublasLt` looks up."""
    for record in (quirks, calls, algorithms):
        record.clear()
    made = {name: ModuleType(name) for name in ("nvmath", "nvmath.bindings", "nvmath.bindings.cublasLt")}
    for name, module in made.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made["nvmath.bindings"].cublasLt = made["nvmath.bindings.cublasLt"]
    vars(made["nvmath.bindings.cublasLt"]).update({name: globals()[name] for name in NAMES})
    return made
