"""Blocks whose forward spells its activation out, written anew in the manner of public models, and what one call of each runs fused; then
siblings that look alike and are something else.

No two of the blocks are written alike. Annotations stay strings and name what is not imported: a forward that is compiled again must not
ask for it.
"""
# ruff: noqa: RET504  as such models are written

from __future__ import annotations

import contextlib
import functools
import math
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import silu

if TYPE_CHECKING:
    from torch import Tensor

UP, DOWN, TWO = (8, 12), (12, 8), (8, 24)


class Block(NamedTuple):
    make: Callable[[], nn.Module]
    operations: tuple[str, ...]
    """What runs fused in one call, in order."""
    activation: str
    """Its name in the catalogue."""


BLOCKS: dict[str, Block] = {}
SIBLINGS: dict[str, tuple[Callable[[], nn.Module], tuple[list[str], ...]]] = {}
"""name -> (how it is made, what may run fused in one call: any of these)."""


def runs(*operations, activation, **options):
    """The class, made with these options, is a block."""

    def registered(cls):
        name = " ".join([cls.__name__, *(f"{key}={value}" for key, value in options.items())])
        BLOCKS[name] = Block(functools.partial(cls, **options), operations, activation)
        return cls

    return registered


def alike(*allowed):
    """The class is a sibling."""

    def registered(cls):
        SIBLINGS[cls.__name__] = (cls, allowed)
        return cls

    return registered


class Layers(nn.Module):
    """Linear layers by their names and sizes."""

    def __init__(self, bias=True, **sizes):
        super().__init__()
        for name, (in_features, out_features) in sizes.items():
            setattr(self, name, nn.Linear(in_features, out_features, bias))


class Two(Layers):
    def __init__(self):
        super().__init__(fc1=UP, fc2=DOWN)


class Three(Layers):
    def __init__(self):
        super().__init__(False, w1=UP, w3=UP, w2=DOWN)


# Gate and up are layers of their own: gpt-fast, torchtitan, litgpt, T5, timm.


@runs("gated_mlp", activation="silu")
class FeedForward(Three):
    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


@runs("gated_mlp", activation="silu")
class SpelledOutFeedForward(Three):
    def forward(self, x):
        return self.w2(self.w3(x) * torch.nn.functional.silu(self.w1(x)))


@runs("gated_mlp", activation="silu")
class LLaMAMLP(Layers):
    def __init__(self):
        super().__init__(fc_1=UP, fc_2=UP, proj=DOWN)
        self.config = SimpleNamespace(gelu_approximate="tanh")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_fc_1 = self.fc_1(x)
        x_fc_2 = self.fc_2(x)
        x = torch.nn.functional.silu(x_fc_1) * x_fc_2
        return self.proj(x)


@runs("gated_mlp", activation="gelu_tanh")
class GemmaMLP(LLaMAMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_fc_1 = self.fc_1(x)
        x_fc_2 = self.fc_2(x)
        x = torch.nn.functional.gelu(x_fc_1, approximate=self.config.gelu_approximate) * x_fc_2
        return self.proj(x)


@runs("gated_mlp", activation="silu")
class NormedFeedForward(Three):
    """The block of a model, with the norm and the residual that stand around."""

    def __init__(self):
        super().__init__()
        self.ffn_norm, self.wo = nn.RMSNorm(8), nn.Linear(8, 8)

    def forward(self, x, start_pos=0, mask=None):
        h = x + self.wo(x)
        normed = self.ffn_norm(h)
        gate, up = self.w1(normed), self.w3(normed)
        return h + self.w2(silu(gate) * up)


@runs("gated_mlp", activation="gelu_tanh")
class T5DenseGatedActDense(Layers):
    def __init__(self):
        super().__init__(False, wi_0=UP, wi_1=UP, wo=DOWN)
        self.dropout, self.act = nn.Dropout(0.2), functools.partial(F.gelu, approximate="tanh")

    def forward(self, hidden_states):
        hidden_gelu = self.act(self.wi_0(hidden_states))
        hidden_linear = self.wi_1(hidden_states)
        hidden_states = hidden_gelu * hidden_linear
        hidden_states = self.dropout(hidden_states)
        return self.wo(hidden_states)


@runs("gated_mlp", activation="silu")
class GateBySigmoid(Three):
    def forward(self, x):
        g = self.w1(x)
        return self.w2(g * g.sigmoid() * self.w3(x))


@runs("gated_mlp", activation="sigmoid")
class SigmoidGate(Three):
    def forward(self, x):
        return self.w2(torch.mul(torch.sigmoid(self.w1(x)), self.w3(x)))


@runs("gated_mlp", activation="relu_squared")
class SquaredGate(Three):
    def forward(self, x):
        gate = self.w1(x).relu().square()
        return self.w2(F.dropout(gate * self.w3(x), p=0.3, training=self.training))


@runs("gated_mlp", activation="silu")
class InFullPrecision(Three):
    def forward(self, x):
        with torch.autocast(device_type=x.device.type, enabled=False):
            x = x.double()
            return self.w2(F.silu(self.w1(x)) * self.w3(x))


@runs("glu", activation="silu")
class SwiGLUWithNorm(Layers):
    def __init__(self):
        super().__init__(fc1_g=UP, fc1_x=UP, fc2=DOWN)
        self.act, self.drop1, self.norm, self.drop2 = nn.SiLU(), nn.Dropout(0.1), nn.LayerNorm(12), nn.Dropout(0.1)

    def forward(self, x):
        x_gate = self.fc1_g(x)
        x = self.fc1_x(x)
        x = self.act(x_gate) * x
        x = self.drop1(x)
        x = self.norm(x)
        x = self.fc2(x)
        x = self.drop2(x)
        return x


@runs("glu", activation="sigmoid")
class GatedUnit(Layers):
    """Without a layer behind it, as in a gated recurrent network."""

    def __init__(self):
        super().__init__(to_gate=UP, to_value=UP)

    def forward(self, x):
        return self.to_gate(x).sigmoid() * self.to_value(x)


# Gate and up are halves of one layer: DINOv2, diffusers, x-transformers, Phi, ModernBERT.


@runs("gated_mlp", activation="silu")
class SwiGLUFFN(Layers):
    def __init__(self):
        super().__init__(w12=TWO, w3=DOWN)

    def forward(self, x: Tensor) -> Tensor:
        x12 = self.w12(x)
        x1, x2 = x12.chunk(2, dim=-1)
        hidden = F.silu(x1) * x2
        return self.w3(hidden)


@runs("glu", activation="gelu")
class GEGLU(Layers):
    def __init__(self):
        super().__init__(proj=TWO)

    def gelu(self, gate: Tensor) -> Tensor:
        return F.gelu(gate)

    def forward(self, hidden_states, *args, **kwargs):
        hidden_states, gate = self.proj(hidden_states).chunk(2, dim=-1)
        return hidden_states * self.gelu(gate)


@runs("glu", activation="silu")
class SwiGLU(Layers):
    def __init__(self):
        super().__init__(proj=TWO)
        self.activation = nn.SiLU()

    def forward(self, hidden_states):
        hidden_states = self.proj(hidden_states)
        hidden_states, gate = hidden_states.chunk(2, dim=-1)
        return hidden_states * self.activation(gate)


@runs("glu", activation="gelu")
class ListOfModules(nn.Module):
    """The first of them a gated one, called in a loop."""

    def __init__(self):
        super().__init__()
        self.net = nn.ModuleList([GEGLU(), nn.Dropout(0.1), nn.Linear(12, 8)])

    def forward(self, hidden_states):
        for module in self.net:
            hidden_states = module(hidden_states)
        return hidden_states


@runs("glu", activation="silu")
class GLUWithMultBias(Layers):
    def __init__(self):
        super().__init__(proj=TWO)
        self.act, self.mult_bias = nn.SiLU(), nn.Parameter(torch.linspace(0.5, 1.5, 12))

    def forward(self, x):
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * self.act(gate) * self.mult_bias


@runs("gated_mlp", activation="gelu")
class TorchChunk(Layers):
    def __init__(self):
        super().__init__(Wi=TWO, Wo=DOWN)
        self.act, self.drop = nn.GELU(), nn.Dropout(0.1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        input, gate = torch.chunk(self.Wi(hidden_states), 2, dim=-1)
        return self.Wo(self.drop(self.act(input) * gate))


@runs("gated_mlp", activation="silu")
class UpThenGate(Layers):
    def __init__(self):
        super().__init__(False, gate_up_proj=TWO, down_proj=DOWN)
        self.activation_fn = F.silu

    def forward(self, hidden_states):
        up_states = self.gate_up_proj(hidden_states)
        up_states, gate = up_states.chunk(2, -1)
        up_states = up_states * self.activation_fn(gate)
        return self.down_proj(up_states)


@runs("gated_mlp", activation="silu")
class SplitBySize(Layers):
    def __init__(self):
        super().__init__(gate_up=TWO, down=DOWN)
        self.hidden_dim = 12

    def forward(self, x):
        gate, up = self.gate_up(x).split(self.hidden_dim, dim=-1)
        return self.down(F.silu(gate) * up)


@runs("gated_mlp", activation="relu")
class TorchSplit(Layers):
    def __init__(self):
        super().__init__(c_fc=TWO, c_proj=DOWN)

    def forward(self, x):
        fused = self.c_fc(x)
        up, gate = torch.split(fused, [12, 12], dim=-1)
        return self.c_proj(F.relu(gate) * up)


@runs("gated_mlp", activation="silu")
class Slices(Layers):
    def __init__(self):
        super().__init__(w13=TWO, w2=DOWN)
        self.n = 12

    def forward(self, x):
        y = self.w13(x)
        return self.w2(F.silu(y[..., : self.n]) * y[..., self.n :])


@runs("gated_mlp", activation="gelu")
class SlicesGateSecond(Layers):
    def __init__(self):
        super().__init__(up=TWO, down=DOWN)

    def forward(self, x):
        h = self.up(x)
        h = h[..., :12] * F.gelu(h[..., 12:])
        return self.down(h)


@runs("gated_mlp", activation="glu_gate_last")
class FunctionalGLU(Layers):
    def __init__(self):
        super().__init__(fc1=TWO, fc2=DOWN)

    def forward(self, x):
        return self.fc2(F.glu(self.fc1(x), dim=-1))


@runs("glu", activation="glu_gate_last")
class GLUAlone(Layers):
    def __init__(self):
        super().__init__(qkv=TWO)

    def forward(self, x):
        return F.glu(self.qkv(x)).mean(1)


@runs("gated_mlp", activation="glu_gate_last")
class ChildGLU(Layers):
    def __init__(self):
        super().__init__(pointwise_in=TWO, pointwise_out=DOWN)
        self.norm, self.glu, self.dropout = nn.LayerNorm(8), nn.GLU(), nn.Dropout(0.1)

    def forward(self, x):
        return x + self.pointwise_out(self.dropout(self.glu(self.pointwise_in(self.norm(x)))))


@runs("gated_mlp", activation="glu_gate_last")
class SequentialGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.ff = nn.Sequential(nn.Linear(8, 24), nn.GLU(dim=-1), nn.Dropout(0.1), nn.Linear(12, 8))

    def forward(self, x):
        return self.ff(x) + x


# Plain, the activation a child or an attribute: nanoGPT, DINOv2, open_clip, DETR.


@runs("mlp", activation="gelu")
class NanoMLP(Layers):
    def __init__(self):
        super().__init__(c_fc=UP, c_proj=DOWN)
        self.gelu, self.dropout = nn.GELU(), nn.Dropout(0.2)

    def forward(self, x):
        x = self.c_fc(x)
        x = self.gelu(x)
        x = self.c_proj(x)
        x = self.dropout(x)
        return x


@runs("mlp", activation="gelu")
class Mlp(Two):
    """One dropout in two places."""

    def __init__(self):
        super().__init__()
        self.act, self.drop = nn.GELU(), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = self.act(x)
        x = self.drop(x)
        x = self.fc2(x)
        x = self.drop(x)
        return x


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor):
        return x * torch.sigmoid(1.702 * x)


@runs("mlp", activation="quick_gelu")
class ResidualAttentionBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_2, self.gamma = nn.LayerNorm(8), nn.Parameter(torch.full((8,), 0.3))
        layers = [("c_fc", nn.Linear(8, 12)), ("gelu", QuickGELU()), ("c_proj", nn.Linear(12, 8))]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x):
        return x + self.gamma * self.mlp(self.ln_2(x))


@runs("linear", activation="relu_squared")
class PostActivationNorm(nn.Module):
    class ReluSquared(nn.Module):
        def forward(self, x):
            return F.relu(x) ** 2

    def __init__(self):
        super().__init__()
        project_in = nn.Sequential(nn.Linear(8, 12), self.ReluSquared())
        self.ff = nn.Sequential(project_in, nn.LayerNorm(12), nn.Dropout(0.1), nn.Linear(12, 8))

    def forward(self, x):
        return self.ff(x)


@runs("mlp", activation="relu_squared")
class LambdaAsAttribute(Two):
    def __init__(self):
        super().__init__()
        self.activation = lambda t: F.relu(t).square()

    def forward(self, x):
        return self.fc2(self.activation(self.fc1(x)))


@runs("mlp", activation="silu")
class PrivateNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.__up, self.__down, self.__act = nn.Linear(8, 12), nn.Linear(12, 8), nn.SiLU()

    def forward(self, x):
        return self.__down(self.__act(self.__up(x)))


@runs("mlp", activation="silu")
class ByIndex(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 12), nn.Linear(12, 8)])

    def forward(self, x):
        return self.layers[1](F.silu(self.layers[0](x)))


@runs("mlp", activation="gelu")
class ChildrenOfAChild(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_2 = nn.LayerNorm(8)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(8, 12), "c_proj": nn.Linear(12, 8), "act": nn.GELU()})

    def forward(self, x):
        return x + self.mlp.c_proj(self.mlp.act(self.mlp.c_fc(self.ln_2(x))))


@runs("linear", "linear", activation="relu")
class ListOfLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_layers, h = 3, [12, 12]
        self.layers = nn.ModuleList(nn.Linear(n, k) for n, k in zip([8, *h], [*h, 4], strict=True))

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(x)) if i < self.num_layers - 1 else layer(x)
        return x


@runs("mlp", "mlp", activation="gelu")
class PairsOfLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.ups, self.downs = (nn.ModuleList(nn.Linear(*size) for _ in range(2)) for size in (UP, DOWN))

    def forward(self, x):
        for up, down in zip(self.ups, self.downs, strict=True):
            x = x + down(F.gelu(up(x)))
        return x


# Plain, the activation a function: litgpt, nanochat, fairseq.


@runs("mlp", activation="gelu_tanh")
class GptNeoxMLP(Layers):
    def __init__(self):
        super().__init__(fc=UP, proj=DOWN)
        self.config = SimpleNamespace(gelu_approximate="tanh")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x)
        x = torch.nn.functional.gelu(x, approximate=self.config.gelu_approximate)
        x = self.proj(x)
        return x


@runs("mlp", activation="relu_squared")
class NanochatMLP(Layers):
    def __init__(self):
        super().__init__(False, c_fc=UP, c_proj=DOWN)

    def forward(self, x):
        x = self.c_fc(x)
        x = F.relu(x).square()
        x = self.c_proj(x)
        return x


@runs("mlp", activation="relu_squared")
class TorchPow(Two):
    def forward(self, x):
        return self.fc2(torch.pow(F.relu(self.fc1(x)), 2))


@runs("mlp", activation="relu_squared")
class PowerOfTwo(Two):
    def forward(self, x):
        h = F.relu(self.fc1(x), inplace=True) ** 2
        return self.fc2(h)


@runs("mlp", activation="relu")
class Method(Two):
    def forward(self, x):
        return self.fc2(self.fc1(x).relu())


@runs("mlp", activation="relu")
class TorchRelu(Two):
    def forward(self, x):
        b, t, _ = x.shape
        return self.fc2(torch.relu(self.fc1(x.flatten(0, 1)))).view(b, t, -1)


@runs("mlp", activation="gelu")
class FunctionalDropout(Two):
    def __init__(self):
        super().__init__()
        self.activation_fn, self.activation_dropout, self.final_layer_norm = F.gelu, 0.3, nn.LayerNorm(8)

    def forward(self, x):
        residual = x
        x = self.final_layer_norm(x)
        x = self.activation_fn(self.fc1(x))
        x = F.dropout(x, self.activation_dropout, self.training)
        x = self.fc2(x)
        return residual + x


@runs("mlp", activation="gelu")
class ResidualInside(Two):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


@runs("mlp", activation="gelu_tanh")
class Keywords(Two):
    def forward(self, x, *, scale: float = 0.5, residual: Tensor | None = None):
        out = self.fc2(input=F.gelu(input=self.fc1(input=x), approximate="tanh"))
        out *= scale
        return out if residual is None else out + residual


@runs("mlp", activation="leaky_relu")
class Slope(Two):
    def forward(self, x):
        hidden: Tensor = F.leaky_relu(self.fc1(x), 0.2)
        return self.fc2(hidden)


@runs("mlp", "mlp", "mlp", activation="gelu")
class WeightsTied(Two):
    def forward(self, x):
        for _ in range(3):
            x = x + self.fc2(F.gelu(self.fc1(x)))
        return x


@runs("mlp", "mlp", activation="silu")
class Macaron(Layers):
    def __init__(self):
        super().__init__(up_1=UP, down_1=DOWN, up_2=UP, down_2=DOWN)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        x = x + 0.5 * self.down_1(F.silu(self.up_1(x)))
        x = self.norm(x)
        return x + 0.5 * self.down_2(F.silu(self.up_2(x)))


# Plain, the activation a formula: nanoGPT's first, open_clip, BERT's.


@runs("mlp", activation="silu")
class Swish(Two):
    def forward(self, x):
        z = self.fc1(x)
        return self.fc2(z * torch.sigmoid(z))


@runs("mlp", activation="quick_gelu")
class QuickGELUInline(Layers):
    def __init__(self):
        super().__init__(c_fc=UP, c_proj=DOWN)

    def forward(self, x):
        h = self.c_fc(x)
        h = h * torch.sigmoid(1.702 * h)
        return x + self.c_proj(h)


@runs("mlp", activation="gelu_tanh")
class TanhGELUInline(Layers):
    def __init__(self):
        super().__init__(c_fc=UP, c_proj=DOWN)

    def forward(self, x):
        x = self.c_fc(x)
        x = 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))
        return self.c_proj(x)


@runs("mlp", activation="gelu")
class ErfGELUInline(Two):
    def forward(self, x):
        h = self.fc1(x)
        h = h * 0.5 * (1.0 + torch.erf(h / math.sqrt(2.0)))
        return self.fc2(h)


def new_gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


@runs("mlp", activation="gelu_tanh")
class FunctionOfTheModule(Two):
    def forward(self, x):
        return self.fc2(new_gelu(self.fc1(x)))


# A linear layer and an activation before something else: BERT, diffusers, Mamba.


@runs("linear", activation="gelu")
class Intermediate(Layers):
    def __init__(self):
        super().__init__(dense=UP)
        self.intermediate_act_fn = F.gelu

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.dense(hidden_states)
        hidden_states = self.intermediate_act_fn(hidden_states)
        return hidden_states


@runs("linear", activation="tanh")
class Pooler(Layers):
    def __init__(self):
        super().__init__(dense=(8, 8))

    def forward(self, hidden_states):
        return self.dense(hidden_states[:, 0]).tanh()


@runs("linear", activation="gelu_tanh")
class GELU(Layers):
    """The activation a method, with a branch for a device."""

    def __init__(self):
        super().__init__(proj=UP)
        self.approximate = "tanh"

    def gelu(self, gate: Tensor) -> Tensor:
        if gate.device.type != "mps":
            return F.gelu(gate, approximate=self.approximate)
        return F.gelu(gate.to(dtype=torch.float32), approximate=self.approximate).to(dtype=gate.dtype)

    def forward(self, hidden_states):
        hidden_states = self.proj(hidden_states)
        hidden_states = self.gelu(hidden_states)
        return hidden_states


@runs("linear", activation="quick_gelu")
class ApproximateGELU(Layers):
    def __init__(self):
        super().__init__(proj=UP)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return x * torch.sigmoid(1.702 * x)


@runs("linear", activation="silu")
class BeforeANorm(Layers):
    def __init__(self):
        super().__init__(proj=(16, 12), head=DOWN)
        self.norm = nn.LayerNorm(12)

    def forward(self, x):
        h = F.silu(self.proj(torch.cat([x, x.flip(1)], dim=-1)))
        return self.head(self.norm(h))


@runs("linear", activation="sigmoid")
class SqueezeAndExcite(Layers):
    def __init__(self):
        super().__init__(gate=(8, 8))

    def forward(self, x):
        return x * torch.sigmoid(self.gate(x.mean(1, keepdim=True)))


@runs("linear", activation="softplus")
class TimeStep(Layers):
    def __init__(self):
        super().__init__(dt_proj=UP)
        self.A_log = nn.Parameter(torch.zeros(12))

    def forward(self, x):
        dt = F.softplus(self.dt_proj(x))
        return torch.exp(-dt * self.A_log.exp())


@runs("mlp", activation="leaky_relu")
class SlopeOfTheCall(Two):
    """A number that only the call knows."""

    def forward(self, x, slope=0.3):
        return self.fc2(F.leaky_relu(self.fc1(x), slope))


@runs("mlp", activation="gelu")
class IdleDropout(Two):
    """Between the layer and its activation, where it may only stand as long as it drops nothing."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        h = self.fc1(x)
        h = self.dropout(h)
        h = F.gelu(h)
        return self.fc2(h)


@runs("linear", activation="gelu")
class DropoutThatMayBeNone(Two):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        h = F.gelu(self.fc1(x))
        if self.dropout is not None:
            h = self.dropout(h)
        return self.fc2(h)


# What stands around the expression: branches, classes, decorators, scopes.


@runs("gated_mlp", activation="silu", gated=True)
@runs("mlp", activation="gelu", gated=False)
class EarlyReturn(Three):
    def __init__(self, gated):
        super().__init__()
        self.gated = gated

    def forward(self, x):
        if self.gated:
            return self.w2(F.silu(self.w1(x)) * self.w3(x))
        return self.w2(F.gelu(self.w1(x)))


@runs("mlp", activation="gelu")
class SqueezedHead(ResidualInside):
    def forward(self, x):
        return super().forward(x).unsqueeze(1).squeeze(1)


@runs("mlp", activation="gelu")
class ScaledAdapter(ResidualInside):
    scale = 0.25

    def forward(self, x):
        return super(ScaledAdapter, self).forward(x) * self.scale  # noqa: UP008  the older spelling


@runs("mlp", activation="relu")
class EncoderLayer(Layers):
    def __init__(self):
        super().__init__(linear1=UP, linear2=DOWN)
        self.norm2, self.activation = nn.LayerNorm(8), F.relu
        self.dropout, self.dropout2 = nn.Dropout(0.1), nn.Dropout(0.2)

    def forward(self, src, src_mask=None):
        x = src
        x = x + self._ff_block(self.norm2(x))
        return x

    def _ff_block(self, x: Tensor) -> Tensor:
        x = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return self.dropout2(x)


def checked(forward):
    @functools.wraps(forward)
    def wrapper(self, x, *args, **kwargs):
        if x.shape[-1] != 8:
            raise ValueError("8 features")
        return 2.0 * forward(self, x, *args, **kwargs)

    return wrapper


@runs("mlp", activation="gelu")
class Decorated(Two):
    @checked
    def forward(self, x, scale=1.0):
        return self.fc2(F.gelu(self.fc1(x))) * scale


@runs("mlp", activation="gelu")
class Teacher(Two):
    @torch.no_grad()
    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))


def made(act, scale):
    class Closure(Two):
        def forward(self, x):
            return scale * self.fc2(act(self.fc1(x)))

    return Closure


runs("mlp", activation="silu")(made(F.silu, 0.5))


@runs("mlp", activation="gelu")
class Walrus(Two):
    def __init__(self):
        super().__init__()
        self.norm, self.layer_scale = nn.LayerNorm(8), nn.Parameter(torch.full((8,), 0.1))

    def forward(self, x):
        y = self.fc2(F.gelu(self.fc1(h := self.norm(x))))
        if (scale := self.layer_scale) is not None:
            y = y * scale
        return y + h


# Siblings.


@alike([])
class LinearReturned(Two):
    def forward(self, x):
        z = self.fc1(x)
        return self.fc2(F.gelu(z)), z


@alike(["linear"])
class HiddenReturned(Two):
    def forward(self, x):
        h = F.gelu(self.fc1(x))
        return self.fc2(h), h


@alike([])
class LinearAddedLater(Layers):
    def __init__(self):
        super().__init__(fc1=(8, 8), fc2=(8, 8))

    def forward(self, x):
        z = self.fc1(x)
        y = self.fc2(F.gelu(z))
        x = x + z
        return x + y


@alike([])
class ClampBetween(Two):
    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x).clamp(max=0.1)))


@alike(["glu"])
class ClampBehindTheGate(Three):
    def forward(self, x):
        h = F.silu(self.w1(x)) * self.w3(x)
        h = torch.clamp(h, -0.05, 0.05)
        return self.w2(h)


@alike([])
class MultiplierInside(Three):
    def forward(self, x):
        return self.w2(F.silu(self.w1(x) * 0.5) * self.w3(x))


@alike([])
class NormBeforeTheActivation(Two):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(12)

    def forward(self, x):
        return self.fc2(F.gelu(self.norm(self.fc1(x))))


@alike(["linear"])
class NormBehindTheActivation(NormBeforeTheActivation):
    def forward(self, x):
        x = self.fc1(x)
        x = F.gelu(x)
        x = self.norm(x)
        x = self.fc2(x)
        return x


@alike(["linear"])
class OtherInputOfUp(Three):
    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x.flip(1)))


@alike(["linear"])
class InputReboundBetween(Three):
    def forward(self, x):
        gate = F.silu(self.w1(x))
        x = x.flip(1)
        return self.w2(gate * self.w3(x))


@alike([], ["mlp"])
class InputReboundBeforeTheActivation(Two):
    def forward(self, x):
        z = self.fc1(x)
        x = x.flip(1)
        return x + self.fc2(F.gelu(z))


@alike(["linear"])
class Sum(Three):
    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) + self.w3(x))


@alike(["linear", "linear"])
class BothActivated(Three):
    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * F.silu(self.w3(x)))


@alike([])
class SigmoidOfAnother(Three):
    def forward(self, x):
        a, b = self.w1(x), self.w3(x)
        return self.w2(a * torch.sigmoid(1.702 * b))


@alike([])
class AnotherConstant(Two):
    def forward(self, x):
        x = self.fc1(x)
        x = 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.0447 * torch.pow(x, 3.0))))
        return self.fc2(x)


@alike([])
class InLambda(Two):
    def forward(self, x):
        run = lambda z: self.fc2(F.gelu(self.fc1(z)))  # noqa: E731
        return run(x)


@alike([])
class InComprehension(Two):
    def forward(self, x):
        return torch.stack([self.fc2(F.gelu(self.fc1(row))) for row in x])


@alike([])
class InGeneratorExpression(Two):
    def forward(self, x):
        return sum(self.fc2(F.gelu(self.fc1(row))) for row in x)


@alike([])
class InGenerator(Two):
    def rows(self, x):
        for row in x:
            yield self.fc2(F.gelu(self.fc1(row)))

    def forward(self, x):
        return torch.stack(list(self.rows(x)))


@alike([])
class InNestedFunction(Two):
    def forward(self, x):
        def run(z):
            return self.fc2(F.gelu(self.fc1(z)))

        return torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False)


@alike([])
class Captured(Two):
    """A function sees what the layer computed, too."""

    def forward(self, x):
        z = self.fc1(x)

        def norm():
            return z.square().mean()

        return self.fc2(F.gelu(z)) + norm()


@alike([])
class Thirds(Layers):
    def __init__(self):
        super().__init__(w=(8, 36), out=DOWN)

    def forward(self, x):
        gate, up, skip = self.w(x).chunk(3, dim=-1)
        return self.out(F.silu(gate) * up + skip)


@alike([])
class TwoOfThirds(Thirds):
    def forward(self, x):
        gate, up = self.w(x).split(12, dim=-1)[:2]
        return self.out(F.silu(gate) * up)


@alike([])
class OtherAxis(Two):
    def forward(self, x):
        gate, up = self.fc1(torch.cat([x, x.flip(-1)], dim=1)).chunk(2, dim=1)
        return self.fc2(F.silu(gate) * up)


@alike([])
class GLUOfAnotherAxis(Two):
    def forward(self, x):
        return self.fc2(F.glu(self.fc1(torch.cat([x, x.flip(-1)], dim=1)), dim=1))


@alike([])
class Interleaved(Layers):
    def __init__(self):
        super().__init__(gate_up=TWO, down=DOWN)

    def forward(self, x):
        y = self.gate_up(x)
        return self.down(F.silu(y[..., ::2]) * y[..., 1::2])


@alike([])
class OneHalfTwice(Interleaved):
    def forward(self, x):
        a, _b = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(a) * a)


@alike([])
class Overlapping(Interleaved):
    def forward(self, x):
        y = self.gate_up(x)
        return self.down(F.silu(y[..., :12]) * y[..., 6:18])


@alike([])
class Remainder(Layers):
    def __init__(self):
        super().__init__(gate_up=TWO, down=(10, 8))

    def forward(self, x):
        y = self.gate_up(x)
        return self.down(F.silu(y[..., :10]) * y[..., 10:20])


@alike([])
class HalvesAndAGate(Interleaved):
    """The gate is needed once more."""

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up) + gate[..., :8]


class Wavelet(nn.Module):
    def forward(self, x):
        return x * torch.cos(x)


@alike([])
class UnknownActivation(Two):
    def __init__(self):
        super().__init__()
        self.act = Wavelet()

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


@alike([])
class Softmax(Two):
    def forward(self, x):
        return self.fc2(F.softmax(self.fc1(x), dim=-1))


@alike([])
class AnotherF(Two):
    """The name F is an argument, of another function."""

    def forward(self, x, F=SimpleNamespace(gelu=lambda z: z * torch.cos(z))):  # noqa: B008
        return self.fc2(F.gelu(self.fc1(x)))


@alike([], ["mlp"])
class LocalFunction(Two):
    def forward(self, x):
        gelu = torch.tanh
        return self.fc2(gelu(self.fc1(x)))


@alike([])
class ReboundBetween(Two):
    def forward(self, x):
        z = self.fc1(x)
        z = z + 0.1
        return self.fc2(F.gelu(z))


@alike([])
class WrittenToBetween(Two):
    def forward(self, x):
        z = self.fc1(x)
        z.mul_(0.5)
        return self.fc2(F.gelu(z))


def here(z):
    return there(z) if z is None else F.relu(z)


def there(z):
    return here(z)


@alike([])
class Recursion(Two):
    """Helpers that call each other are not followed without end."""

    def __init__(self):
        super().__init__()
        self.act = here

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


@alike([], ["linear"])
class Squeezed(Two):
    """What changes shapes shows on no row of numbers."""

    def forward(self, x):
        h = self.fc1(x[..., None, :])
        return self.fc2(torch.relu(h).squeeze(-2))


@alike(["linear"])
class SqueezedLast(Layers):
    def __init__(self):
        super().__init__(token=(8, 1))

    def forward(self, x):
        h = self.token(x)
        return F.sigmoid(h).squeeze(-1)


@alike([], ["linear"], ["mlp"])
class Detached(Two):
    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x).detach()).square()) + self.fc2(x.new_ones(1, 12))


@alike([], ["linear"])
class StraightThrough(Two):
    """A custom gradient."""

    def forward(self, x):
        z = self.fc1(x)
        return self.fc2(z + (F.relu(z) - z).detach())


@alike([], ["linear"])
class Sorted(Two):
    def forward(self, x):
        return self.fc2(torch.sort(torch.relu(self.fc1(x)))[0])


@alike([], ["linear"])
class Doubled(Two):
    def forward(self, x):
        z = self.fc1(x)
        return self.fc2((z * torch.sigmoid(z)).double().to(z.dtype))


@alike([], ["mlp"])
class DroppedBeforeTheActivation(Two):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.fc2(F.gelu(self.dropout(self.fc1(x))))


@alike([], ["mlp"])
class ReboundInABranch(NormBeforeTheActivation):
    def forward(self, x):
        z = self.fc1(x)
        if self.training:
            z = self.norm(z)
        return self.fc2(F.gelu(z))


@alike([])
class LiveInALoop(Two):
    def forward(self, x):
        z = self.fc1(x)
        for _ in range(2):
            x = x + self.fc2(F.gelu(z))
            z = self.fc1(x)
        return x


@alike([])
class ReadInALoop(Two):
    """Once in the source, three times in a call."""

    def forward(self, x):
        z = self.fc1(x)
        for scale in (0.1, 0.2, 0.3):
            x = x + scale * self.fc2(F.gelu(z))
        return x


@alike([])
class ReadAfterAnException(Two):
    def forward(self, x):
        z = x
        with contextlib.suppress(ZeroDivisionError):
            z = self.fc1(x)
            self.fc2(F.gelu(z)) / (1 // 0)
        return z


@alike([], ["linear"], ["mlp"])
class AlwaysDropped(Two):
    """F.dropout drops in evaluation, too, unless it is told."""

    def forward(self, x):
        return self.fc2(F.dropout(F.gelu(self.fc1(x)), 0.5))


@alike([], ["mlp"])
class DrawnBetween(Two):
    """Between the layer and its activation another dropout draws."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        z = self.fc1(x)
        x = self.drop(x)
        return x + self.fc2(self.drop(F.gelu(z)))


@alike(["linear"])
class WholeChannelsDropped(Two):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout1d(0.5)

    def forward(self, x):
        return self.fc2(self.drop(F.gelu(self.fc1(x))))
