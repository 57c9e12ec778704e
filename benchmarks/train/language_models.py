"""Two small language models over bytes, shaped as Llama and as GPT-2, from stock layers or from epilogue's; and what they learn."""

import functools
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epilogue.benchmarks.train.layers import Layers

BYTES = 256
GELU_TANH = functools.partial(F.gelu, approximate="tanh")


class Size(NamedTuple):
    """Features, the MLPs' hidden features, blocks, heads of the attention, tokens of a sequence."""

    d: int
    hidden: int
    blocks: int
    heads: int
    context: int


class Attention(nn.Module):
    """Causal attention: x [batch, context, d] -> the same; rotation: `rotary`'s, or None where positions are in x already."""

    def __init__(self, size: Size, bias: bool) -> None:
        super().__init__()
        self.heads = size.heads
        self.qkv = nn.Linear(size.d, 3 * size.d, bias)
        self.out = nn.Linear(size.d, size.d, bias)

    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each [batch, heads, context, d / heads]
        if rotation is not None:
            q, k = rotated(q, rotation), rotated(k, rotation)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


def rotary(size: Size) -> Tensor:
    """(cos, sin) of position · 10000^(-2i / width), width = d / heads: [2, context, width / 2]."""
    width = size.d // size.heads
    angles = torch.outer(torch.arange(size.context), 10000.0 ** (-torch.arange(0, width, 2) / width))
    return torch.stack((angles.cos(), angles.sin()))


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Feature i and feature i + width / 2 as a point in the plane, turned by the position's angle: [..., context, width]."""
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, attention_norm: nn.Module, attention: Attention, mlp_norm: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.mlp_norm, self.mlp = mlp_norm, mlp

    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation)
        return x + self.mlp(self.mlp_norm(x))


class LanguageModel(nn.Module):
    """Bytes [batch, context] and the bytes that follow them -> the mean cross-entropy; all matrices drawn as GPT-2's, N(0, 0.02²)."""

    rotation: Tensor | None

    def __init__(self, size: Size, blocks: Iterable[Block], norm: nn.Module, positions: nn.Embedding | None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, size.d)
        self.positions = positions
        self.register_buffer("rotation", rotary(size) if positions is None else None, persistent=False)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.head = nn.Linear(size.d, BYTES, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def logits(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions.weight
        for block in self.blocks:
            x = block(x, self.rotation)
        return self.head(self.norm(x))

    def forward(self, tokens: Tensor, following: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(tokens).flatten(0, 1).float(), following.flatten())


def llama(layers: Layers, size: Size) -> LanguageModel:
    """RMSNorm, rotary positions, SwiGLU, no biases."""
    norm = functools.partial(nn.RMSNorm, size.d, eps=1e-5)
    blocks = [
        Block(norm(), Attention(size, bias=False), norm(), layers.gated_mlp(size.d, size.hidden, bias=False))
        for _ in range(size.blocks)
    ]
    return LanguageModel(size, blocks, norm(), positions=None)


def gpt2(layers: Layers, size: Size) -> LanguageModel:
    """LayerNorm, learned positions, GELU in its tanh form, biases, no dropout."""
    norm = functools.partial(nn.LayerNorm, size.d)
    blocks = [
        Block(norm(), Attention(size, bias=True), norm(), layers.mlp(size.d, size.hidden, activation=GELU_TANH))
        for _ in range(size.blocks)
    ]
    return LanguageModel(size, blocks, norm(), nn.Embedding(size.context, size.d))


MODELS = {"llama": llama, "gpt2": gpt2}

Batch = tuple[Tensor, Tensor]


@functools.cache
def text() -> Tensor:
    """The bytes of the standard library's modules, in the order of their names."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in paths)), dtype=torch.uint8)


def batches(size: Size, batch: int, count: int, device: str) -> list[Batch]:
    """Random stretches of the text, always the same; each batch is the bytes [batch, context] and the bytes that follow them."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(len(text()) - size.context, (count, batch, 1), generator=generator)
    stretches = text()[starts + torch.arange(size.context + 1)].long().to(device)
    return [(stretch[:, :-1].contiguous(), stretch[:, 1:].contiguous()) for stretch in stretches]
