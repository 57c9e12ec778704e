"""NVRTC, the compiler that CuPy brings its kernels to, for chips that need not be here: it asks for no driver.

There are two. The CuPy for CUDA 13 loads NVRTC 13, whose oldest chip is sm_75; the V100 and older ones are served by the CuPy for CUDA 12
with NVRTC 12. CuPy's own binding loads one of them, so both are called by ctypes, from their wheels.
"""

import contextlib
import ctypes
import functools
import importlib.metadata
import re
from typing import NamedTuple

import pytest

WHEELS = ("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc")
"""NVRTC 12, and 13, which compiles what both can."""
OPTIONS = ("-std=c++17", "--ptxas-options=-warn-spills", "--ptxas-options=-warn-lmem-usage")
"""CuPy's, and that a kernel is heard of whose machine code keeps registers or arrays in memory."""
DEPRECATED = re.compile(r"nvrtc: warning: Architectures prior to .* are deprecated .*\n")
"""What NVRTC 12.9 says on sm_70 whatever its options."""


class Compiled(NamedTuple):
    log: str
    cubin: bytes
    ptx: str


@functools.cache
def compilers() -> dict[int, ctypes.CDLL]:
    """The NVRTC for each architecture, 90 for sm_90."""
    found: dict[int, ctypes.CDLL] = {}
    for wheel in WHEELS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            for file in importlib.metadata.files(wheel) or ():
                if re.fullmatch(r"libnvrtc\.so\.\d+", file.name):
                    nvrtc = ctypes.CDLL(str(file.locate()))
                    found |= dict.fromkeys(_architectures(nvrtc), nvrtc)
    return found


def compiled(code: str, architecture: int) -> Compiled:
    """What NVRTC makes of the code, and what it says about it. Skips the test where its wheel is not installed."""
    nvrtc = compilers().get(architecture) or pytest.skip(f"no NVRTC for sm_{architecture} is installed")
    options = [option.encode() for option in (f"--gpu-architecture=sm_{architecture}", *OPTIONS)]
    program = ctypes.c_void_p()
    _call(nvrtc, "CreateProgram", ctypes.byref(program), code.encode(), b"pointwise.cu", 0, None, None)
    try:
        failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = DEPRECATED.sub("", _text(nvrtc, "ProgramLog", program))
        assert not failed, log
        return Compiled(log.strip(), _bytes(nvrtc, "CUBIN", program), _text(nvrtc, "PTX", program))
    finally:
        _call(nvrtc, "DestroyProgram", ctypes.byref(program))


def _architectures(nvrtc: ctypes.CDLL) -> list[int]:
    count = ctypes.c_int()
    _call(nvrtc, "GetNumSupportedArchs", ctypes.byref(count))
    found = (ctypes.c_int * count.value)()
    _call(nvrtc, "GetSupportedArchs", found)
    return list(found)


def _call(nvrtc: ctypes.CDLL, name: str, *arguments) -> None:
    status = getattr(nvrtc, f"nvrtc{name}")(*arguments)
    assert status == 0, f"nvrtc{name}: {status}"


def _bytes(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _call(nvrtc, f"Get{what}Size", program, ctypes.byref(size))
    found = ctypes.create_string_buffer(size.value)
    _call(nvrtc, f"Get{what}", program, found)
    return found.raw


def _text(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> str:
    return _bytes(nvrtc, what, program).decode().rstrip("\0")
