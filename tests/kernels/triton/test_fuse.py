"""What `fuse` makes of blocks runs on the kernels, weights stored [in, out] and packed with the gate second among them."""

import copy

import pytest
import torch
from torch import nn

from checks import assert_accurate
from epilogue.nn import fuse
from epilogue.triton import linear


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))


class GateSecond(nn.Module):
    def __init__(self):
        super().__init__()
        self.both, self.down, self.act = nn.Linear(16, 48), nn.Linear(24, 16), nn.GELU()

    def forward(self, x):
        up, gate = self.both(x).chunk(2, -1)
        return self.down(self.act(gate) * up)


class Conv1D(nn.Module):
    """As transformers' of that name: a linear layer whose weight is [in, out]."""

    def __init__(self, features, out):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(features, out) / 4), nn.Parameter(torch.randn(out))

    def forward(self, x):
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


Conv1D.__module__ = "transformers.pytorch_utils"


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_fc, self.c_proj, self.act = Conv1D(16, 24), Conv1D(24, 16), nn.GELU("tanh")

    def forward(self, x):
        return self.c_proj(self.act(self.c_fc(x)))


class Folded(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.norm, self.act = nn.Linear(16, 16), nn.LayerNorm(16), nn.Tanh()

    def forward(self, x):
        return self.norm(self.act(self.dense(x)))


def sequential():
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [Gated, GateSecond, Transposed, Folded, sequential])
def test_on_the_kernels(make, dtype, device, monkeypatch):
    stock = make().to(device, dtype)
    exact, module = copy.deepcopy(stock).double(), copy.deepcopy(stock)
    x, dy = torch.randn(3, 7, 16, device=device).to(dtype), torch.randn(3, 7, 16, device=device).to(dtype)
    assert len(fuse(module).fused) == 1
    launched, launch = [], linear._fused_fwd
    monkeypatch.setattr(linear, "_fused_fwd", lambda *args: launched.append(1) or launch(*args))

    def run(block):
        t = next(block.parameters()).dtype
        leaves = [x.to(t).requires_grad_(), *block.parameters()]
        y = block(leaves[0])
        return [y, *torch.autograd.grad(y, leaves, dy.to(t))]

    for actual, own, truth in zip(run(module), run(stock), run(exact), strict=True):
        assert_accurate(actual, own, truth)
    assert launched
