"""The blocks that the tests of `fuse` are about, as models have them."""

import functools

import torch
import torch.nn.functional as F
from torch import nn


class Gated(nn.Module):
    def __init__(self, act=None, bias=False, d=8, hidden=12):
        super().__init__()
        self.down_proj = nn.Linear(hidden, d, bias)
        self.one, self.two = nn.Linear(d, hidden, bias), nn.Linear(d, hidden, bias)
        self.act_fn = act or nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.two(x)) * self.one(x))


class Packed(nn.Module):
    def __init__(self, second=False, bias=True):
        super().__init__()
        self.second = second
        self.w1, self.w2 = nn.Linear(8, 24, bias), nn.Linear(12, 8, bias)
        self.act, self.drop = nn.GELU("tanh"), nn.Dropout(0.1)

    def forward(self, x):
        a, b = self.w1(x).chunk(2, -1)
        gate, up = (b, a) if self.second else (a, b)
        return self.w2(self.drop(up * self.act(gate)))


class Plain(nn.Module):
    def __init__(self, act=F.gelu, between=0.1, after=0.2):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)
        self.activation = act
        self.after, self.between = nn.Dropout(after), nn.Dropout(between)

    def forward(self, hidden_states):
        return self.after(self.fc2(self.between(self.activation(self.fc1(hidden_states)))))


class Layer(nn.Module):
    """A block with more in it; forward wants a mask."""

    def __init__(self, act=F.relu):
        super().__init__()
        self.attention, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)
        self.activation_fn = act

    def forward(self, x, mask):
        x = x + self.attention(self.norm(x))
        return x + self.fc2(F.dropout(self.activation_fn(self.fc1(x)), 0.1, self.training))


class Dense(nn.Module):
    def __init__(self, act=None):
        super().__init__()
        self.dense, self.activation = nn.Linear(8, 8), act or nn.Tanh()

    def forward(self, x):
        return self.activation(self.dense(x[:, 0]))


class Other(nn.Module):
    """Somebody's own class for an activation that the catalogue has under another name."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


def sequential():
    return nn.Sequential(
        nn.LayerNorm(8), nn.Linear(8, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 8), nn.Dropout(0.2),
        nn.Linear(8, 6), nn.LeakyReLU(0.2), nn.Linear(6, 8),
    )  # fmt: skip


class VisionMLP(nn.Sequential):
    """As torchvision's: a class of its own that builds what nn.Sequential calls."""

    def __init__(self):
        super().__init__(nn.Linear(8, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, 8), nn.Dropout(0.2))


class Stacked(nn.Module):
    """One activation behind several layers, which it is called for in turn."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 8)
        self.layers = nn.ModuleList([nn.Linear(12, 12), nn.Linear(12, 12)])
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.act(self.first(x))
        for layer in self.layers:
            x = self.act(layer(x))
        return self.last(x)


BLOCKS = {
    "gated": (Gated, "gated", "silu"),
    "gated, bias, own class": (lambda: Gated(Other(), True), "gated", "quick_gelu"),
    "gated, features as hidden": (lambda: Gated(d=12), "gated", "silu"),
    "gated, prelu": (lambda: Gated(nn.PReLU()), "gated", "prelu"),
    "packed": (Packed, "gated packed", "gelu_tanh"),
    "packed, gate second": (lambda: Packed(True, False), "gated packed", "gelu_tanh"),
    "plain": (Plain, "plain", "gelu"),
    "plain, partial": (lambda: Plain(functools.partial(F.leaky_relu, negative_slope=0.3)), "plain", "leaky_relu"),
    "plain, no dropout": (lambda: Plain(nn.ELU(0.5), 0.0, 0.0), "plain", "elu"),
    "layer": (Layer, "plain", "relu"),
    "layer, module": (lambda: Layer(nn.Mish()), "plain", "mish"),
    "dense": (Dense, "linear + activation", "tanh"),
    "sequential": (sequential, "sequential", "relu, leaky_relu"),
    "sequential of a class": (VisionMLP, "sequential", "gelu"),
    "one activation for several": (Stacked, "linear + activation", "relu"),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), "plain", "relu"),
    "encoder layer, gelu": (
        lambda: nn.TransformerEncoderLayer(8, 2, 12, activation="gelu"),
        "plain",
        "gelu",
    ),
    "decoder layer": (lambda: nn.TransformerDecoderLayer(8, 2, 12), "plain", "relu"),
}


def block(name):
    torch.manual_seed(0)
    return BLOCKS[name][0]().double()


def call(module, x):
    torch.manual_seed(7)
    others = {Layer: 1, nn.TransformerDecoderLayer: 1}
    cls = next((cls for cls in others if isinstance(module, cls)), None)
    return module(x, *([x] if cls else []))


def trained(module, x):
    """[y, gradients of x and of the parameters]."""
    x = x.clone().requires_grad_()
    y = call(module, x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


class LoRA(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base, self.a, self.b = base, nn.Linear(8, 2, dtype=torch.float64), nn.Linear(2, 12, dtype=torch.float64)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


class Twice(nn.Module):
    def forward(self, weight):
        return 2.0 * weight
