"""What the autograd operations ask of a backend, on the Triton kernels."""

from .dact import linear_dact
from .dropout import dropout_mask
from .linear import linear_fwd
from .pointwise import act_bwd

__all__ = ["act_bwd", "dropout_mask", "linear_dact", "linear_fwd"]
