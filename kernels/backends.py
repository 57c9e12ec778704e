"""Which backend serves torch tensors on a GPU: what the user chose, else the first of Triton and CuPy that can."""

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

NAMES = ("triton", "cupy", "eager")


class Backend(NamedTuple):
    """A backend of kernels for torch tensors."""

    missing: Callable[[], str | None]
    """Why no kernel can run in this process, or None."""
    refusal: Callable[[Any, Any], str | None]
    """Why none serves x with this weight or pair of weights, or None."""
    launchers: Callable[[], Any]
    """The module of linear_fwd, linear_dact, act_fwd, act_bwd and dropout_mask; to be asked where nothing is missing."""


_backends: dict[str, Backend] = {}


def kernels(name: str) -> Backend:
    """The backend "triton" or "cupy", of which as little is imported as the question needs."""
    if name not in _backends:
        module = importlib.import_module(".cupy.tensors" if name == "cupy" else ".triton", __package__)
        launchers = functools.cache(
            lambda: module if name == "cupy" else importlib.import_module(".launchers", module.__name__)
        )
        _backends[name] = Backend(module.missing, module.refusal, launchers)
    return _backends[name]


def _named(name: str, where: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{where} must be one of {', '.join(NAMES)}; got {name!r}")
    return name


_in_context: ContextVar[str] = ContextVar("epilogue.backend")
_in_trace: str | None = None
"""Of a `with` that Dynamo traces through; outside its trace nobody ever sees another value."""


class _Choice:
    """`here` is the backend that this context chose, or the instance itself where it chose none.

    Dynamo cannot trace ContextVar.get, but calls a property whose getter is C, and guards on what it gives. The getter's argument, the
    instance, is ContextVar.get's default.
    """

    here = property(_in_context.get)


_choice = _Choice()
_from_environment = os.environ.get("EPILOGUE_BACKEND")
_environment: str | None = _named(_from_environment, "EPILOGUE_BACKEND") if _from_environment else None


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Within it CUDA tensors run on "triton", "cupy" or "eager" (plain torch operations), in this thread or asyncio task.

    A thread that is started within it begins without a choice (in Python 3.14's free-threaded build with this one), as do autograd's own,
    where torch's checkpoints compute forward again: EPILOGUE_BACKEND=cupy in the environment chooses for the whole process, or run the
    thread in `contextvars.copy_context()`. What the chosen kernels do not serve (float64, tensor subclasses, CPU tensors) runs plain torch
    operations. A call's backward runs where its forward did. ValueError for another name, RuntimeError where those kernels cannot run at
    all.
    """
    global _in_trace
    _raise_if_missing(_named(name, "epilogue.backend: the name"), "epilogue.backend")
    torch = sys.modules.get("torch")
    if torch is not None and torch.compiler.is_dynamo_compiling():
        before, _in_trace = _in_trace, name
        try:
            yield
        finally:
            _in_trace = before
    else:
        token = _in_context.set(name)
        try:
            yield
        finally:
            _in_context.reset(token)


def _raise_if_missing(name: str, where: str) -> None:
    """RuntimeError where the kernels of that backend cannot run at all."""
    missing = None if name == "eager" else kernels(name).missing()
    if missing:
        raise RuntimeError(f"{where}: {name!r} cannot run here: {missing}")


def chosen() -> tuple[str, str] | None:
    """(the backend that the user chose, that it was), or None."""
    here: Any = _choice.here
    name = _in_trace or (_environment if here is _choice else here)
    return (name, f"{name} was chosen") if name else None


def serving(x: Any, weight: Any) -> tuple[str, str]:
    """(the backend of a torch tensor x with this weight or pair of weights, why that one).

    RuntimeError where the environment chose one that cannot run.
    """
    choice = chosen()
    first, because = choice or ("triton", "this device and dtype are served")
    if first == "eager":
        return first, because
    refusal = kernels(first).refusal(x, weight)
    if refusal is None:
        return first, because
    if choice and x.device.type == "cuda":
        _raise_if_missing(first, "EPILOGUE_BACKEND")
    if choice or x.device.type != "cuda":
        return "eager", refusal
    from .operands import tensor_refusal

    shared = tensor_refusal(x, weight)
    if shared:  # CuPy is not imported for what it would refuse as well
        return "eager", shared
    other = kernels("cupy").refusal(x, weight)
    return ("eager", f"{refusal}; {other}") if other else ("cupy", refusal)
