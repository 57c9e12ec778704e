"""Which backend serves a tensor, and what is said where none can."""

import asyncio
import contextvars
import importlib.util
import re
import sys
import threading
import types

import pytest
import torch

import epilogue
from epilogue import backends, cupy, operands, triton
from epilogue.cupy import tensors

X = types.SimpleNamespace(device=torch.device("cuda"), is_cpu=False)


@pytest.fixture
def refusals(monkeypatch):
    """What the backends refuse, as a dict that a test may change; None: nothing."""
    found = {"triton": None, "cupy": None}
    for name, module in (("triton", triton), ("cupy", tensors)):
        monkeypatch.setattr(module, "refusal", lambda x, weight, name=name: found[name])
        monkeypatch.setattr(module, "missing", lambda name=name: found[name])
    monkeypatch.setattr(operands, "tensor_refusal", lambda x, weight: found.get("both"))
    return found


def test_triton_comes_first_and_cupy_where_it_cannot(refusals):
    assert backends.serving(X, X) == ("triton", "this device and dtype are served")
    refusals["triton"] = "triton is not installed"
    assert backends.serving(X, X) == ("cupy", "triton is not installed")
    refusals["cupy"] = "CuPy finds no GPU"
    assert backends.serving(X, X) == ("eager", "triton is not installed; CuPy finds no GPU")
    refusals["both"] = "float64 runs plain torch operations"
    assert backends.serving(X, X) == ("eager", "float64 runs plain torch operations")
    cpu = types.SimpleNamespace(device=torch.device("cpu"))
    refusals |= {"both": None, "triton": "cpu tensors run plain torch operations"}
    assert backends.serving(cpu, cpu) == ("eager", "cpu tensors run plain torch operations")


def test_the_user_chooses(refusals, monkeypatch):
    with epilogue.backend("cupy"):
        assert backends.serving(X, X) == ("cupy", "cupy was chosen")
        with epilogue.backend("eager"):
            assert backends.serving(X, X) == ("eager", "eager was chosen")
        monkeypatch.setattr(tensors, "missing", lambda: None)
        refusals["cupy"] = "float64 runs plain torch operations"
        assert backends.serving(X, X) == ("eager", "float64 runs plain torch operations")  # and not on Triton
    assert backends.serving(X, X)[0] == "triton"
    with pytest.raises(KeyError), epilogue.backend("eager"):
        raise KeyError
    assert backends.serving(X, X)[0] == "triton"


def test_a_choice_is_its_threads_own(refusals):
    """Two threads whose blocks overlap see each its own choice, a third none, and nothing is left behind."""
    entered, seen = threading.Barrier(2, timeout=60), {}

    def run(name):
        with epilogue.backend(name):
            entered.wait()
            seen[name] = backends.serving(X, X)[0]
            entered.wait()
            if name == "cupy":  # the first in is the first out
                left.wait(60)
        if name == "eager":
            left.set()
        seen[f"{name}, after"] = backends.serving(X, X)[0]

    left = threading.Event()
    threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in ("eager", "cupy")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"eager": "eager", "cupy": "cupy", "eager, after": "triton", "cupy, after": "triton"}
    assert backends.chosen() is None


def test_a_thread_in_a_copied_context_sees_the_choice(refusals):
    with epilogue.backend("eager"):
        context, seen = contextvars.copy_context(), []
        thread = threading.Thread(target=context.run, args=(lambda: seen.append(backends.serving(X, X)[0]),))
    thread.start()
    thread.join()
    assert seen == ["eager"]


def test_asyncio_tasks_have_a_choice_each(refusals):
    async def run(name):
        with epilogue.backend(name):
            await asyncio.sleep(0)
            return backends.serving(X, X)[0]

    async def both():
        return await asyncio.gather(run("eager"), run("cupy"))

    assert asyncio.run(both()) == ["eager", "cupy"]
    assert backends.chosen() is None


@pytest.mark.parametrize("name", ["triton", "cupy"])
def test_a_choice_that_cannot_be_is_said_at_once(name, refusals):
    refusals[name] = "there is no GPU or no driver"
    message = f"epilogue.backend: '{name}' cannot run here: there is no GPU or no driver"
    with pytest.raises(RuntimeError, match=message), epilogue.backend(name):
        pass
    with pytest.raises(ValueError, match=r"must be one of triton, cupy, eager; got 'cuda'"), epilogue.backend("cuda"):
        pass


def test_the_environments_choice_that_cannot_be_is_an_error(refusals, monkeypatch):
    monkeypatch.setattr(backends, "_environment", "cupy")
    refusals["cupy"] = "CuPy finds no GPU or no driver"
    with pytest.raises(RuntimeError, match="EPILOGUE_BACKEND: 'cupy' cannot run here: CuPy finds no GPU or no driver"):
        backends.serving(X, X)
    cpu = types.SimpleNamespace(device=torch.device("cpu"))
    assert backends.serving(cpu, cpu)[0] == "eager"  # no choice concerns these


def test_the_operations_ask(refusals):
    """A tensor that is not on the CPU runs where `serving` says."""
    from epilogue import autograd, functional

    assert functional._backend(X, X) is autograd.KERNELS["triton"]
    refusals["triton"] = "no"
    assert functional._backend(X, X) is autograd.KERNELS["cupy"]
    with epilogue.backend("eager"):
        assert functional._backend(X, X) is functional._eager


def test_what_cupy_refuses(monkeypatch):
    cpu = torch.empty(1, 1)
    assert tensors.refusal(cpu, cpu) == "cpu tensors run plain torch operations"
    monkeypatch.setattr(tensors, "missing", lambda: None)
    on_gpu = types.SimpleNamespace(device=torch.device("cuda"), dtype=torch.float64, is_cuda=True)
    assert tensors.refusal(on_gpu, on_gpu) == "torch.float64 runs plain torch operations"


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (None, "CuPy is not installed (pip install cupy-cuda13x, or cupy-cuda12x for CUDA 12)"),
        ({"is_available": lambda: False}, "CuPy finds no GPU or no driver"),
        ({"is_available": lambda: True, "is_hip": True}, "for NVIDIA GPUs, this CuPy is for AMD's"),
        ({"is_available": lambda: True, "capability": "70"}, "for compute capability 7.5 and newer, the GPU has 7.0"),
        ({"is_available": lambda: True, "capability": "75"}, None),
    ],
)
def test_why_cupy_is_missing(module, reason, monkeypatch):
    fake = None
    if module is not None:
        runtime = types.SimpleNamespace(is_hip=module.pop("is_hip", False))
        fake = types.ModuleType("cupy")
        fake.__spec__ = importlib.util.spec_from_loader("cupy", None)
        device = types.SimpleNamespace(compute_capability=module.pop("capability", None))
        fake.cuda = types.SimpleNamespace(runtime=runtime, Device=lambda: device, **module)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    for name in ("cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.libs"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["cupy_backends.cuda.libs"].nvrtc = types.SimpleNamespace(getSupportedArchs=lambda: [75, 90])
    cupy.missing.cache_clear()
    found = cupy.missing()
    cupy.missing.cache_clear()
    assert found is reason is None or re.search(re.escape(reason), found)


def test_cupy_that_does_not_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    cupy.missing.cache_clear()
    assert cupy.missing().startswith("CuPy does not import: ")
    cupy.missing.cache_clear()


def test_what_no_kernel_serves_does_not_import_cupy(monkeypatch):
    """A double on a GPU asks neither for CuPy nor for the compiler that its module brings."""
    double = types.SimpleNamespace(device=torch.device("cuda"), dtype=torch.float64)
    monkeypatch.setattr(triton, "refusal", operands.tensor_refusal)
    monkeypatch.setattr(backends, "kernels", {"triton": backends.kernels("triton")}.__getitem__)
    assert backends.serving(double, double) == ("eager", "torch.float64 runs plain torch operations")


def test_a_wrong_name_is_told_when_it_is_given():
    """Not only where a `with` begins, which may have been forgotten."""
    with pytest.raises(ValueError, match="must be one of triton, cupy, eager; got 'cuppy'"):
        epilogue.backend("cuppy")
