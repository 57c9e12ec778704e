"""The CuPy backend. This file imports neither CuPy nor torch: it says whether its kernels can run in this process."""

import functools
import importlib.util


@functools.cache
def missing() -> str | None:
    """The reason why no kernel can run here, or None. Imports CuPy."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install cupy-cuda13x, or cupy-cuda12x for CUDA 12)"
    try:
        import cupy
    except ImportError as error:  # a CUDA library that CuPy is built for is missing
        return f"CuPy does not import: {str(error).strip().splitlines()[0]}"
    if cupy.cuda.runtime.is_hip:
        return "the kernels are for NVIDIA GPUs, this CuPy is for AMD's"
    if not cupy.cuda.is_available():
        return "CuPy finds no GPU or no driver"
    from cupy_backends.cuda.libs import nvrtc

    here, oldest = int(cupy.cuda.Device().compute_capability), min(nvrtc.getSupportedArchs())
    if here < oldest:
        return f"this CuPy compiles for compute capability {oldest / 10} and newer, the GPU has {here / 10} (pip install cupy-cuda12x)"
    return None
