"""Activations, layers and numbers of somebody's own, which only look like those that `fuse` knows."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import epilogue
from as_stock import X, assert_same, check, outcome, pair
from epilogue.vocabulary import sin
from forwards import MLP


class SurrogateGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return F.gelu(x)

    @staticmethod
    def backward(ctx, dy):
        return dy


def noted(x):
    NOTED.append(tuple(x.shape))
    return F.gelu(x)


SCALE = 1.0


def scaled(x):
    return F.gelu(x) * SCALE


NOTED = []

ACTS = {
    "of another gradient": lambda x: SurrogateGradient.apply(x),
    "straight through": lambda x: x + (F.gelu(x) - x).detach(),
    "detached": lambda x: F.gelu(x.detach()),
    "without an axis": lambda x: F.gelu(x).squeeze(1),
    "clamped": lambda x: F.gelu(x).clamp(-65504, 65504),
    "without nan": lambda x: torch.nan_to_num(F.gelu(x)),
    "another for large numbers": lambda x: F.gelu(x) if x.abs().max() < 2000 else x,
    "another for other axes": lambda x: F.gelu(x) if x.ndim < 3 else 2 * F.gelu(x),
    "another for other dtypes": lambda x: 2 * F.gelu(x) if x.dtype is torch.float32 else F.gelu(x),
    "another with gradients": lambda x: F.gelu(x) if not torch.is_grad_enabled() else 2 * F.gelu(x),
    "of another dtype": lambda x: F.gelu(x).double(),
    "noting": noted,
    "noting in a function": lambda x: noted(x),
    "printing": lambda x: print(end="") or F.gelu(x),
    "at a kink": lambda x: x.clamp(min=0),
    "of a function of a global": lambda x: scaled(x),
}  # fmt: skip


class Activated(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.fc, self.act = nn.Linear(8, 1), act
        nn.init.zeros_(self.fc.bias)

    def forward(self, x):
        return self.act(self.fc(x))


@pytest.mark.parametrize("make", [MLP, Activated])
@pytest.mark.parametrize("name", ACTS)
def test_an_activation_that_is_more(name, make, monkeypatch):
    """What agrees with an activation on one axis, between -1000 and 1000, in float64, without gradients."""
    module, stock = (m.float() for m in pair(lambda: make(ACTS[name])))
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    for x in (X, X[None], 1e5 * X, X / 0.0, 0 * X):
        found = []
        for m in (module, stock):
            NOTED.clear()
            given = x.float().requires_grad_()
            y = outcome(lambda m=m, given=given: m(given))
            dx = None
            if isinstance(y, torch.Tensor) and y.requires_grad:
                (dx,) = torch.autograd.grad(y.sum(), given, allow_unused=True)
            found.append((y, dx, list(NOTED)))
        assert_same(*found, 1e-5)


class NamesItself(MLP):
    def forward(self, x):
        return super(NamesItself, self).forward(x) + self.fc2(self.act(self.fc1(x)))  # noqa: UP008


def test_a_class_that_names_itself(counted):
    module, stock = pair(NamesItself)
    counted.clear()
    assert_same(module(X), stock(X))
    assert counted == ["mlp", "mlp"]


def swish(x):
    return x * torch.sigmoid(x)


class OwnGradient(torch.autograd.Function):
    """Bloom's manner."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return swish(x)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return dy * s * (1 + x * (1 - s))


class OwnAct(nn.Module):
    def forward(self, x):
        return OwnGradient.apply(x) if self.training else swish(x)


def test_an_activation_with_its_own_gradient(counted):
    for training in (True, False):
        module, stock = (m.train(training) for m in pair(lambda: MLP(OwnAct())))
        check(module, stock)
        assert counted
        counted.clear()


class Reversed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))

    def __iter__(self):
        return reversed(list(self._modules.values()))


class ScaledLinear(nn.Linear):
    scale = 1.0

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) * self.scale


class OfScaledLinears(MLP):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = ScaledLinear(8, 16), ScaledLinear(16, 8)


class SpelledWithANumber(MLP):
    def forward(self, x):
        z = self.fc1(x)
        return self.fc2(z * torch.sigmoid(NUMBERS.beta * z))


NUMBERS = types.SimpleNamespace(beta=1.702)


def test_an_order_of_ones_own():
    check(*pair(Reversed))


def test_a_linear_class_with_a_number():
    module, stock = pair(OfScaledLinears)
    module.fc1.scale = stock.fc1.scale = 3.0
    check(module, stock)


def test_a_number_in_a_formula(monkeypatch):
    module, stock = pair(SpelledWithANumber)
    monkeypatch.setattr(NUMBERS, "beta", 0.3)
    check(module, stock)


@pytest.mark.usefixtures("own_activations")
def test_a_registered_activation_that_is_called(counted):
    """By itself or with a number. A parameter that learns stays in the model's own code, as does a pair."""

    @epilogue.activation
    def snake(x, alpha=1.0):
        return x + sin(alpha * x) ** 2 / alpha

    class Plain(MLP):
        def forward(self, x):
            return self.fc2(snake(self.fc1(x)))

    class ByName(MLP):
        def forward(self, x):
            return self.fc2(snake(self.fc1(x), alpha=0.5))

    class ByPlace(MLP):
        def forward(self, x):
            return self.fc2(snake(self.fc1(x), 0.5))

    class Learns(MLP):
        def __init__(self):
            super().__init__()
            self.alpha = nn.Parameter(torch.full((1,), 0.5))

        def forward(self, x):
            return self.fc2(snake(self.fc1(x), alpha=self.alpha))

    class Gated(MLP):
        def forward(self, x):
            return self.fc2(snake.gated(self.fc1(x), self.fc1(x)))

    for cls in (Plain, ByName, ByPlace):
        module, stock = pair(cls)
        counted.clear()  # what `fuse` tried
        check(module, stock)
        assert counted == ["mlp"]
    for cls in (Learns, Gated):
        module, stock = pair(cls)
        counted.clear()  # what `fuse` tried
        check(module, stock)
        assert counted == []
