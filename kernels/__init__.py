"""epilogue: linear layers with the activation fused into the matrix product's epilogue, forward and backward.

`linear`, `glu`, `mlp` and `gated_mlp` take torch tensors, NumPy or CuPy arrays; `epilogue.nn` has them as modules.
Importing this package imports NumPy and nothing heavier.
"""

from typing import TYPE_CHECKING, Any

from . import activations as activations  # fills the catalogue
from .backends import backend
from .catalogue import ACTIVATIONS, Activation, activation, derivative_of, pair
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

if TYPE_CHECKING:
    from . import nn as nn

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


def __getattr__(name: str) -> Any:
    if name == "nn":  # on first use, since it imports torch
        import importlib

        return importlib.import_module("epilogue.nn")
    raise AttributeError(f"module 'epilogue' has no attribute {name!r}")
