"""Modules made up for the tests of `fuse`: all that a forward may say beside the expressions that are fused."""

import contextlib
import functools
import types
from typing import Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from blocks import Packed, Stacked, VisionMLP

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


def swished(beta):
    class Swish(nn.Module):
        def __init__(self):
            super().__init__()
            self.beta = beta

        def forward(self, x):
            return x * torch.sigmoid(self.beta * x)

    return Swish()


def raising(*args):
    raise RuntimeError("do not look")


class OfT(MLP, Generic[T]):
    def forward(self, x: "T", scale: float = 1.0, *, shift: "float | None" = None) -> "T":
        """Its own words."""
        y = self.fc2(self.act(self.fc1(x))) * scale
        return y if shift is None else y + shift
