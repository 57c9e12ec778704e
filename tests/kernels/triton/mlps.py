"""MLPs for the tests: their tensors in the sizes of each kernel."""

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


def output_gradient(kernel, dtype, device):
    m, (_, _, n) = SHAPES[kernel]
    return torch.randn(m, n, dtype=torch.float64).to(device, dtype)
