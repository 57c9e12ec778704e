"""The CuPy kernels run on a GPU where there is one, else the same source built for the host by a C++ compiler (standin.py)."""

import contextlib
import functools
import importlib.util
import sys
from pathlib import Path

import pytest

import epilogue.cupy
from epilogue.cupy import arrays, launch, tensors

GPU = epilogue.cupy.missing() is None


@functools.cache
def standin():
    """The module standin.py, which needs what a machine with a GPU may not have."""
    pytest.importorskip("ml_dtypes")
    spec = importlib.util.spec_from_file_location("cupy_standin", Path(__file__).with_name("standin.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forget() -> None:
    """What was found out of one CuPy does not hold for another."""
    for cached in (epilogue.cupy.missing, launch.compiled, arrays._library):
        cached.cache_clear()


@pytest.fixture
def cupy(monkeypatch):
    """CuPy, or its stand-in."""
    if GPU:
        yield importlib.import_module("cupy")
        return
    if standin().COMPILER is None:
        pytest.skip("no GPU, and no C++ compiler to build the kernels for the host")
    module = standin().module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(tensors, "TORCH", tensors.TORCH._replace(on_device=contextlib.nullcontext))
    forget()
    yield module
    forget()


@pytest.fixture
def library(cupy):
    """The launchers' view of CuPy."""
    return arrays._library()


@pytest.fixture
def device(cupy):
    """Where the tensors of the kernels' tests are."""
    return "cuda" if GPU else "cpu"
