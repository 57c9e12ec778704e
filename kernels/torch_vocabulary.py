"""The primitives of formulas on torch tensors, differentiable. At least one operand of each call is a tensor.

A formula printed for torch (formula.py) imports them when it runs, so that registering one does not import torch.
"""

from typing import Any

import torch
from torch import Tensor

absolute, cos, erf, exp, expm1 = torch.abs, torch.cos, torch.erf, torch.exp, torch.expm1
log, log1p, reciprocal, rsqrt = torch.log, torch.log1p, torch.reciprocal, torch.rsqrt
sigmoid, sin, sqrt, tanh = torch.sigmoid, torch.sin, torch.sqrt, torch.tanh


def number(x: Any, like: Any) -> Tensor:
    """x as a tensor: a Python number takes the dtype of `like`, where torch alone takes its default. It is on the CPU whatever the default
    device is: torch takes one number from there beside tensors of any device.
    """
    return x if isinstance(x, Tensor) else torch.as_tensor(x, dtype=like.dtype, device="cpu")


def normal_cdf(x: Tensor) -> Tensor:
    """Φ(x). torch.special.ndtr is (1 + erf) / 2, which cancels for x < 0."""
    return 0.5 * torch.special.erfc(x * -0.7071067811865476)


def maximum(a: Any, b: Any) -> Tensor:
    return torch.maximum(number(a, b), number(b, a))


def minimum(a: Any, b: Any) -> Tensor:
    return torch.minimum(number(a, b), number(b, a))


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, x.new_zeros(()))


def where(condition: Tensor, a: Any, b: Any, like: Tensor) -> Tensor:
    return torch.where(condition, number(a, like), number(b, like))


def tied(y: Any, x: Tensor) -> Any:
    """y with a gradient of 0 by x, as that of torch.sign, in place of none at all."""
    return y + 0.0 * torch.nan_to_num(x.sign()) if x.requires_grad else y


def wide(x: Tensor) -> Tensor:
    """x in the arithmetic of kernels: float32 in place of 16 bits, so that a formula is rounded once, and in place of whole numbers."""
    return x if x.dtype.itemsize >= 4 and (x.is_floating_point() or x.is_complex()) else x.float()
