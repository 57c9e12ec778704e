"""The CuPy kernels run on a GPU where there is one, else the same source built for the host by a C++ compiler (standin.py)."""

import contextlib
import importlib
import sys

import pytest

import epilogue.cupy
from epilogue.cupy import cublaslt, epilogues, launch, tensors

GPU = epilogue.cupy.missing() is None


def forget() -> None:
    """What was found out of one CuPy does not hold for another."""
    kernels = (epilogue.cupy.missing, launch.compiled, launch.cupy_library, launch._blocks)
    for cached in (*kernels, epilogues._installed, epilogues._refusal, cublaslt._handle, cublaslt._algorithm):
        cached.cache_clear()


@pytest.fixture
def cupy(monkeypatch):
    """CuPy, or its stand-in."""
    if GPU:
        yield importlib.import_module("cupy")
        return
    standin = pytest.importorskip("standin")  # which needs ml_dtypes
    if standin.COMPILER is None:
        pytest.skip("no GPU, and no C++ compiler to build the kernels for the host")
    module = standin.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setitem(sys.modules, "nvmath", None)  # installed or not
    monkeypatch.setattr(tensors, "TORCH", tensors.TORCH._replace(on_device=contextlib.nullcontext))
    forget()
    yield module
    forget()


@pytest.fixture
def library(cupy):
    """The launchers' view of CuPy."""
    return launch.cupy_library()


@pytest.fixture
def device(cupy):
    """Where the tensors of the kernels' tests are."""
    return "cuda" if GPU else "cpu"


@pytest.fixture
def bindings():
    """The stand-in for nvmath-python's bindings of cuBLASLt."""
    return pytest.importorskip("standin_nvmath")


@pytest.fixture
def nvmath(cupy, bindings, monkeypatch):
    """nvmath-python where there is a GPU and it is installed, or its stand-in."""
    if GPU:
        yield pytest.importorskip("nvmath")
        return
    for name, part in bindings.modules().items():
        monkeypatch.setitem(sys.modules, name, part)
    forget()
    yield bindings
    assert not bindings.alive
    forget()


@pytest.fixture
def taken(nvmath, monkeypatch):
    """The epilogues that cuBLASLt computes in the test, in order; the stand-in's are taken without a trial."""
    if not GPU:
        monkeypatch.setattr(epilogues, "refusal", lambda *what: None)
    names: list[str] = []

    def multiply(product, workspace):
        done = cublaslt.multiply(product, workspace)
        if done:
            names.append(product.epilogue)
        return done

    monkeypatch.setattr(epilogues, "multiply", multiply)
    return names
