"""`fuse` changes nothing but how an expression is computed: whatever a forward does, whatever happens to a model later, as stock."""

import abc
import contextlib
import copy
import functools
import gc
import inspect
import io
import json
import math
import pickle
import subprocess
import sys
import threading
import traceback
import types
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import blocks
from blocks import Gated, LoRA, Packed, Plain, Stacked, Twice, VisionMLP
from epilogue.nn import Report, fuse, unfuse

X = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SCALE, activated = 1.0, F.gelu
T = TypeVar("T")


class MLP(nn.Module):
    scale = 1.0

    def __init__(self, act=None, out=8):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, out)
        self.act, self.drop = act or nn.GELU(), nn.Dropout(0.5)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Res(nn.Module):
    def __init__(self, act=None):
        super().__init__()
        self.n, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.act, self.adapter = act or nn.GELU(), None

    def forward(self, x):
        h = self.fc1(self.n(x))
        if self.adapter is not None:
            h = h + self.adapter(h)
        return x + self.fc2(self.act(h))


class GLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.act, self.drop = nn.GELU(), nn.Dropout(0.5)

    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))


def sequential():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


def encoder_layer():
    return nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)


MAKES = [MLP, Res, GLU, Packed, sequential, VisionMLP, Stacked, encoder_layer]


def pair(make):
    """(fused, stock) of the same weights."""
    modules = []
    for _ in range(2):
        torch.manual_seed(0)
        modules.append(make().double())
    fuse(modules[0])
    return modules


def run(call, x=X, module=None):
    """(what comes back, what became of x, the gradients of x and of the parameters)."""
    torch.manual_seed(7)
    leaves = {**dict((call if module is None else module).named_parameters()), "x": x.clone().requires_grad_()}
    given = leaves["x"] * 1.0
    found = call(given)
    trained = [y for y in tree_flatten(found)[0] if isinstance(y, torch.Tensor) and y.requires_grad]
    for leaf in leaves.values():
        leaf.grad = None
    if trained:
        sum(y.square().sum() for y in trained).backward()
    return found, given, {name: leaves[name].grad for name in sorted(leaves)}


def assert_same(actual, expected, tolerance=1e-12):
    (actual, as_actual), (expected, as_expected) = tree_flatten(actual), tree_flatten(expected)
    assert as_actual == as_expected
    for a, b in zip(actual, expected, strict=True):
        assert type(a) is type(b)
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
            assert a.requires_grad == b.requires_grad
        else:
            assert a == b


def check(module, stock, x=X):
    assert_same(run(module, x), run(stock, x))


def outcome(call):
    """What comes back, or what is raised."""
    torch.manual_seed(7)
    try:
        return call()
    except Exception as error:
        return type(error).__name__, str(error)


def assert_as_stock(module, stock, call=lambda m: m(X.clone())):
    """The same result or the same error."""
    assert_same(outcome(lambda: call(module)), outcome(lambda: call(stock)))


def hook(module):
    """What is hooked is called, so that the original expression runs."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            child.register_forward_hook(lambda *args: None)


def in_a_process(code, *args):
    """stdout of Python code that has the tests' modules."""
    code = f"import sys; sys.path.insert(0, {str(Path(blocks.__file__).parent)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- every other statement, branch and argument of a forward is the very same code


class Pair(NamedTuple):
    y: torch.Tensor
    h: torch.Tensor


def doubled(forward):
    @functools.wraps(forward)
    def wrapper(self, x):
        return 2 * forward(self, x)

    return wrapper


def closed_over(scale):
    class Closed(MLP):
        def forward(self, x):
            nonlocal scale
            scale += 1
            return scale * super().forward(x) + self.fc2(self.act(self.fc1(x)))

    return Closed


class Forwards:
    """Classes with what a forward may say."""

    class Squeezed(MLP):
        def __init__(self):
            super().__init__(out=1)

        def forward(self, x):
            return super().forward(x).squeeze(-1)

    class Scaled(MLP):
        def forward(self, x):
            return super().forward(x) * self.scale

    class ScaledByAGlobal(MLP):
        def forward(self, x):
            return self.fc2(self.act(self.fc1(x))) * SCALE

    class ActivatedByAGlobal(MLP):
        def forward(self, x):
            return self.fc2(activated(self.fc1(x)))

    class ParentByName(MLP):
        def forward(self, x):
            return MLP.forward(self, x) + 1

    class ParentTwice(Scaled):
        def forward(self, x):
            return super().forward(super().forward(x))

    class Doubling(nn.Module):
        def forward(self, x):
            return 2 * super().forward(x)

    class WithAMixin(Doubling, MLP):
        pass

    class Inherits(Scaled):
        pass

    class ATuple(MLP):
        def forward(self, x):
            return self.fc2(self.act(self.fc1(x))), None

    class ANamedTuple(MLP):
        def forward(self, x):
            h = self.act(self.fc1(x))
            return Pair(self.fc2(h), h)

    class ADict(MLP):
        def forward(self, x):
            return {"y": self.fc2(self.act(self.fc1(x))), "rows": len(x)}

    class AList(MLP):
        def forward(self, x):
            return [self.fc2(self.act(self.fc1(x)))]

    class RowsMatter(MLP):
        def forward(self, x):
            if x.shape[0] > 4:
                return self.fc2(torch.tanh(self.fc1(x)))
            return self.fc2(self.act(self.fc1(x)))

    class NumbersMatter(MLP):
        def forward(self, x):
            h = self.act(self.fc1(x))
            return self.fc2(h) if x.abs().max() > 2.75 or x.abs().max() < 1e-3 else self.fc2(h) + 1

    class GradientsMatter(MLP):
        def forward(self, x):
            y = self.fc2(self.act(self.fc1(x)))
            return 2 * y if torch.is_grad_enabled() else y

    class RequiringGradientsMatters(MLP):
        def forward(self, x):
            h = self.fc1(x)
            if h.requires_grad:
                h = h.clamp(-0.1, 0.1)
            return self.fc2(self.act(h))

    class Optional(MLP):
        def forward(self, x, scale=None, *, shift=None):
            y = self.fc2(self.act(self.fc1(x)))
            y = y if scale is None else y * scale
            return y if shift is None else y + shift

    class Detached(MLP):
        def forward(self, x):
            return self.fc2(self.act(self.fc1(x.detach())))

    class DetachedInside(MLP):
        def forward(self, x):
            return self.fc2(self.act(self.fc1(x)).detach())

    class WithoutGradients(MLP):
        @torch.no_grad()
        def forward(self, x):
            return self.fc2(self.act(self.fc1(x)))

    class ActivatedWithoutGradients(MLP):
        def forward(self, x):
            h = self.fc1(x)
            with torch.no_grad():
                h = self.act(h)
            return self.fc2(h) + self.fc2(x.repeat(1, 2))

    class Decorated(MLP):
        @doubled
        def forward(self, x):
            return self.fc2(self.act(self.fc1(x)))

    class Noted(MLP):
        seen = ()

        def forward(self, x):
            self.seen = (*self.seen, tuple(x.shape))
            return self.fc2(self.act(self.fc1(x)))

    class Retained(MLP):
        def forward(self, x):
            h = self.act(self.fc1(x))
            if h.requires_grad:
                h.register_hook(lambda dh: 2 * dh)
            return self.fc2(h)

    class InputReassigned(MLP):
        def forward(self, x):
            h = self.fc1(x)
            x = 2 * x
            return self.fc2(self.act(h)) + x

    class InputMutated(MLP):
        @torch.no_grad()
        def forward(self, x):
            h = self.fc1(x)
            x.add_(1)
            return self.fc2(self.act(h)) + x

    class LayerReplaced(MLP):
        def forward(self, x):
            h, fc1 = self.fc1(x), self.fc1
            self.fc1 = nn.Identity()
            y = self.fc2(self.act(h))
            self.fc1 = fc1
            return y

    class UsedTwice(MLP):
        def forward(self, x):
            z = self.fc1(x)
            return self.fc2(self.act(z)) + self.fc2(z)

    class WrittenAfter(MLP):
        def forward(self, x):
            h = self.act(self.fc1(x))
            h += 1
            return self.fc2(h)

    class WrittenAfterInAMethod(Res):
        def forward(self, x):
            return x + self.fc2(self.act(self.fc1(x)).mul_(2))

    class WrittenBefore(MLP):
        def forward(self, x):
            z = self.fc1(x)
            z *= 2
            return self.fc2(self.act(z))

    class WrittenInAPart(MLP):
        def forward(self, x):
            z = self.fc1(x)
            z[:, ::2] = 0.0
            return self.fc2(self.act(z))

    class EvaluatedOnce(MLP):
        calls = 0

        def prepared(self, x):
            self.calls += 1
            return x * self.calls

        def forward(self, x):
            return self.fc2(self.act(self.fc1(self.prepared(x))))

    class DrawnOnce(MLP):
        def forward(self, x):
            return self.fc2(self.act(self.fc1(F.dropout(self.drop(x)))))

    class MutatedOnce(MLP):
        @torch.no_grad()
        def forward(self, x):
            return self.fc2(self.act(self.fc1(x.add_(1))))

    class NamedInside(MLP):
        def forward(self, x):
            return self.fc2(self.act(self.fc1(y := 2 * x))) + y

    class Private(MLP):
        def __init__(self):
            super().__init__()
            self.__one, self.__act, self.__two = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)

        def __scaled(self, x):
            return 2 * x

        def forward(self, x):
            return self.__scaled(self.__two(self.__act(self.__one(x))))

    class Looped(MLP):
        def forward(self, x):
            h = self.fc1(x)
            for _ in range(2):
                h = self.act(h)
            return self.fc2(h)

    class LoopedOver(MLP):
        def forward(self, x):
            for _ in range(3):
                x = x + self.fc2(self.act(self.fc1(x)))
            return x

    class Comprehended(MLP):
        def forward(self, x):
            return self.fc2(sum(self.act(fc(x * n)) for n, fc in enumerate((self.fc1, self.fc1))))

    class BoundLate(MLP):
        def forward(self, x):
            inner = lambda: self.act(self.fc1(x))  # noqa: E731
            x = 2 * x
            return self.fc2(inner())

    class InAnInnerFunction(MLP):
        def forward(self, x):
            h = self.fc1(x)

            def inner():
                return h.sum()

            h = self.act(h)
            return self.fc2(h) + inner()

    class TriedAndCaught(MLP):
        def forward(self, x):
            try:
                h = self.fc1(x.unsqueeze(-1))
            except RuntimeError:
                h = self.fc1(x)
            return self.fc2(self.act(h))

    class Either(MLP):
        def forward(self, x):
            h = self.fc1(x) if len(x) > 4 else self.fc1(-x)
            return self.fc2(self.act(h))

    class Recursive(MLP):
        def forward(self, x):
            return torch.stack([self.forward(row) for row in x]) if x.ndim > 1 else self.fc2(self.act(self.fc1(x)))

    class CallsItselfAgain(MLP):
        def forward(self, x, again=True):
            y = self.fc2(self.act(self.fc1(x)))
            return self(y, again=False) if again else y

    class HasAHelper(MLP):
        def hidden(self, x):
            return self.act(self.fc1(x))

        def forward(self, x):
            return self.fc2(self.hidden(x))

    class HasAProperty(MLP):
        @property
        def layer(self):
            return self.fc1

        def forward(self, x):
            return self.fc2(self.act(self.layer(x)))

    class LocalNames(MLP):
        def forward(self, x):
            fc1, act = self.fc1, self.act
            h: torch.Tensor = fc1(x)
            return self.fc2(act(h))

    class Keywords(MLP):
        def forward(self, x):
            return self.fc2(input=self.act(input=self.fc1(input=x)))

    class Starred(MLP):
        def forward(self, *xs):
            return self.fc2(self.act(self.fc1(*xs)))

    class SelfReassigned(MLP):
        def forward(self, x):
            y = self.fc2(self.act(self.fc1(x)))
            self = types.SimpleNamespace(fc1=self.fc1, act=torch.tanh, fc2=self.fc2)
            return y + self.fc2(self.act(self.fc1(x)))

    class AnotherNameForSelf(MLP):
        def forward(this, x):
            return this.fc2(this.act(this.fc1(x)))

    class ReadsTheWeight(Res):
        def forward(self, x):
            return self.fc2(self.act(self.fc1(x))) + F.linear(x, self.fc1.weight).sum()

    class ChecksBetween(MLP):
        def forward(self, x):
            h = self.fc1(x)
            assert h.min() < 0  # of what has been activated it is not by much
            return self.fc2(self.act(h)) * h.min()

    class LayerCheckpointed(Res):
        def forward(self, x):
            return x + self.fc2(self.act(checkpoint(self.fc1, self.n(x), use_reentrant=True)))

    class ActivationCheckpointed(Res):
        def forward(self, x):
            return x + self.fc2(checkpoint(self.act, self.fc1(self.n(x)), use_reentrant=True))

    class DrawnTwice(GLU):
        def forward(self, x):
            return self.down(self.act(self.gate(self.drop(x))) * self.up(self.drop(x)))

    class TwoInputs(GLU):
        def forward(self, x):
            return self.down(self.act(self.gate(x)) * self.up(x.flip(0)))

    class UpBeforeReassigned(GLU):
        def forward(self, x):
            up = self.up(x)
            x = 2 * x
            return self.down(self.act(self.gate(x)) * up)

    class Broadcast(GLU):
        def forward(self, x):
            return self.down(self.act(self.gate(x)) * self.up(x[:1]))

    class OneLayerTwice(GLU):
        def forward(self, x):
            return self.down(self.act(self.gate(x)) * self.gate(x))

    class Overlapping(Packed):
        def forward(self, x):
            h = self.w1(x)
            return self.w2(self.act(h[..., :12]) * h[..., 6:18])

    class Interleaved(Packed):
        def forward(self, x):
            h = self.w1(x)
            return self.w2(self.act(h[..., ::2]) * h[..., 1::2])

    class HalvesOfRows(MLP):
        def forward(self, x):
            a, b = self.fc1(torch.cat([x, x])).chunk(2)
            return self.fc2(self.act(a) * b)

    class ReadWhenLeft(MLP):
        def forward(self, x):
            try:
                h = self.fc1(x)
                return self.fc2(self.act(h))
            finally:
                self.seen = tuple(h.shape)

    class ReadWhenCaught(MLP):
        def forward(self, x):
            h = x
            try:
                h = self.fc1(x)
                return raising(self.fc2(self.act(h)))
            except RuntimeError:
                return h

    class ReadWhenCaughtBeforeItIsRebound(MLP):
        def forward(self, x):
            h = x
            try:
                h = self.fc1(x)
                h = raising(self.fc2(self.act(h)))
            except RuntimeError:
                pass
            return h

    class ReadWhenSuppressed(MLP):
        def forward(self, x):
            h = x
            with contextlib.suppress(RuntimeError):
                h = self.fc1(x)
                y = raising(self.fc2(self.act(h)))
                h = y
            return h

    class ReadAfterABreak(MLP):
        def forward(self, x):
            h = y = x
            for i in range(2):
                if i == 1:
                    h = self.fc1(x)
                    y = self.fc2(self.act(h))
                    break
                h = 2 * x
            return y, h

    class ReadAfterAContinue(MLP):
        def forward(self, x):
            h = x
            for i in range(3):
                x = x + h.sum()
                if i < 2:
                    h = self.fc1(x)
                    x = self.fc2(self.act(h))
                    continue
                h = 2 * x
            return x

    class CarriedRound(MLP):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            h, ys = x, []
            for _ in range(3):
                h = self.fc1(h)
                y = self.fc2(self.act(h))
                ys.append(y)
            return ys

    class ReadByName(MLP):
        def forward(self, x):
            h = self.fc1(x)
            y = self.fc2(self.act(h))
            return y + vars()["h"].sum()

    class LayersSwapped(MLP):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(16, 8)

        def swapped(self, x):
            self.fc2, self.other = self.other, self.fc2
            return x

        def forward(self, x):
            return self.fc2(self.act(self.fc1(self.swapped(x))))

    class NumberNamedInside(MLP):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 16), nn.Linear(8, 16)])

        def forward(self, x):
            i = 0
            return self.fc2(self.act(self.layers[i](x * (i := 1))))

    class LayersInTurn(MLP):
        calls = 0

        @property
        def layer(self):
            self.calls += 1
            return (self.fc1, nn.Identity())[self.calls % 2 - 1]

        def forward(self, x):
            return self.fc2(self.act(self.layer(x)))

    class AskedInTurn(MLP):
        calls = 0

        @property
        def flag(self):
            self.calls += 1
            return self.calls % 3 == 0

        def forward(self, x):
            h = self.fc1(x)
            if self.flag:
                h = h + 1
            return self.fc2(self.act(h))

    class ComparesItsClass(MLP):
        def forward(self, x):
            y = self.fc2(self.act(self.fc1(x)))
            return y if type(self) is Forwards.ComparesItsClass else 2 * y

    class DetachedWhereSpelled(MLP):
        def forward(self, x):
            return self.fc2(F.gelu(self.fc1(x)).detach())

    class StraightThrough(MLP):
        def forward(self, x):
            z = self.fc1(x)
            return self.fc2(z + (F.relu(z) - z).detach())

    class SqueezedWhereSpelled(MLP):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(8, 1)

        def forward(self, x):
            return F.gelu(self.fc1(x)).squeeze(-1)

    class ClampedFarAway(MLP):
        def forward(self, x):
            return self.fc2(F.gelu(self.fc1(1e6 * x)).clamp(-65504, 65504))

    class NumbersMade(MLP):
        def forward(self, x):
            return self.fc2(torch.nan_to_num(F.gelu(self.fc1(x / 0.0))))

    class NormedGate(Packed):
        def forward(self, x):
            a, b = self.w1(x).chunk(2, -1)
            b = b / b.norm()
            return self.w2(self.act(a) * b)


FORWARDS = {name: cls for name, cls in vars(Forwards).items() if isinstance(cls, type) and name != "Doubling"}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("name", FORWARDS)
def test_a_forward_stays_the_very_same_code(name):
    module, stock = pair(FORWARDS[name])
    for _ in range(2):
        for training in (True, False):
            module.train(training), stock.train(training)
            check(module, stock)
            with torch.no_grad():
                assert_as_stock(module, stock)
        assert [vars(module).get(name) for name in ("seen", "calls")] == [
            vars(stock).get(name) for name in ("seen", "calls")
        ]
        hook(module), hook(stock)
    unfuse(module)
    check(module, stock)


def test_a_closure_is_the_same_cell():
    cls = closed_over(1)
    module, stock = pair(cls)
    before = inspect.getclosurevars(cls.forward).nonlocals["scale"]
    y, h = module(X), MLP.forward(stock, X)
    assert inspect.getclosurevars(cls.forward).nonlocals["scale"] == before + 1
    assert_same((y, stock(X)), (h * (before + 2), h * (before + 3)))


@pytest.mark.parametrize(
    "make", [Forwards.Squeezed, Forwards.Scaled, Forwards.ParentTwice, Forwards.WithAMixin, Forwards.Inherits]
)
def test_a_subclass_that_calls_super_runs_fused(make, counted):
    """Its parent's forward is the rewritten one: a squeeze, a factor and what changes later are the subclass's own."""
    module, stock = pair(make)
    counted.clear()
    check(module, stock)
    assert counted
    module.scale = stock.scale = 0.0
    check(module, stock)


@pytest.mark.parametrize("args", [(2.0,), (None,), ()])
@pytest.mark.parametrize("kwargs", [{}, {"shift": 3.0}])
def test_optional_arguments(args, kwargs):
    module, stock = pair(Forwards.Optional)
    assert_as_stock(module, stock, lambda m: m(X, *args, **kwargs))
    assert_as_stock(module, stock, lambda m: m(x=X, scale=0.5))
    assert_as_stock(module, stock, lambda m: m(X, 1.0, 2.0))  # its own error
    assert_as_stock(module, stock, lambda m: m(X, skale=1.0))


class Strict(MLP):
    def forward(self, x):
        if x.ndim == 3 and len(x) == 3:
            raise ValueError("three are too many")
        y = self.fc2(self.act(self.fc1(x)))
        assert len(y) != 7, "seven, too"
        return y


INPUTS = [
    torch.randn(3, 2, 8).double(), torch.randn(7, 8).double(), torch.randn(4, 9).double(), torch.randn(4, 8), torch.randn(8).double(),
    torch.randn(0, 8).double(), torch.randn(2, 0, 8).double(), torch.zeros(4, 8, dtype=torch.long), None, [1.0] * 8,
    torch.tensor(1.0).double(), torch.randn(4, 8, dtype=torch.complex128), torch.randn(4, 8).double().to_sparse(),
    torch.randn(4, 8, device="meta").double(), torch.randn(2, 8).double().expand(2, 2, 8), torch.randn(8, 8).double().t(),
]  # fmt: skip


@pytest.mark.parametrize("make", [Strict, MLP, Res, GLU, Packed, sequential])
def test_any_input_is_taken_or_refused_as_stock(make):
    module, stock = (m.eval() for m in pair(make))
    for x in INPUTS:
        assert_as_stock(module, stock, lambda m, x=x: m(x))


def test_tracebacks_show_the_users_lines():
    frames = []
    for module in pair(Strict):
        with pytest.raises(AssertionError) as error:
            module(torch.zeros(7, 8).double())
        frames.append([f for f in traceback.extract_tb(error.value.__traceback__) if f.filename == __file__])
    ours, theirs = ([(f.filename, f.lineno, f.name, f.line) for f in found] for found in frames)
    assert ours == theirs


# --- A, B: what happens after `fuse`


def swished(beta):
    class Swish(nn.Module):
        def __init__(self):
            super().__init__()
            self.beta = beta

        def forward(self, x):
            return x * torch.sigmoid(self.beta * x)

    return Swish()


def set_in(child, **attributes):
    def change(m):
        for name, value in attributes.items():
            setattr(m.get_submodule(child), name, value)

    return change


def lora(m):
    torch.manual_seed(3)
    adapter = LoRA(m.fc1)
    adapter.b = nn.Linear(2, 16, dtype=torch.float64)
    m.fc1 = adapter


def adapted(m):
    torch.manual_seed(3)
    return nn.Linear(16, 16, dtype=torch.float64)


def shared(m):
    """Another owner of fc1, which calls it without an activation, before."""
    other = nn.Module()
    other.fc1 = m.fc1
    m.register_forward_pre_hook(lambda _m, args: (args[0] + other.fc1(args[0]).sum(),))


def on_the_class(module, **attributes):
    module.__class__ = type(type(module).__name__, (type(module),), attributes)


CHANGES = {
    "fc1 copied": (Res, lambda m: setattr(m, "fc1", copy.deepcopy(m.fc1))),
    "fc1 copied, function": (lambda: Res(F.gelu), lambda m: setattr(m, "fc1", copy.deepcopy(m.fc1))),
    "fc1 copied in an MLP": (MLP, lambda m: setattr(m, "fc1", copy.deepcopy(m.fc1))),
    "fc1 shallowly copied": (Res, lambda m: setattr(m, "fc1", copy.copy(m.fc1))),
    "act copied": (Res, lambda m: setattr(m, "act", copy.deepcopy(m.act))),
    "both copied": (Res, lambda m: [setattr(m, name, copy.deepcopy(getattr(m, name))) for name in ("fc1", "act")]),
    "another linear": (Res, lambda m: setattr(m, "fc1", adapted(m)) or setattr(m.fc1, "weight", nn.Parameter(m.fc1.weight[:, :8]))),
    "fc1 owned twice": (Res, shared),
    "an adapter behind, in its place": (Res, lambda m: setattr(m, "fc1", nn.Sequential(m.fc1, adapted(m)))),
    "an adapter before the activation": (Res, lambda m: setattr(m, "act", nn.Sequential(adapted(m), m.act))),
    "an adapter beside": (Res, lambda m: setattr(m, "adapter", adapted(m))),
    "LoRA": (MLP, lora),
    "the activation a function": (MLP, lambda m: (delattr(m, "act"), setattr(m, "act", torch.tanh))),
    "the activation dropped": (MLP, lambda m: setattr(m, "act", nn.Identity())),
    "fc1 as the activation": (lambda: Res(nn.Tanh()), lambda m: setattr(m, "act", nn.Linear(16, 16).double().requires_grad_(False))),
    "a layer without bias": (Res, lambda m: setattr(m.fc1, "bias", None)),
    "wider layers": (MLP, lambda m: (setattr(m, "fc1", nn.Linear(8, 5).double()), setattr(m, "fc2", nn.Linear(5, 3).double()))),
    "frozen": (Res, lambda m: m.requires_grad_(False)),
    "frozen in part": (MLP, lambda m: m.fc1.requires_grad_(False)),
    "tied weights": (lambda: nn.Sequential(MLP(), MLP(), Res()), lambda m: [setattr(m[i].fc1, "weight", m[0].fc1.weight) for i in (1, 2)]),
    "the weight replaced": (Res, lambda m: setattr(m.fc1, "weight", nn.Parameter(torch.ones(16, 8).double()))),
    "the weight a plain tensor": (MLP, lambda m: (delattr(m.fc1, "weight"), setattr(m.fc1, "weight", torch.ones(16, 8).double()))),
    "weight norm": (MLP, lambda m: parametrizations.weight_norm(m.fc1)),
    "spectral norm": (Res, lambda m: parametrizations.spectral_norm(m.fc1)),
    "pruned": (Res, lambda m: prune.l1_unstructured(m.fc1, "weight", amount=0.5)),
    "a parametrized activation": (
        lambda: Res(nn.PReLU()),
        lambda m: parametrize.register_parametrization(m.act, "weight", Twice()),
    ),
    "a slope for each channel": (lambda: MLP(nn.PReLU()), lambda m: setattr(m.act, "weight", nn.Parameter(torch.rand(16).double()))),
    "approximate": (MLP, set_in("act", approximate="tanh")),
    "approximate, residual": (Res, set_in("act", approximate="tanh")),
    "negative_slope": (lambda: Res(nn.LeakyReLU(0.1)), set_in("act", negative_slope=0.5)),
    "alpha": (lambda: MLP(nn.ELU()), set_in("act", alpha=0.5)),
    "beta": (lambda: Res(nn.Softplus()), set_in("act", beta=2.0, threshold=1.0)),
    "min_val": (lambda: MLP(nn.Hardtanh()), set_in("act", min_val=-0.1, max_val=0.2)),
    "lambd": (lambda: MLP(nn.Hardshrink()), set_in("act", lambd=0.1)),
    "one's own beta": (lambda: MLP(swished(1.702)), set_in("act", beta=0.3)),
    "one's own beta, residual": (lambda: Res(swished(1.0)), set_in("act", beta=3.0)),
    "a number on the instance": (Forwards.Scaled, set_in("", scale=0.0)),
    "the activation's forward": (Res, lambda m: setattr(m.act, "forward", torch.tanh)),
    "the activation's forward, MLP": (MLP, lambda m: setattr(m.act, "forward", torch.tanh)),
    "the down layer's forward": (MLP, lambda m: setattr(m.fc2, "forward", lambda h: h[..., :8])),
    "the module's forward": (MLP, lambda m: setattr(m, "forward", lambda x: 2 * x)),
    "the module's forward, wrapped": (Res, lambda m: setattr(m, "forward", lambda x, old=m.forward: 2 * old(x))),
    "a class derived": (MLP, lambda m: on_the_class(m, forward=lambda self, x: MLP.forward(self, x) + 1)),
    "a class derived of fc1's": (Res, lambda m: on_the_class(m.fc1, forward=lambda self, x: 2 * F.linear(x, self.weight))),
    "a class derived of act's": (Res, lambda m: on_the_class(m.act, forward=lambda self, x: torch.tanh(x))),
    "a property for the weight": (MLP, lambda m: on_the_class(m.fc1, weight=property(lambda self: torch.ones(16, 8).double()))),
    "a hook that changes the output": (Res, lambda m: m.fc1.register_forward_hook(lambda _m, args, z: 2 * z)),
    "a hook that changes the input": (MLP, lambda m: m.fc2.register_forward_pre_hook(lambda _m, args: (2 * args[0],))),
    "a hook with keywords": (
        MLP,
        lambda m: m.fc1.register_forward_hook(lambda _m, args, kwargs, z: 2 * z, with_kwargs=True),
    ),
    "a backward hook": (Res, lambda m: m.fc1.register_full_backward_hook(lambda _m, dx, dz: (2 * dx[0],))),
    "a backward pre-hook": (MLP, lambda m: m.fc1.register_full_backward_pre_hook(lambda _m, dz: (2 * dz[0],))),
    "a gradient's hook": (MLP, lambda m: m.fc1.weight.register_hook(lambda dw: 2 * dw)),
    "children renamed": (sequential, lambda m: m._modules.update({"1": nn.Tanh()})),
    "children in another order": (sequential, lambda m: m._modules.update({"1": m[4], "4": nn.Tanh()})),
}  # fmt: skip


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


class Dropped(MLP):
    def forward(self, x):
        return self.fc2(self.drop(self.act(self.fc1(x))))


class DroppedByAFunction(MLP):
    p = 0.5

    def forward(self, x):
        return self.fc2(F.dropout(self.act(self.fc1(x)), self.p, self.training))


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


@pytest.mark.parametrize("p", [0, 1, True, 2, -1.0, math.nan, torch.tensor(0.5), "0.5"], ids=str)
def test_any_share_to_drop(p):
    for make in (Dropped, DroppedByAFunction):
        module, stock = pair(make)
        for m in (module, stock):
            m.p = m.drop.p = p
        assert_as_stock(module, stock)
    for m in (module, stock):
        m.drop.training = 1
    assert_as_stock(module, stock)


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (nn.CELU, {"alpha": 0.0}),
        (nn.Softshrink, {"lambd": -1.0}),
        (nn.Hardtanh, {"min_val": 3.0, "max_val": 1.0}),
        (nn.LeakyReLU, {"negative_slope": True}),
        (nn.LeakyReLU, {"negative_slope": math.nan}),
        (nn.LeakyReLU, {"negative_slope": torch.tensor(0.5)}),
        (nn.GELU, {"approximate": "no"}),
        (nn.PReLU, {"weight": nn.Parameter(torch.ones(1))}),
    ],
    ids=lambda given: str(given),
)
def test_any_parameter(make, change):
    module, stock = pair(lambda: MLP(make()))
    for m in (module, stock):
        vars(m.act).update({name: value for name, value in change.items() if name != "weight"})
        if "weight" in change:
            m.act.weight = change["weight"]
    assert_as_stock(module, stock)


@pytest.mark.parametrize("dtype", [torch.complex128, torch.int64, torch.float8_e4m3fn], ids=str)
def test_any_dtype(dtype):
    module, stock = pair(lambda: MLP(nn.Tanh() if dtype.is_complex else nn.ReLU()).requires_grad_(False))
    for parameter in (*module.parameters(), *stock.parameters()):
        parameter.data = (10 * parameter).to(dtype)
    assert_as_stock(module, stock, lambda m: m((10 * X).to(dtype)))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize("make", [MLP, GLU, sequential])
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(make, layout):
    module, stock = pair(make)
    x = torch.nested.nested_tensor([X[:2], X], layout=layout)
    assert_same([y.detach() for y in module(x).unbind()], [y.detach() for y in stock(x).unbind()])


class Reduced(MLP):
    def __reduce__(self):
        return type(self), (), self.__getstate__()


class ReducedByKeywords(MLP):
    def __new__(cls, **kwargs):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (), {"key": 1}


@pytest.mark.parametrize("make", [Reduced, ReducedByKeywords])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_in_a_way_of_ones_own(make, protocol, counted):
    module, stock = pair(make)
    for other in (pickle.loads(pickle.dumps(module, protocol)), copy.copy(module), copy.deepcopy(module)):
        counted.clear()
        assert_same(other(X), stock(X))
        assert counted == ["mlp"]
        unfuse(other)
        assert type(other) is make


def test_calls_are_seen_by_whoever_patches_them(monkeypatch):
    module, stock = pair(MLP)
    call, seen = nn.Module.__call__, []
    monkeypatch.setattr(
        nn.Module, "__call__", lambda self, *args: (seen.append(type(self).__name__), call(self, *args))[1]
    )
    module(X)
    of_module = seen.copy()
    seen.clear()
    stock(X)
    assert of_module == seen


def test_a_function_keeps_no_module_alive():
    def made(layer):
        return lambda x: F.gelu(x) * (layer is not None)

    module = MLP()
    module.act = None
    del module.act
    module.act = made(module.fc2)
    fuse(module)
    module(X.float())
    kept = weakref.ref(module.fc2.weight)
    del module
    gc.collect()
    assert kept() is None


class Sigmoids(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


def test_an_activation_met_first_among_fake_tensors():
    code = """
import torch, test_fuse_sound as t
from torch._subclasses.fake_tensor import FakeTensorMode
module, stock = t.pair(t.MLP)
module.act = stock.act = t.Sigmoids()
with FakeTensorMode(allow_non_fake_inputs=True):
    module(t.X)
t.check(module, stock)
print(len(t.fuse(t.MLP(t.Sigmoids())).fused))
"""
    assert in_a_process(code) == "1"


@pytest.mark.parametrize("name", CHANGES)
def test_what_happens_later_is_as_stock(name):
    make, change = CHANGES[name]
    module, stock = pair(make)
    for m in (module, stock):
        torch.manual_seed(3)
        change(m)
    x = torch.randn(2, 16, 8).double() if "channel" in name else X
    check(module, stock, x)
    with torch.no_grad():
        assert_as_stock(module.eval(), stock.eval())
    if name == "a class derived":
        with pytest.raises(ValueError, match="made of a fused class; take that back first"):
            unfuse(module)
        return
    unfuse(module)
    check(module, stock, x)


def with_a_clamp(self, x):
    return self.fc2(self.act(self.fc1(x).clamp(-0.1, 0.1)))


PATCHES = {
    "the class": (MLP, MLP, "forward", with_a_clamp),
    "a parent": (Forwards.Scaled, MLP, "forward", with_a_clamp),
    "a grandparent": (Forwards.ParentTwice, MLP, "forward", with_a_clamp),
    "the residual class": (Res, Res, "forward", with_a_clamp),
    "nn.Sequential": (sequential, nn.Sequential, "forward", lambda self, x: self[0](x)),
    "torchvision's manner": (VisionMLP, VisionMLP, "forward", lambda self, x: self[0](x)),
    "the activation": (MLP, nn.GELU, "forward", lambda self, x: torch.tanh(x)),
    "the activation, residual": (Res, nn.GELU, "forward", lambda self, x: torch.tanh(x)),
    "the activation in an nn.Sequential": (sequential, nn.GELU, "forward", lambda self, x: torch.tanh(x)),
    "linear": (MLP, nn.Linear, "forward", lambda self, x: 2 * F.linear(x, self.weight)),
    "linear, residual": (Res, nn.Linear, "forward", lambda self, x: 2 * F.linear(x, self.weight)),
    "dropout": (Plain, nn.Dropout, "forward", lambda self, x: 2 * x),
    "linear's call": (MLP, nn.Linear, "__call__", lambda self, x: 2 * self.forward(x)),
    "a class attribute": (Forwards.Scaled, MLP, "scale", 0.0),
    "a global": (Forwards.ScaledByAGlobal, sys.modules[__name__], "SCALE", 3.0),
    "a global function": (Forwards.ActivatedByAGlobal, sys.modules[__name__], "activated", torch.tanh),
}


@pytest.mark.parametrize("name", PATCHES)
def test_what_is_patched_later_is_as_stock(name, monkeypatch):
    make, owner, attribute, value = PATCHES[name]
    module, stock = (m.eval() for m in pair(make))
    expected = run(stock)
    monkeypatch.setattr(owner, attribute, value)
    check(module, stock)
    monkeypatch.undo()
    assert_same(run(module), expected)


@pytest.mark.parametrize("act", [None, F.gelu], ids=["module", "function"])
def test_children_by_themselves(act):
    """The linear layer called by itself is the linear layer, within a call of the whole and after it."""
    module, stock = pair(lambda: Res(act))
    for _ in range(2):
        assert_same(run(module.fc1, X), run(stock.fc1, X))
        h = torch.randn(5, 16).double()
        assert_same(module.act(h), stock.act(h))
        assert_same(module.act(module.act(module.fc1(X))), stock.act(stock.act(stock.fc1(X))))
        check(module, stock)
    assert type(module.fc1) is nn.Linear
    assert type(module.act) is type(stock.act)


def test_two_owners_of_a_layer():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.third = Res(), Res(nn.Tanh()), nn.Sequential(nn.LayerNorm(8), nn.Identity())
            self.other.fc1 = self.third[1] = self.one.fc1

        def forward(self, x):
            return self.one(x) + self.other(x) + self.third(x).sum()

    check(*pair(Two))


@pytest.mark.parametrize("hooks", [False, True])
@pytest.mark.parametrize("make", MAKES)
def test_a_hook_sees_what_a_layer_returns(make, hooks):
    seen = ([], [])
    for module, found in zip((m.eval() for m in pair(make)), seen, strict=True):
        children = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.GELU))]
        for child in children:
            child.register_forward_hook(lambda _m, args, y, found=found: found.append((args, y.detach().clone())))
            if hooks:
                child.register_full_backward_hook(lambda _m, dx, dy, found=found: found.append((dx, dy)))
        run(module, X[None])
    assert seen[1]
    assert_same(*seen)


@pytest.mark.parametrize(
    ("make", "args"),
    [
        (Res, ()),
        (Res, (F.gelu,)),
        (MLP, ()),
        (MLP, (F.gelu,)),
        (GLU, ()),
        (Packed, ()),
        (sequential, ()),
        (Stacked, ()),
    ],
)
def test_symbolic_trace(make, args):
    module, stock = (m.eval() for m in pair(lambda: make(*args)))
    graph = torch.fx.symbolic_trace(module)
    check(graph, stock)
    check(copy.deepcopy(graph), stock)
    unfuse(module)
    check(graph, stock)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("make", MAKES)
def test_checkpoint(make, reentrant):
    found = [run(functools.partial(checkpoint, m, use_reentrant=reentrant), X[None], m) for m in pair(make)]
    assert_same(*found)


class Cast(MLP):
    def forward(self, x):
        return self.fc2(self.act(self.fc1(x).to(x.dtype)))


class CastRes(Res):
    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(self.n(x)).to(x.dtype)))


class CastByFloat(Res):
    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(x).float()).to(x.dtype))


class Clamped(Res):
    def forward(self, x):
        h = self.fc1(x)
        if h.dtype == torch.float16:
            h = h.clamp(-0.1, 0.1)
        return x + self.fc2(self.act(h))


class ClampedMLP(MLP):
    def forward(self, x):
        h = self.fc1(x)
        if h.dtype == torch.float16:
            h = torch.clamp(h, -0.1, 0.1)
        return self.fc2(self.act(h))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [Cast, CastRes, CastByFloat, Clamped, ClampedMLP, MLP, Res])
def test_casts_between(make, dtype, autocast):
    module, stock = (m.to(dtype) for m in pair(make))
    tolerance = 2e-2 if autocast or dtype == torch.bfloat16 else 3e-3 if dtype == torch.float16 else 1e-5
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = outcome(lambda: stock(X.to(dtype)))
        assert_same(outcome(lambda: module(X.to(dtype))), expected, tolerance)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("saved", "targets", "act"),
    [
        ([saved], targets, act)
        for targets in (["fc2"], ["fc1", "fc2"])
        for saved in ("fc1", "act", "n")
        for act in (None, F.gelu)
        if saved not in targets and not (act and saved == "act")
    ],
)
def test_modules_to_save(saved, targets, act):
    peft = pytest.importorskip("peft")
    results = []
    for m in pair(lambda: Res(act)):
        torch.manual_seed(3)
        model = peft.get_peft_model(
            m, peft.LoraConfig(target_modules=targets, modules_to_save=saved, init_lora_weights=False)
        ).double()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modules_to_save" in name:
                    parameter.mul_(2)
        found = run(model)
        with model.disable_adapter():
            results.append((found, model(X), model.merge_and_unload()(X)))
    assert_same(*results)


# --- C: what made classes lacked

EDITS = {
    "[:-1]": lambda m: m[:-1],
    "[1:]": lambda m: m[1:],
    "[3:6]": lambda m: m[3:6],
    "[:3] + [3:]": lambda m: m[:3] + m[3:],
    "+": lambda m: m + sequential().double().requires_grad_(False),
    "+=": lambda m: m.__iadd__(m[:3]),
    "*": lambda m: m * 2,
    "append": lambda m: m.append(nn.Linear(8, 3).double()),
    "extend": lambda m: m.extend([nn.GELU(), nn.Linear(8, 3).double()]),
    "insert": lambda m: m.insert(1, nn.LayerNorm(m[0].out_features).double()),
    "insert first": lambda m: m.insert(0, nn.GELU()),
    "pop": lambda m: (m.pop(1), m)[1],
    "del": lambda m: (m.__delitem__(1), m)[1],
    "del of a slice": lambda m: (m.__delitem__(slice(1, 5)), m)[1],
    "=": lambda m: (m.__setitem__(1, nn.Tanh()), m)[1],
    "of its children": lambda m: type(m)(*m),
    "of a dict": lambda m: type(m)(OrderedDict(m._modules)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
# torch constructs type(self)(OrderedDict), which a class with a constructor of its own does not take
NOT_OF_A_CLASS = ("[:-1]", "[1:]", "[3:6]", "[:3] + [3:]", "+=", "+", "*", "of its children", "of a dict")


@pytest.mark.parametrize(
    ("make", "edit"),
    [(sequential, edit) for edit in EDITS] + [(VisionMLP, edit) for edit in EDITS if edit not in NOT_OF_A_CLASS],
)
def test_sequentials_are_edited(make, edit):
    module, stock = pair(make)
    edited = []
    for m in (module, stock):
        torch.manual_seed(3)
        edited.append(EDITS[edit](m))
    x = torch.randn(5, 16).double() if edit == "[1:]" else X
    check(*edited, x)
    assert [type(m) for m in edited[0]] == [type(m) for m in edited[1]]
    assert isinstance(edited[0], nn.Sequential)
    unfuse(edited[0]), unfuse(module)
    check(*edited, x)


@pytest.mark.parametrize("make", [MLP, Res, GLU, Packed, Plain, VisionMLP, Stacked, Gated])
def test_the_class_constructs(make):
    module, stock = (m.eval() for m in pair(make))
    another = type(module)().double().eval()
    another.load_state_dict(stock.state_dict())
    check(another, stock)
    assert isinstance(another, make)
    derived = type("Derived", (type(module),), {"forward": lambda self, x: super(derived, self).forward(x) + 1})
    another = derived().double().eval()
    another.load_state_dict(stock.state_dict())
    assert_same(another(X), stock(X) + 1)


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, saved_and_loaded], ids=lambda f: f.__name__)
@pytest.mark.parametrize("make", [Res, MLP, GLU, sequential, VisionMLP, encoder_layer])
def test_copies_are_ordinary_modules(make, copied):
    module, stock = (m.eval() for m in pair(make))
    other = copied(module)
    check(other, stock, X[None])
    assert_same(run(copied(other.get_submodule("")), X[None]), run(stock, X[None]))
    unfuse(module)
    check(other, stock, X[None])
    fuse(module)
    unfuse(other)
    check(module, stock, X[None])
    check(other, stock, X[None])


@pytest.mark.parametrize("make", [blocks.Plain, blocks.Dense, blocks.VisionMLP, blocks.sequential])
def test_pickled_for_another_process(make, tmp_path):
    module, stock = (m.eval() for m in pair(make))
    x = X[:, None]
    torch.save((module, x, stock(x).detach()), tmp_path / "model.pt")
    code = """
import torch
module, x, expected = torch.load(sys.argv[1], weights_only=False)
print(type(module).__name__, (module(x) - expected).abs().max().item() < 1e-12, sorted(module.__dict__))
from epilogue.nn import fuse, unfuse
unfuse(module)
print(type(module).__module__, (module(x) - expected).abs().max().item() < 1e-12)
"""
    name, keys = type(stock).__name__, sorted(stock.__dict__)
    expected = f"{name} True {keys}\n{type(stock).__module__} True"
    assert in_a_process(code, str(tmp_path / "model.pt")) == expected


def test_a_pickle_says_what_it_needs(tmp_path):
    module, _ = pair(blocks.Plain)
    torch.save(module, tmp_path / "model.pt")
    code = """
import torch
sys.modules["epilogue"] = None
try:
    torch.load(sys.argv[1], weights_only=False)
except ImportError as error:
    print(error)
"""
    assert "epilogue" in in_a_process(code, str(tmp_path / "model.pt"))


def put_back(m):
    m.forward = m.forward


def hooked_by_accelerate(m):
    hooks = pytest.importorskip("accelerate.hooks")
    for module in [m, *m.children()]:
        hooks.add_hook_to_module(module, hooks.ModelHook())


def unhooked_by_accelerate(m):
    hooks = pytest.importorskip("accelerate.hooks")
    for module in [m, *m.children()]:
        hooks.remove_hook_from_module(module)


@pytest.mark.parametrize("make", [MLP, Res, sequential, VisionMLP, GLU])
@pytest.mark.parametrize(
    "steps",
    [
        [fuse, put_back, unfuse],
        [fuse, hooked_by_accelerate, unfuse, unhooked_by_accelerate],
        [fuse, hooked_by_accelerate, unhooked_by_accelerate, unfuse],
        [hooked_by_accelerate, fuse, unhooked_by_accelerate, unfuse],
        [hooked_by_accelerate, fuse, unfuse, unhooked_by_accelerate],
    ],
    ids=lambda steps: ", ".join(step.__name__ for step in steps),
)
def test_a_bound_forward_is_put_back(make, steps):
    _, stock = pair(make)
    module = copy.deepcopy(stock)
    for step in [*steps, fuse]:
        step(module)
        check(module, stock)


def unfused_by_parts(m):
    for child in reversed(list(m.modules())):
        unfuse(child)


def through_reports(m, order):
    if not unfuse(m):
        return
    reports = [fuse(m, include="0*"), fuse(m, include="1*"), fuse(m)]
    assert all(isinstance(report, Report) for report in reports)
    for i in order:
        reports[i].__exit__(None, None, None)


UNDONE = {
    "twice": lambda m: (unfuse(m), unfuse(m)),
    "children first": unfused_by_parts,
    "a parent that is gone": lambda m: (unfuse(m[0]), unfuse(nn.ModuleList([m[1]])), unfuse(m)),
    "reports in order": lambda m: through_reports(m, [0, 1, 2]),
    "reports in reverse": lambda m: through_reports(m, [2, 1, 0]),
    "reports, out of order": lambda m: through_reports(m, [1, 2, 0]),
    "layers exchanged": lambda m: (
        m[0].__setattr__("fc1", m[1].fc1),
        m[1].__setattr__("fc1", copy.deepcopy(m[0].fc1)),
        unfuse(m),
    ),
    "activations exchanged": lambda m: (setattr(m[0], "act", m[1].act), unfuse(m)),
    "parametrized": lambda m: (parametrize.register_parametrization(m[1].fc1, "weight", Twice()), unfuse(m)),
    "parametrized and no more": lambda m: (
        parametrize.register_parametrization(m[1].fc1, "weight", Twice()),
        m(X),
        parametrize.remove_parametrizations(m[1].fc1, "weight", leave_parametrized=False),
        unfuse(m),
    ),
    "a layer gone": lambda m: (setattr(m[1], "fc1", nn.Linear(8, 16).double()), unfuse(m)),
    "a forward of its own": lambda m: (setattr(m[1], "forward", lambda x: 2 * x), unfuse(m)),
}


@pytest.mark.parametrize("undo", UNDONE)
def test_undone_whatever_happened_between(undo):
    module, stock = pair(lambda: nn.Sequential(MLP(), Res(), sequential()))
    apart = [m.fc1 for m in module if hasattr(m, "fc1")]
    for m in (module, stock):
        torch.manual_seed(3)
        UNDONE[undo](m)
    for m, s in zip(module.modules(), stock.modules(), strict=True):
        assert type(m) is type(s) or parametrize.is_parametrized(s)
        assert m.__dict__.keys() == s.__dict__.keys()
    check(module, stock)
    assert all(type(layer) is nn.Linear or parametrize.is_parametrized(layer) for layer in apart)


# --- D: `fuse` never raises for what it finds


def with_child(change, act=None):
    def make():
        m = MLP(act)
        change(m)
        return m

    return make


def of_class(**attributes):
    return lambda: type("Made", (MLP,), attributes)()


def executed():
    space = {"MLP": MLP}
    exec("class Executed(MLP):\n    def forward(self, x): return 2 * self.fc2(self.act(self.fc1(x)))", space)
    return space["Executed"]()


class Generator(MLP):
    def forward(self, x):
        yield self.fc2(self.act(self.fc1(x)))


class Async(MLP):
    async def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Called:
    def __call__(self, *args):
        return 2 * args[-1]


def raising(*args):
    raise RuntimeError("do not look")


class RaisingGetattr(MLP):
    def __getattr__(self, name):
        if name in ("fc1", "fc2", "act", "drop"):
            return super().__getattr__(name)
        raise RuntimeError(f"no {name}")


class Sealed(MLP):
    def __init_subclass__(cls, **kwargs):
        raise TypeError("no subclasses")


class Frozen(MLP):
    ready = False

    def __init__(self):
        super().__init__()
        self.ready = True

    def __setattr__(self, name, value):
        if self.ready:
            raise AttributeError(f"{name} is frozen")
        super().__setattr__(name, value)


class Slotted(MLP):
    __slots__ = ("more",)


class Odd:
    """An attribute that can be neither compared, copied nor asked."""

    def __bool__(self):
        raise RuntimeError("neither true nor false")

    def __eq__(self, other):
        raise RuntimeError("not comparable")

    __hash__ = None

    def __deepcopy__(self, memo):
        raise RuntimeError("not copied")

    def __call__(self, *args):
        raise RuntimeError("not called")


class RaisingParameters(nn.Linear):
    def parameters(self, recurse=True):
        raise RuntimeError("no parameters")


def with_weight(weight):
    def change(layer):
        layer.weight = weight(layer.weight)
        return layer

    return change


LAYERS = {
    "pruned": lambda layer: prune.identity(prune.l1_unstructured(layer, "weight", amount=0.5), "bias"),
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of old": nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm of old": nn.utils.spectral_norm,
    "scripted": torch.jit.script,
    "traced": lambda layer: torch.jit.trace(layer, torch.ones(1, layer.in_features, dtype=layer.weight.dtype)),
    "lazy": lambda layer: nn.LazyLinear(layer.out_features),
    "another dtype": nn.Linear.half,
    "meta": lambda layer: layer.to("meta"),
    "nothing out": lambda layer: nn.Linear(layer.in_features, 0),
    "nothing in": lambda layer: nn.Linear(0, layer.out_features),
    "flat": with_weight(lambda w: nn.Parameter(w.detach().flatten())),
    "empty": with_weight(lambda w: nn.Parameter(torch.empty(0))),
    "a scalar": with_weight(lambda w: nn.Parameter(torch.tensor(1.0))),
    "stacked": with_weight(lambda w: nn.Parameter(torch.stack([w.detach()] * 2))),
    "none": with_weight(lambda w: None),
    "integers": with_weight(lambda w: nn.Parameter(torch.ones_like(w, dtype=torch.int8), requires_grad=False)),
    "deleted": lambda layer: (layer.__delattr__("weight"), layer)[1],
    "gone": lambda layer: None,
    "parameters that raise": lambda layer: RaisingParameters(layer.in_features, layer.out_features),
}


def changed(make, path, change):
    def made():
        m = make()
        m._modules[path] = change(m._modules[path])
        return m

    return made


ODDITIES = {
    **{
        f"{name}, {path} of {make.__name__}": changed(make, path, change)
        for name, change in LAYERS.items()
        for make, path in ((MLP, "fc1"), (MLP, "fc2"), (Res, "fc1"), (sequential, "0"), (sequential, "2"))
    },
    "nothing hidden": with_child(lambda m: (setattr(m, "fc1", nn.Linear(8, 0)), setattr(m, "fc2", nn.Linear(0, 8)))),
    "nothing hidden in a sequential": lambda: nn.Sequential(nn.Linear(8, 0), nn.GELU(), nn.Linear(0, 8)),
    "a scripted activation": with_child(lambda m: setattr(m, "act", torch.jit.script(m.act))),
    "a scripted model": lambda: torch.jit.script(MLP()),
    "an activation that is None": with_child(lambda m: setattr(m, "act", None)),
    "a property that raises": of_class(width=property(raising), gelu=property(raising)),
    "a descriptor": of_class(fc3=functools.cached_property(raising)),
    "__getattr__ that raises": RaisingGetattr,
    "an odd attribute": with_child(lambda m: setattr(m, "odd", Odd())),
    "an odd attribute named as an activation": with_child(lambda m: setattr(m, "activation", Odd())),
    "a lock": with_child(lambda m: setattr(m, "lock", threading.Lock())),
    "no subclasses": Sealed,
    "frozen": Frozen,
    "slots": Slotted,
    "itself": with_child(lambda m: setattr(m, "me", [m])),
    "executed": executed,
    "a partial": of_class(forward=functools.partial(raising, 1)),
    "a partialmethod": of_class(forward=functools.partialmethod(lambda self, n, x: n * MLP.forward(self, x), 2)),
    "a C function": of_class(forward=staticmethod(torch.tanh)),
    "a static function": of_class(forward=staticmethod(lambda x: 2 * x)),
    "a class method": of_class(forward=classmethod(lambda cls, x: 2 * x)),
    "a lambda": of_class(forward=lambda self, x: self.fc2(self.act(self.fc1(x))) + 1),
    "an object": of_class(forward=Called()),
    "a property": of_class(forward=property(lambda self: lambda x: 2 * MLP.forward(self, x))),
    "no forward": of_class(forward=nn.Module.forward),
    "a generator": Generator,
    "async": Async,
    "a graph": lambda: torch.fx.symbolic_trace(MLP()),
    "compiled": lambda: torch.compile(MLP(), backend="eager"),
    "parallel": lambda: nn.DataParallel(MLP()),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ODDITIES)
def test_fuse_never_raises(name):
    torch.manual_seed(0)
    stock = ODDITIES[name]()
    torch.manual_seed(0)
    module = ODDITIES[name]()
    if name != "frozen":
        (stock.double(), module.double())

    def results(m):
        torch.manual_seed(3)
        y = m(X)
        return "coroutine" if inspect.iscoroutine(y) and y.close() is None else list(y)

    names = [n for n, _ in module.named_modules()]
    for verify in (True, False):
        assert isinstance(fuse(module, verify=verify), Report)
        assert_as_stock(module, stock, results)
        unfuse(module)
        assert_as_stock(module, stock, results)
    assert [n for n, _ in module.named_modules()] == names


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "path"), [(MLP, "fc1"), (MLP, "fc2"), (Res, "fc1"), (GLU, "up"), (sequential, "0"), (sequential, "2")]
)
@pytest.mark.parametrize("name", LAYERS)
def test_what_becomes_of_layers_later(name, make, path):
    module, stock = pair(make)
    for m in (module, stock):
        torch.manual_seed(3)
        m._modules[path] = LAYERS[name](m._modules[path])
    assert_as_stock(module.eval(), stock.eval())
    unfuse(module)
    assert_as_stock(module, stock)


MODES = {
    "meta": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "fake": FakeTensorMode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "flops": lambda: FlopCounterMode(display=False),
    "skip_init": torch.nn.utils.parametrize.cached,
    "profiled": torch.profiler.profile,
    "anomalies": lambda: torch.autograd.detect_anomaly(check_nan=False),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
@pytest.mark.parametrize("make", [MLP, Res, GLU, Packed, sequential, lambda: MLP(swished(1.702))])
@pytest.mark.parametrize("mode", MODES)
def test_fuse_under_a_mode(mode, make):
    module, stock = (m.eval() for m in pair(make))
    rows = fuse(stock, dry_run=True).fused
    unfuse(module)
    with MODES[mode]():
        report = fuse(module)
    assert report.fused == rows
    check(module, stock)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_fuse_with_another_default_dtype(dtype):
    module, stock = pair(MLP)
    unfuse(module)
    torch.set_default_dtype(dtype)
    try:
        assert len(fuse(module).fused) == 1
    finally:
        torch.set_default_dtype(torch.float32)
    check(module, stock)


@pytest.mark.parametrize("mode", ["torch.device('meta')", "torch.inference_mode()", "FakeTensorMode()"])
def test_imported_under_a_mode(mode):
    code = f"""
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
with {mode}:
    import epilogue.nn
import blocks
module = torch.nn.ModuleList([blocks.Plain().eval(), blocks.Gated(blocks.Other())])
x = torch.randn(3, 8)
expected = [m(x) for m in module]
report = epilogue.nn.fuse(module)
print(len(report.fused), all(torch.allclose(m(x), y, atol=1e-6) for m, y in zip(module, expected)))
print(epilogue.linear(x, module[0].fc1.weight, activation="gelu").device)
"""
    assert in_a_process(code) == "2 True\ncpu"


# --- E: the graph is as stock's


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler looks at it
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "make", [Res, lambda: Res(F.gelu), MLP, GLU, sequential, Stacked, Forwards.WrittenAfter, Forwards.Squeezed]
)
def test_compiled_in_one_graph(make, training):
    torch._dynamo.reset()
    module, stock = (m.train(training) for m in pair(make))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, X, module), run(stock, X), 1e-10)
    handle = module.get_submodule("0" if make is sequential else next(n for n, _ in module.named_children()))
    handle.register_forward_hook(lambda _m, args, y: 2 * y)
    torch._dynamo.reset()
    assert_same(compiled(X), module(X), 1e-10)
    torch._dynamo.reset()


# --- F: a made class is the class for all who ask


class Registered(MLP):
    registry: list = []  # noqa: RUF012

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        Registered.registry.append(cls)


class Abstract(MLP, metaclass=abc.ABCMeta):
    """One with a metaclass."""

    @abc.abstractmethod
    def nothing(self): ...


class Concrete(Abstract):
    def nothing(self): ...


class Meta(type):
    def __new__(mcs, name, bases, namespace, *, tag):
        return super().__new__(mcs, name, bases, namespace)


class Tagged(MLP, metaclass=Meta, tag="one"):
    """With a keyword for its metaclass."""


class OfT(MLP, Generic[T]):
    def forward(self, x: "T", scale: float = 1.0, *, shift: "float | None" = None) -> "T":
        """Its own words."""
        y = self.fc2(self.act(self.fc1(x))) * scale
        return y if shift is None else y + shift


class Defaults(MLP):
    def forward(self, x, seen=[], /, *, more={}):  # noqa: B006
        seen.append(1)
        return self.fc2(self.act(self.fc1(x)))


@pytest.mark.parametrize(
    "make", [*MAKES, Concrete, Tagged, OfT, OfT[int], Defaults, Forwards.Private, Forwards.Decorated]
)
def test_the_class_for_all_who_ask(make):
    module, stock = pair(make)
    cls, original = type(module), type(stock)
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(cls, name) == getattr(original, name)
        assert getattr(cls.forward, name) == getattr(original.forward, name)
        assert getattr(module.forward, name) == getattr(stock.forward, name)
    assert type(cls) is type(original)
    assert repr(cls) == repr(original)
    assert repr(module) == repr(stock)
    assert inspect.signature(cls) == inspect.signature(original)
    for actual, expected in ((cls.forward, original.forward), (module.forward, stock.forward)):
        assert inspect.signature(actual) == inspect.signature(expected)
        assert actual.__annotations__ == expected.__annotations__
        names = inspect.getfullargspec(actual)
        assert names == inspect.getfullargspec(expected)
    defaults, kwdefaults = original.forward.__defaults__ or (), original.forward.__kwdefaults__ or {}
    assert all(a is b for a, b in zip(cls.forward.__defaults__ or (), defaults, strict=True))
    assert all((cls.forward.__kwdefaults__ or {})[key] is value for key, value in kwdefaults.items())
    assert inspect.getsource(cls.forward) == inspect.getsource(original.forward)  # what torch.jit.script reads
    assert isinstance(module, original)
    assert issubclass(cls, original)
    assert getattr(cls, "__orig_bases__", None) == getattr(original, "__orig_bases__", None)


@pytest.mark.parametrize("make", MAKES)
def test_an_instance_holds_nothing_of_ours(make):
    """And children are of their own exact classes."""
    torch.manual_seed(0)
    module = make()
    module.register_forward_hook(lambda *args: None)
    before = {name: (type(m), dict(m.__dict__)) for name, m in module.named_modules()}
    keys, leaves = (
        list(module.state_dict()),
        {name: type(m) for name, m in module.named_modules() if not list(m.children())},
    )
    assert fuse(module).fused
    for name, m in module.named_modules():
        cls, attributes = before[name]
        assert m.__dict__.keys() == attributes.keys()
        assert all(m.__dict__[key] is value for key, value in attributes.items())
        assert isinstance(m, cls)
    assert {name: type(m) for name, m in module.named_modules() if not list(m.children())} == leaves
    assert list(module.state_dict()) == keys
    assert [name for name, _ in module.named_modules()] == list(before)


def test_a_registry_of_subclasses_sees_no_second_one():
    class Member(Registered):
        pass

    before = list(Registered.registry)
    module = nn.ModuleList([Member(), Member()])
    assert len(fuse(module).fused) == 2
    assert Registered.registry == before
    assert type(module[0]) is type(module[1])


class Hooked(MLP):
    def __init__(self):
        super().__init__()
        self.seen = []
        self.register_forward_pre_hook(lambda m, args: m.seen.append("pre"))
        self.register_forward_hook(lambda m, args, y: m.seen.append("forward"))
        self.register_full_backward_hook(lambda m, dx, dy: m.seen.append("backward"))


def test_hooks_of_the_module_and_its_mode():
    module, stock = pair(Hooked)
    assert module.seen == []
    check(module, stock)
    assert module.seen == stock.seen == ["pre", "forward", "backward"]
    for m in (module, stock):
        m.eval(), m.requires_grad_(False), m.float(), m.double(), m.train()
    assert module.training
    check(module, stock)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch's own making
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("make", [MLP, Res, GLU, Forwards.Scaled, OfT])
def test_export_by_the_arguments_name(make, strict):
    module, stock = (m.eval() for m in pair(make))
    program = torch.export.export(module, (X,), dynamic_shapes={"x": {0: torch.export.Dim("n")}}, strict=strict)
    x = torch.randn(9, 8).double()
    assert_same(program.module()(x), stock(x), 1e-11)


# --- other libraries, and what of torch looks into modules

LIBRARY = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32,
    "max_position_embeddings": 16, "dim": 16, "hidden_dim": 24, "n_layers": 1, "n_heads": 2, "embedding_size": 16, "pad_token_id": 0,
}  # fmt: skip


def one_mlp(out=8):
    """A PreTrainedModel that is one MLP."""
    transformers = pytest.importorskip("transformers")

    class Top(transformers.PreTrainedModel):
        config_class = transformers.PretrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.fc1, self.act, self.fc2 = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
            self.post_init()

        def forward(self, x):
            return self.fc2(self.act(self.fc1(x)))

    return Top(transformers.PretrainedConfig())


def of_transformers(name):
    transformers = pytest.importorskip("transformers")
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    return cls(cls.config_class(**SMALL))


@LIBRARY
@pytest.mark.parametrize(
    "name", ["Top", "DistilBertForMaskedLM", "BertForMaskedLM", "LlamaForCausalLM", "ElectraForPreTraining"]
)
def test_a_models_config_names_its_class(name, tmp_path):
    module = one_mlp() if name == "Top" else of_transformers(name)
    columns = inspect.signature(module.forward).parameters
    assert fuse(module).fused
    assert inspect.signature(module.forward).parameters == columns  # by which Trainer picks a dataset's
    module.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [name]
    assert type(module).__name__ == name


@LIBRARY
def test_electras_head_has_its_shape():
    module, stock = pair(lambda: of_transformers("ElectraForPreTraining"))
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    for m in (module, stock):
        m.eval()
    assert_as_stock(module, stock, lambda m: m(input_ids=ids, labels=ids % 2, return_dict=False))
    assert module(ids).logits.shape == (2, 3)


def test_accelerate_finds_a_class_by_name():
    utils = pytest.importorskip("accelerate.utils.dataclasses")
    module = nn.ModuleDict({"res": Res(), "mlp": MLP()})
    fuse(module)
    for name, cls in (("MLP", MLP), ("Res", Res)):
        found = utils.get_module_class_from_name(module, name)
        assert found is not None
        assert issubclass(found, cls)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_with_a_padding_mask(training, grad, norm_first):
    """In evaluation, without gradients, torch's layers run on nested tensors by a kernel of their own."""

    def encoder():
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=norm_first)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)

    module, stock = (m.train(training) for m in pair(encoder))
    x, mask = torch.randn(3, 5, 8).double(), torch.arange(5) >= torch.tensor([[5], [3], [2]])
    with torch.set_grad_enabled(grad):
        expected = stock(x, src_key_padding_mask=mask)
        assert_same(module(x, src_key_padding_mask=mask), expected, 1e-11)


class Attending(nn.Module):
    """Beside an attention, whose own projection is read rather than called."""

    def __init__(self):
        super().__init__()
        self.attn, self.act = nn.MultiheadAttention(8, 2, batch_first=True), nn.GELU()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        y, weights = self.attn(x, x, x)
        y = y + self.act(self.attn.out_proj(x))
        return y + self.fc2(self.act(self.fc1(y))), weights


@pytest.mark.parametrize("training", [False, True])
def test_the_neighbours_of_an_attention(training):
    module, stock = (m.train(training) for m in pair(Attending))
    check(module, stock, X[None])
    with torch.no_grad():
        assert_as_stock(module, stock, lambda m: m(X[None]))


@pytest.mark.parametrize("make", MAKES)
def test_global_hooks_see_every_call(make):
    seen = ([], [])
    for module, found in zip((m.eval() for m in pair(make)), seen, strict=True):
        for kind in ("forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook"):
            register = getattr(nn.modules.module, f"register_module_{kind}")
            handle = register(lambda m, *args, found=found, kind=kind: found.append((kind, type(m).__name__)))
            try:
                run(module, X[None])
            finally:
                handle.remove()
    assert ("full_backward_hook", "Linear") in seen[1]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("make", [Res, MLP, GLU, sequential])
def test_flops_are_counted_as_stock(make):
    counts = []
    for module in pair(make):
        with FlopCounterMode(display=False) as counter:
            module(X).sum().backward()
        counts.append((counter.get_total_flops(), counter.get_flop_counts()))
    assert counts[0] == counts[1]
    assert counts[1][0] > 0


@pytest.mark.parametrize("make", [Res, MLP, GLU, Packed, sequential])
def test_function_transforms(make):
    module, stock = (m.eval() for m in pair(make))
    torch.manual_seed(3)
    others = {name: torch.randn_like(p) for name, p in stock.named_parameters()}

    def loss(parameters, x, m):
        return torch.func.functional_call(m, parameters, (x,)).square().sum()

    def found(m):
        rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, None))(others, X, m)
        return torch.func.functional_call(m, others, (X,)), torch.func.grad(loss)(others, X, m), rows

    assert_same(found(module), found(stock), 1e-9)
    check(module, stock)


@pytest.mark.parametrize("make", [Res, MLP, sequential])
def test_an_average_of_models(make):
    results = []
    for module in pair(make):
        average = AveragedModel(module)
        for n in range(3):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(n)
            average.update_parameters(module)
        results.append((run(average), run(module)))
        unfuse(average)
        results[-1] += (run(average),)
    assert_same(*results)


@pytest.mark.parametrize("make", [Res, MLP, lambda: Res(F.gelu)])
def test_a_parametrization_comes_and_goes(make):
    module, stock = pair(make)
    for m in (module, stock):
        parametrize.register_parametrization(m.fc1, "weight", Twice())
    check(module, stock)
    assert list(module.state_dict()) == list(stock.state_dict())
    for m in (module, stock):
        parametrize.remove_parametrizations(m.fc1, "weight")
    assert type(module.fc1) is type(stock.fc1)
    check(module, stock)
    unfuse(module)
    check(module, stock)


def test_the_class_itself_stays(counted):
    """Other instances are none of ours, and nor are subclasses that are made, or called, later."""
    before = {cls: dict(vars(cls)) for cls in (MLP, Forwards.Scaled, nn.Sequential, nn.Linear, nn.GELU)}
    module, stock = pair(lambda: nn.ModuleDict({"a": MLP(), "b": MLP(), "c": Forwards.Scaled(), "d": sequential()}))
    unfuse(module)
    fuse(module, include=["a", "d"])
    counted.clear()
    for name in ("b", "c"):
        check(module[name], stock[name])
        assert type(module[name]) is type(stock[name])
    assert counted == []
    module["a"](X), module["d"](X)
    assert counted
    unfuse(module["a"])
    check(module["d"], stock["d"])
    for cls, attributes in before.items():
        assert vars(cls).keys() == attributes.keys()
        assert all(vars(cls)[name] is value for name, value in attributes.items())


@pytest.mark.parametrize("make", MAKES)
def test_nothing_keeps_a_module_alive(make):
    module = make()
    fuse(module)
    module(torch.randn(1, 5, 8))
    seen = weakref.ref(module)
    del module
    gc.collect()
    assert seen() is None


class PassingDispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class PassingFunction(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "mode", [PassingDispatch, PassingFunction, functools.partial(torch.device, "cpu"), torch.inference_mode]
)
@pytest.mark.parametrize("make", [Res, MLP, GLU, Packed, sequential])
def test_called_under_a_mode(make, mode):
    module, stock = (m.eval() for m in pair(make))
    with mode():
        assert_as_stock(module, stock, lambda m: m(X))
        if mode is not torch.inference_mode:
            check(module, stock)


@pytest.mark.parametrize(
    "script", [torch.jit.script, functools.partial(torch.jit.trace, example_inputs=X)], ids=["script", "trace"]
)
@pytest.mark.parametrize("make", [MLP, GLU, sequential, lambda: MLP(nn.Tanh())])
def test_torch_script(make, script):
    module, stock = (m.eval() for m in pair(make))
    scripted = script(module)
    assert_same(scripted(X), stock(X))
    unfuse(module)
    assert_same(scripted(X), stock(X))


def test_threads():
    """Calls at the same time, of a module that is hooked and unhooked meanwhile."""
    module, stock = (m.eval() for m in pair(Res))
    expected, found = stock(X), []

    def calls():
        with contextlib.suppress(Exception):
            for _ in range(20):
                found.append((module(X) - expected).abs().max().item())

    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        module.fc1.register_forward_hook(lambda *args: None).remove()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert max(found) < 1e-12
