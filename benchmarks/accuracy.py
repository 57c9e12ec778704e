"""The project's rule of accuracy: a result errs at most twice as much as plain torch's own in the same dtype, and one rounding more."""

import torch


def accurate(error: float, torchs: float, dtype: torch.dtype, size: float = 1.0) -> bool:
    """True for an error that is allowed beside torch's own, which a NaN never is; size: the exact value's, 1 where errors are relative."""
    return error <= 2 * torchs + torch.finfo(dtype).eps * size
