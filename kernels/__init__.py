"""epilogue: linear layers with the activation fused into the matrix product's epilogue, forward and backward.

`linear`, `glu`, `mlp` and `gated_mlp` take torch tensors, NumPy or CuPy arrays. `epilogue.nn` has them as modules, `fuse` puts them into
models that exist, and `epilogue.typing` has the types.
Importing this package imports NumPy and nothing heavier.
"""

from typing import TYPE_CHECKING

from . import activations as activations  # fills the catalogue
from .backends import backend
from .catalogue import ACTIVATIONS, Activation
from .explanation import explain
from .functional import (
    gated_mlp,
    gated_mlp_backward,
    glu,
    glu_backward,
    linear,
    linear_backward,
    mlp,
    mlp_backward,
)
from .lookup import check, resolve
from .registration import activation, derivative_of, pair

__version__ = "0.1.0"

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "activation",
    "backend",
    "check",
    "derivative_of",
    "explain",
    "gated_mlp",
    "gated_mlp_backward",
    "glu",
    "glu_backward",
    "linear",
    "linear_backward",
    "mlp",
    "mlp_backward",
    "pair",
    "resolve",
]

if TYPE_CHECKING:
    from . import nn as nn
    from .nn import fuse as fuse
    from .nn import unfuse as unfuse
else:  # where a checker would take any name for one of these

    def __getattr__(name: str) -> object:
        if name not in ("fuse", "nn", "unfuse"):
            raise AttributeError(f"module 'epilogue' has no attribute {name!r}")
        import importlib  # on first use, since it imports torch

        nn = importlib.import_module("epilogue.nn")
        return nn if name == "nn" else getattr(nn, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__", "fuse", "nn", "unfuse"]
