"""Drop-in modules whose activation runs in the matrix product's epilogue."""

import torch

from epilogue.functional import load_torch

from .linear import FusedGLU, FusedLinear
from .mlp import FusedGatedMLP, FusedMLP

__all__ = ["FusedGLU", "FusedGatedMLP", "FusedLinear", "FusedMLP"]

load_torch(torch)  # now rather than inside a compiler's first trace
