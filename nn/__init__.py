"""Drop-in modules whose activation runs in the matrix product's epilogue."""

import torch

from epilogue.functional import load_torch

from .linear import FusedGLU, FusedLinear
from .mlp import FusedGatedMLP, FusedMLP
from .surgery import Report, fuse, unfuse

__all__ = ["FusedGLU", "FusedGatedMLP", "FusedLinear", "FusedMLP", "Report", "fuse", "unfuse"]

load_torch(torch)  # now rather than inside a compiler's first trace
