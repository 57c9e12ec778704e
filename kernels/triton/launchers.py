"""The functions that the autograd operations need of a backend, on the Triton kernels."""

from .dact import linear_dact
from .dropout import dropout_mask
from .linear import linear_fwd
from .pointwise import act_bwd, act_fwd

__all__ = ["act_bwd", "act_fwd", "dropout_mask", "linear_dact", "linear_fwd"]
