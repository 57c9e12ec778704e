"""`fuse` and `unfuse`: the blocks of an existing model run the fused operations, in place, until they are given back their own forward."""

from .fusing import fuse, unfuse
from .report import Report

__all__ = ["Report", "fuse", "unfuse"]
