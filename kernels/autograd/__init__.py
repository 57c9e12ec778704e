"""The public operations on the kernels of a backend, with autograd. Importing this file registers them with torch."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from .linear import glu, linear
from .mlp import gated_mlp, mlp


class Kernels(NamedTuple):
    """The operations on one backend's kernels."""

    linear: Callable[..., Any]
    glu: Callable[..., Any]
    mlp: Callable[..., Any]
    gated_mlp: Callable[..., Any]


def _on(backend: str) -> Kernels:
    return Kernels(*(functools.partial(operation, backend=backend) for operation in (linear, glu, mlp, gated_mlp)))


KERNELS = {"triton": _on("triton"), "cupy": _on("cupy")}
"""A backend's name -> the operations on its kernels."""
