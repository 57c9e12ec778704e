"""Which backend serves torch tensors on a GPU: what the user chose, else the first of Triton and CuPy that can."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

NAMES = ("triton", "cupy", "eager")


def _named(name: str, where: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{where} must be one of {', '.join(NAMES)}; got {name!r}")
    return name


_from_environment = os.environ.get("EPILOGUE_BACKEND")
_chosen: str | None = _named(_from_environment, "EPILOGUE_BACKEND") if _from_environment else None


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Within it CUDA tensors run on "triton", "cupy" or "eager" (plain torch operations), in every thread of this process.

    EPILOGUE_BACKEND=cupy in the environment does so for the whole process. What the chosen kernels do not serve (float64, tensor
    subclasses, CPU tensors) runs plain torch operations. A call's backward runs where its forward did. ValueError for another name,
    RuntimeError where those kernels cannot run at all.
    """
    global _chosen
    before = _chosen
    _require(_named(name, "epilogue.backend: the name"), "epilogue.backend")
    _chosen = name
    try:
        yield
    finally:
        _chosen = before


def _require(name: str, where: str) -> None:
    """RuntimeError where the kernels of that backend cannot run at all."""
    missing = None if name == "eager" else _module(name).missing()
    if missing:
        raise RuntimeError(f"{where}: {name!r} cannot run here: {missing}")


def chosen() -> tuple[str, str] | None:
    """(the backend that the user chose, that it was), or None."""
    return (_chosen, f"{_chosen} was chosen") if _chosen else None


def serving(x: Any, weight: Any) -> tuple[str, str]:
    """(the backend of a torch tensor x with this weight or pair of weights, why that one).

    RuntimeError where the environment chose one that cannot run.
    """
    first, because = chosen() or ("triton", "this device and dtype are served")
    if first == "eager":
        return first, because
    refusal = _module(first).refusal(x, weight)
    if refusal is None:
        return first, because
    if _chosen and x.device.type == "cuda":
        _require(_chosen, "EPILOGUE_BACKEND")
    if _chosen or x.device.type != "cuda":
        return "eager", refusal
    from .operands import unserved

    shared = unserved(x, weight)
    if shared:  # CuPy is not imported for what it would refuse as well
        return "eager", shared
    other = _module("cupy").refusal(x, weight)
    return ("eager", f"{refusal}; {other}") if other else ("cupy", refusal)


def _module(name: str) -> Any:
    """The module that says what the kernels of that backend refuse."""
    if name == "cupy":
        from .cupy import tensors

        return tensors
    from . import triton

    return triton
