"""Drop-in modules whose activation runs in the matrix product's epilogue."""

from .linear import FusedGLU, FusedLinear
from .mlp import FusedGatedMLP, FusedMLP

__all__ = ["FusedGLU", "FusedGatedMLP", "FusedLinear", "FusedMLP"]
