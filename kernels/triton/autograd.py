"""The public operations on the Triton kernels, with autograd. Importing this file registers them with torch."""

from .autograd_linear import glu, linear
from .autograd_mlp import gated_mlp, mlp

__all__ = ["gated_mlp", "glu", "linear", "mlp"]
