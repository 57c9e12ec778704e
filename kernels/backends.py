"""The choice of a backend for torch tensors on a GPU: the user's, else the first of Triton and CuPy that serves them."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple, get_args

from .typing import BackendName

NAMES: tuple[str, ...] = get_args(BackendName)


class Backend(NamedTuple):
    """A backend of kernels for torch tensors."""

    missing: Callable[[], str | None]
    """Returns the reason why no kernel can run in this process, or None."""
    refusal: Callable[[Any, Any], str | None]
    """Returns the reason why no kernel serves x with this weight or pair of weights, or None."""
    launchers: Callable[[], Any]
    """Returns the module of linear_fwd, linear_dact, act_fwd, act_bwd and dropout_mask. To be called only where nothing is missing."""


def kernels(name: str) -> Backend:
    """The backend "triton" or "cupy". Each of its functions imports no more than it needs to answer."""
    if name == "cupy":
        from .cupy import tensors

        return Backend(tensors.missing, tensors.refusal, lambda: tensors)
    from . import triton

    return Backend(triton.missing, triton.refusal, _triton_launchers)


@functools.cache
def _triton_launchers() -> Any:
    from .triton import launchers

    return launchers


def _named(name: str, where: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{where} must be one of {', '.join(NAMES)}; got {name!r}")
    return name


_in_context: ContextVar[str] = ContextVar("epilogue.backend")
_in_trace: str | None = None
"""The choice of a `with` that Dynamo traces through. Outside that trace this is always None."""


class _Choice:
    """The context's choice: `here` is the backend that this context chose, or the instance itself where it chose none.

    Dynamo cannot trace ContextVar.get, but it calls a property whose getter is written in C, and guards on the result. The getter is
    called with the instance, which ContextVar.get takes as its default.
    """

    here = property(_in_context.get)


_choice = _Choice()
_environment = os.environ.get("EPILOGUE_BACKEND") or None


def backend(name: BackendName) -> contextlib.AbstractContextManager[None]:
    """Choose what runs CUDA tensors within a `with`, in this thread or asyncio task.

    Tensors that the chosen kernels do not serve (float64, tensor subclasses, CPU tensors) run plain torch operations. A call's backward
    runs where its forward did.

    A thread that is started within the `with` begins without a choice (in Python 3.14's free-threaded build, with this one). So do
    autograd's own threads, where torch's checkpoints compute forward again. To choose for them too, set EPILOGUE_BACKEND=cupy in the
    environment, which holds for the whole process, or run the thread in `contextvars.copy_context()`.

    Args:
        name: "triton", "cupy" or "eager" (plain torch operations).

    Returns:
        A context manager.

    Raises:
        ValueError: the name is another one.
        RuntimeError: those kernels cannot run on this machine at all.

    >>> with epilogue.backend("eager"):
    ...     y = epilogue.linear(x, weight)
    """
    _raise_if_missing(_named(name, "epilogue.backend: the name"), "epilogue.backend")
    return _choosing(name)


@contextlib.contextmanager
def _choosing(name: str) -> Iterator[None]:
    global _in_trace
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
    """Raise RuntimeError where the kernels of that backend cannot run at all."""
    missing = None if name == "eager" else kernels(name).missing()
    if missing:
        raise RuntimeError(f"{where}: {name!r} cannot run here: {missing}")


def chosen() -> tuple[str, str] | None:
    """(the backend that the user chose, words that say so), or None. ValueError where the environment names one that does not exist; it is
    raised here and not on import, so that `epilogue doctor` can say so."""
    here: Any = _choice.here
    name = _in_trace or (_environment if here is _choice else here)
    return (_named(name, "EPILOGUE_BACKEND"), f"{name} was chosen") if name else None


def serving(x: Any, weight: Any) -> tuple[str, str]:
    """(the backend that serves a torch tensor x with this weight or pair of weights, the reason for it).

    RuntimeError where the environment chose a backend that cannot run.
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
    if shared:  # CuPy would refuse as well, so it is not imported
        return "eager", shared
    other = kernels("cupy").refusal(x, weight)
    return ("eager", f"{refusal}; {other}") if other else ("cupy", refusal)
