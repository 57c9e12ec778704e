"""What `fuse` leaves to stock, on the kernels: compiled in one graph, results that are written to, layers called by themselves."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from checks import assert_accurate
from epilogue.nn import fuse
from epilogue.triton import linear


class Res(nn.Module):
    def __init__(self):
        super().__init__()
        self.n, self.fc1, self.fc2 = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.act = nn.GELU()

    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(self.n(x))))


class Written(Res):
    def forward(self, x):
        h = self.act(self.fc1(self.n(x)))
        h += 1
        return self.fc2(h)


class WrittenByAMethod(Res):
    def forward(self, x):
        return self.fc2(self.act(self.fc1(self.n(x))).mul_(2))


class WrittenInAPart(Res):
    def forward(self, x):
        h = self.act(self.fc1(self.n(x)))
        h[..., ::2] = 0.0
        return self.fc2(h)


class WrittenBehind(Res):
    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(self.n(x)))).mul_(2)


class MLP(Res):
    def __init__(self):
        super().__init__()
        del self.n

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Squeezed(MLP):
    def __init__(self):
        super().__init__()
        self.fc2 = nn.Linear(24, 1)

    def forward(self, x):
        return super().forward(x).squeeze(-1)


def sequential():
    return nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))


MAKES = [Res, Written, WrittenByAMethod, WrittenInAPart, WrittenBehind, MLP, Squeezed, sequential]
WAYS = {
    "eager": lambda m: m,
    "compiled": lambda m: torch.compile(m, fullgraph=True, backend="aot_eager"),
    "checkpoint": lambda m: lambda x: checkpoint(m, x, use_reentrant=True),
}


def trained(module, x, call):
    """[y, gradients of x and of the parameters]."""
    dtype = next(module.parameters()).dtype
    module.zero_grad()
    x = x.detach().to(dtype).requires_grad_()
    y = call(x * 1)
    y.backward(torch.linspace(-1, 1, y.numel(), device=y.device).to(dtype).view_as(y))
    return [y, x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler looks at it
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", MAKES)
def test_trains_as_stock(make, way, device, monkeypatch):
    torch._dynamo.reset()
    stock, x = make().to(device), torch.randn(5, 31, 16, device=device)
    module, exact = copy.deepcopy(stock), copy.deepcopy(stock).double()
    fuse(module)
    launched, launch = [], linear._fused_fwd
    monkeypatch.setattr(linear, "_fused_fwd", lambda *args: launched.append(1) or launch(*args))
    expected, truth = trained(stock, x, stock), trained(exact, x, exact)
    assert not launched
    for actual, own, wanted in zip(trained(module, x, WAYS[way](module)), expected, truth, strict=True):
        assert_accurate(actual, own, wanted)
    assert launched
    torch._dynamo.reset()


@pytest.mark.parametrize("make", [Res, MLP])
def test_a_layer_by_itself(make, device):
    module = make().to(device)
    x = torch.randn(7, 16, device=device)
    expected = module.fc1(x)
    fuse(module)
    module(x)
    torch.testing.assert_close(module.fc1(x), expected, rtol=0, atol=0)
    other = copy.deepcopy(module)
    other.fc1 = copy.deepcopy(other.fc1)
    torch.testing.assert_close(other(x), module(x), rtol=1e-5, atol=1e-5)
