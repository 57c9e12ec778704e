"""A stand-in for CuPy without a GPU: NumPy arrays under CuPy's names, and the kernels' own source built for the host.

Blocks and threads run one after another. A launch checks what CUDA would not: the number and types of its arguments, and that 16-byte
accesses are aligned.
"""

import contextlib
import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np

COMPILER = shutil.which("g++") or shutil.which("c++")

BEFORE = r"""
// No header: each of the hundreds of builds would read thousands of lines.
#define FUNCTION(name) extern "C" double name(double); extern "C" float name##f(float);
FUNCTION(fabs) FUNCTION(exp) FUNCTION(expm1) FUNCTION(log) FUNCTION(log1p) FUNCTION(erfc) FUNCTION(sqrt) FUNCTION(tanh)
FUNCTION(nearbyint) FUNCTION(cos) FUNCTION(erf) FUNCTION(sin)
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
extern "C" float ldexpf(float, int); extern "C" float exp2f(float); extern "C" float log2f(float);
#define memcpy __builtin_memcpy
#define __device__ static
#define __forceinline__ inline
#define __global__
struct dims { unsigned x, y; };
static dims gridDim, blockDim, blockIdx, threadIdx;
static long long misaligned, vectors;
struct uint4 {
  unsigned words[4];
  static void check(const void* p) { misaligned += (unsigned long long)p % 16 != 0; }
  uint4& operator=(const uint4& other) {
    check(this);
    check(&other);
    vectors++;
    memcpy(words, other.words, 16);
    return *this;
  }
};
static inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
static inline float exp2_approx_(float x) { return exp2f(x); }
static inline float log2_approx_(float x) { return log2f(x); }
static inline float reciprocal_approx_(float x) { return 1.0f / x; }
static inline float half_to_float(unsigned short x) {
  const float magnitude = (x & 0x7C00) == 0x7C00 ? (x & 0x3FF ? __builtin_nanf("") : __builtin_inff())
      : (x & 0x7C00) ? ldexpf((x & 0x3FF) | 0x400, ((x >> 10) & 31) - 25) : ldexpf(x & 0x3FF, -24);
  return x & 0x8000 ? -magnitude : magnitude;
}
static inline unsigned short float_to_half(float x) {
  const unsigned short sign = __float_as_uint(x) >> 31 << 15;
  const float a = fabsf(x);
  if (a != a) return 0x7FFF;
  if (a >= 65520.0f) return sign | 0x7C00;
  if (a < 6.103515625e-05f) return sign | (unsigned short)nearbyintf(ldexpf(a, 24));
  const unsigned bits = __float_as_uint(a) + 0xFFF + ((__float_as_uint(a) >> 13) & 1);
  return sign | ((bits >> 13) - (112 << 10));
}
"""

AFTER = r"""
template <class A> constexpr char letter(A*) {
  return (A)0.5f != 0 ? sizeof(A) == 4 ? 'f' : 'd' : 'i';
}
template <class A> constexpr char letter(A**) { return 'p'; }
template <class... A> static const char* signature_of(void (*)(A...)) {
  static const char letters[] = {letter((A*)nullptr)..., 0};
  return letters;
}
template <int... I> struct places {};
template <class... A, int... I>
static void call(void (*kernel)(A...), void** arguments, places<I...>) { kernel(*(A*)arguments[I]...); }
template <class... A> static void run(void (*kernel)(A...), const unsigned* shape, void** arguments) {
  gridDim = {shape[0], shape[1]};
  blockDim = {shape[2], shape[3]};
  for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++)
      for (threadIdx.y = 0; threadIdx.y < blockDim.y; threadIdx.y++)
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++)
          call(kernel, arguments, places<__integer_pack((int)sizeof...(A))...>());
}
extern "C" const char* signature() { return signature_of(KERNEL); }
extern "C" void launch(const unsigned* shape, void** arguments, long long* counts) {
  misaligned = vectors = 0;
  run(KERNEL, shape, arguments);
  counts[0] = misaligned;
  counts[1] = vectors;
}
"""

LETTERS = {"uint64": "p", "int64": "i", "float32": "f", "float64": "d"}
vectors = 0
"""16-byte accesses of the last launch."""


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="epilogue-host-kernels-"))


@functools.cache
def built(code: str, name: str) -> ctypes.CDLL:
    """The kernel of that name as a library for the host."""
    assert COMPILER is not None
    path = folder() / hashlib.sha256(f"{name}\n{code}".encode()).hexdigest()[:24]
    path.with_suffix(".cpp").write_text(f"{BEFORE}\n{code}\n#define KERNEL {name}\n{AFTER}")
    command = [COMPILER, "-std=c++17", "-fno-strict-aliasing", "-shared", "-fPIC", "-Werror"]
    command += [str(path.with_suffix(".cpp")), "-o", str(path.with_suffix(".so"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]
    return ctypes.CDLL(str(path.with_suffix(".so")))


class RawModule:
    def __init__(self, code: str, options: tuple[str, ...]) -> None:
        assert options == ("-std=c++17",)
        self.code = code

    def get_function(self, name: str):
        library = built(self.code, name)
        library.signature.restype = ctypes.c_char_p
        return Kernel(library)


class Kernel:
    kernel = SimpleNamespace(ptr=1)

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def __call__(self, grid, block, arguments) -> None:
        launch(self.library, grid, block, arguments)


def launch(library, grid, block, arguments) -> None:
    global vectors
    assert "".join(LETTERS[argument.dtype.name] for argument in arguments) == library.signature().decode()
    assert len(grid) == len(block) == 2
    assert block[0] * block[1] <= 1024
    assert grid[1] < 2**16
    held = [np.array(argument) for argument in arguments]
    pointers = (ctypes.c_void_p * len(held))(*(array.ctypes.data for array in held))
    counts = (ctypes.c_longlong * 2)()
    library.launch((ctypes.c_uint * 4)(*grid, *block), pointers, counts)
    assert counts[0] == 0, "misaligned 16-byte accesses"
    vectors = counts[1]


class Device(contextlib.nullcontext):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.id, self.attributes = number, {"MultiProcessorCount": 5}

    def __eq__(self, other) -> bool:
        return self.id == other.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"


class ndarray(np.ndarray):
    """A NumPy array that says where it is as CuPy's do, and whose product accumulates and rounds as cuBLAS's."""

    device = Device(0)

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)

    def dot(self, other):
        wide = np.float64 if self.dtype == np.float64 else np.float32
        return np.asarray(np.matmul(np.asarray(self, wide), np.asarray(other, wide)), self.dtype).view(ndarray)


def asarray(array, dtype=None):
    return np.array(array, dtype, copy=None).view(ndarray)


def ascontiguousarray(array, dtype=None):
    return np.ascontiguousarray(array, dtype).view(ndarray)


def empty(shape, dtype):
    """Fresh memory is NaN."""
    return np.full(shape, np.nan, dtype).view(ndarray)


def broadcast_to(array, shape):
    return np.broadcast_to(array, shape, subok=True)


def asnumpy(array):
    return np.asarray(array)


def zeros(shape, dtype):
    return np.zeros(shape, dtype).view(ndarray)


KINDS = {2: np.float16, 14: ml_dtypes.bfloat16, 0: np.float32}  # cudaDataType_t


def gemm(handle, transa, transb, m, n, k, alpha, a, kind_a, lda, b, kind_b, ldb, beta, c, kind_c, ldc, compute, algo):
    """cublasGemmEx on the host: C [m, n] = α op(A) op(B) + β C, every matrix column by column with its leading dimension."""
    assert (compute, algo) == (68, -1)

    def matrix(pointer, kind, rows, cols, lead):
        assert lead >= max(1, rows)
        dtype = np.dtype(KINDS[kind])
        memory = (ctypes.c_char * (dtype.itemsize * (lead * (cols - 1) + rows))).from_address(pointer)
        flat = np.frombuffer(memory, dtype)
        return np.lib.stride_tricks.as_strided(
            flat, (rows, cols), (dtype.itemsize, lead * dtype.itemsize), writeable=kind == 0
        )

    def operand(pointer, kind, transposed, rows, cols, lead):
        shape = (cols, rows) if transposed else (rows, cols)
        found = matrix(pointer, kind, *shape, lead).astype(np.float32)
        return found.T if transposed else found

    factor, keep = (ctypes.c_float.from_address(pointer).value for pointer in (alpha, beta))
    result = matrix(c, kind_c, m, n, ldc)
    product = operand(a, kind_a, transa, m, k, lda) @ operand(b, kind_b, transb, k, n, ldb)
    result[...] = factor * product + (keep * result if keep else 0.0)


def module() -> ModuleType:
    """What `import cupy` brings."""
    cupy = ModuleType("cupy")
    cuda = SimpleNamespace(
        Device=Device,
        is_available=lambda: True,
        get_cublas_handle=lambda: 1,
        runtime=SimpleNamespace(is_hip=False, getDevice=lambda: 0, CUDA_R_16F=2, CUDA_R_16BF=14, CUDA_R_32F=0),
        driver=SimpleNamespace(occupancyMaxActiveBlocksPerMultiprocessor=lambda kernel, block, shared: 3),
        get_current_stream=lambda: SimpleNamespace(ptr=0, is_capturing=lambda: False),
        cublas=SimpleNamespace(gemmEx=gemm, CUBLAS_COMPUTE_32F=68, CUBLAS_GEMM_DEFAULT=-1),
    )
    own = (ndarray, asarray, ascontiguousarray, asnumpy, broadcast_to, empty, zeros, RawModule)
    vars(cupy).update({item.__name__: item for item in own}, cuda=cuda, vectors=lambda: vectors)
    return cupy
