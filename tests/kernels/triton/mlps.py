"""MLPs for the tests: their tensors in the sizes of each kernel, and one step of training."""

import torch

import checks

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = {
    "pointer": (37, (19, 29, 13)),
    "descriptor": (40, (32, 48, 24)),
    "unfused": (37, (19, 29, 13)),
}  # M and (K, H, N): primes; multiples of 16 bytes


def tensors(op, rng, kernel, dtype, device, bias=True):
    m, sizes = SHAPES[kernel]
    args = checks.arguments(op, rng, (m,), sizes, bias)
    return checks.each(lambda a: torch.as_tensor(a).to(device, dtype), args)


def train(function, args, dy, values=()):
    """[y, gradients of all tensors in args and values]."""
    args = checks.each(lambda t: t.detach().clone().requires_grad_(), args)
    values = tuple(v.detach().clone().requires_grad_() if isinstance(v, torch.Tensor) else v for v in values)
    y = function(args, values)
    leaves = [*checks.leaves(args), *(v for v in values if isinstance(v, torch.Tensor))]
    return [y, *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def output_gradient(kernel, dtype, device):
    m, (_, _, n) = SHAPES[kernel]
    return torch.randn(m, n, dtype=torch.float64).to(device, dtype)
