"""Autocast: a weight is cast once in its region, and the copies are autocast's own."""

import pytest
import torch
import torch.nn.functional as F

from checks import kept
from epilogue.nn import FusedGatedMLP, FusedGLU, FusedLinear, FusedMLP


def copies(module, device):
    """Bytes of bfloat16 copies of the parameters that 12 calls in one region keep."""
    parameters = {tuple(p.shape) for p in module.parameters()}
    parameters |= {shape[::-1] for shape in parameters}
    storages = {}

    def pack(tensor):
        if tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in parameters:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast(device, torch.bfloat16):
        results = [module(torch.randn(2, 16, device=device)) for _ in range(12)]
    torch.stack(results).float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("kind", [FusedLinear, FusedGLU, FusedMLP, FusedGatedMLP])
def test_autocast_casts_a_weight_once_in_its_region(kind, device):
    module = kind(16, 48, bias=True, device=device)
    assert copies(module, device) == 2 * sum(
        p.numel() for p in module.parameters() if p.ndim == 2
    )  # biases are not kept


def test_autocasts_copies_are_its_own(device):
    """Fresh in the next region, shared with torch's own layers in one, with a gradient after a call without."""
    layer = FusedLinear(16, 24, device=device)
    x = torch.randn(3, 16, device=device)
    with torch.autocast(device, torch.bfloat16):
        before = layer(x)
    layer.weight.data.mul_(2.0)  # which no version counter sees
    with torch.autocast(device, torch.bfloat16):
        with torch.no_grad():
            layer(x)
        y = layer(x)
        expected = F.gelu(F.linear(x, layer.weight, layer.bias))
    assert not torch.equal(y, before)
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    y.sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
        torch.testing.assert_close(layer(x), y, rtol=2e-2, atol=2e-2)


def test_kept_counts_nothing_twice_under_autocast(device):
    layer = FusedLinear(16, 24, device=device)
    x = torch.randn(3, 16, device=device)
    with torch.autocast(device, torch.bfloat16):
        assert ("bfloat16", 3, 24) in kept(lambda: layer(x), *layer.parameters())


def test_autocast_where_hooks_are_forbidden(device):
    layer, x = FusedLinear(16, 24, device=device), torch.randn(5, 16, device=device)
    with torch.autograd.graph.disable_saved_tensors_hooks("none here"), torch.autocast(device, torch.bfloat16):
        layer(x).float().sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("kind", [FusedMLP, FusedGatedMLP])
def test_autocast_casts_once_under_a_default_device(kind, device):
    module = kind(16, 48, bias=True, device=device)
    with torch.device(device):
        assert copies(module, device) == 2 * sum(p.numel() for p in module.parameters() if p.ndim == 2)
