"""The cases of `epilogue bench`, and the suites of them, most valuable first."""

from collections.abc import Iterable
from inspect import Parameter
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from epilogue.benchmarks.report import counted
from epilogue.benchmarks.shapes import TIMED, TOKENS, Shape
from epilogue.catalogue import ACTIVATIONS

INFERENCE, TRAINING, BOTH = MODES = ("inference", "training", "forward+backward")
"""Forward without gradients; forward that keeps what backward needs; forward and every gradient."""


class Case(NamedTuple):
    """One operation at one size: x [tokens, d]; linear and glu give [tokens, hidden], mlp and gated_mlp [tokens, d]."""

    op: str
    mode: str
    model: str
    tokens: int
    d: int
    hidden: int
    activation: str  # a key of ACTIVATIONS
    dtype: str
    precision: str  # of float32 products: "tf32" or "ieee"
    bias: bool

    def __str__(self) -> str:
        dtype = f"{self.dtype} {self.precision}" if self.dtype == "float32" else self.dtype
        return f"{self.op} {self.mode}, {self.model}, {counted(self.tokens, 'token')}, {self.activation}, {dtype}"

    @property
    def gated(self) -> bool:
        return self.op in ("glu", "gated_mlp")

    @property
    def block(self) -> bool:
        """True where a down projection follows."""
        return self.op in ("mlp", "gated_mlp")

    @property
    def weights(self) -> int:
        """Number of matrices of hidden x d."""
        return 1 + self.gated + self.block

    @property
    def flops(self) -> int:
        """Operations of the products: a multiplication and an addition for each token and element of a weight."""
        return 2 * self.tokens * self.d * self.hidden * self.weights * (3 if self.mode == BOTH else 1)

    @property
    def bytes(self) -> int:
        """Bytes that move through memory at least: each operand is read once, each result written once."""
        biases = self.bias * (self.hidden * (1 + self.gated) + self.d * self.block)
        operands = self.tokens * self.d + self.d * self.hidden * self.weights + biases
        y = self.tokens * (self.d if self.block else self.hidden)
        gradients = 2 if self.mode == BOTH else 1  # one for each operand, and dy is as large as y
        return getattr(torch, self.dtype).itemsize * (operands + y) * gradients


class Operands(NamedTuple):
    """The operands that all providers get, in the same memory; None where the operation has no such operand."""

    x: Tensor
    gate: Tensor | None
    up: Tensor
    down: Tensor | None
    gate_bias: Tensor | None
    up_bias: Tensor | None
    down_bias: Tensor | None
    packed: Tensor | None  # [2 hidden, d], of which gate and up are the halves
    dy: Tensor

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Name -> operand, of those for which forward+backward computes a gradient."""
        named = {name: getattr(self, name) for name in self._fields if name not in ("packed", "dy")}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def arguments(self) -> tuple[Any, ...]:
        """x, gate, up, down, gate_bias, up_bias, down_bias."""
        return self[:7]


def operands(case: Case, device: str) -> Operands:
    """Draw random normal operands, with the weights scaled so that every product's result has a variance of one."""
    dtype, learn = getattr(torch, case.dtype), case.mode != INFERENCE
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int, fan_in: int = 1) -> Tensor:
        drawn = torch.randn(size, generator=generator, device=device, dtype=dtype)
        return drawn.div_(fan_in**0.5).requires_grad_(learn)

    d, hidden = case.d, case.hidden
    packed = draw(2 * hidden, d, fan_in=d) if case.gated else None
    if packed is None:
        gate, up = None, draw(hidden, d, fan_in=d)
    else:
        gate, up = (half.detach().requires_grad_(learn) for half in packed.chunk(2))
    return Operands(
        x=draw(case.tokens, d),
        gate=gate,
        up=up,
        down=draw(d, hidden, fan_in=hidden) if case.block else None,
        gate_bias=draw(hidden) if case.gated and case.bias else None,
        up_bias=draw(hidden) if case.bias else None,
        down_bias=draw(d) if case.block and case.bias else None,
        packed=packed,
        dy=draw(case.tokens, d if case.block else hidden).detach(),
    )


class Suite(NamedTuple):
    seconds: float  # after so long no further case begins
    tuned: int  # torch.compile's max-autotune, which tunes for long, takes part in so many of the first cases
    cases: tuple[Case, ...]


SHAPES = {shape.model: shape for shape in TIMED}
LLAMA, LLAMA_70B, GEMMA = (SHAPES[name] for name in ("Llama 3 8B, Mistral 7B", "Llama 3 70B", "Gemma 2 9B"))
GPT2, GPT2_XL, BERT, VIT, OPT = (
    SHAPES[name] for name in ("GPT-2", "GPT-2 XL", "BERT base, ViT-B/16", "ViT-L/16", "OPT 6.7B")
)
CLASSES = (
    "relu", "leaky_relu", "relu_squared", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "elu", "softplus", "mish", "hardswish",
)  # fmt: skip
"""Activations of every class of cost and of what they save: piecewise, by erf, exp, tanh, log, from z or from y."""


def layer(
    shape: Shape, mode: str, tokens: int, dtype: str = "bfloat16", precision: str = "ieee", activation: str = ""
) -> Case:
    """The model's up projection with its activation: linear, or glu."""
    op = "glu" if shape.gated else "linear"
    return Case(
        op, mode, shape.model, tokens, shape.d, shape.hidden, activation or shape.activation, dtype, precision, shape.bias,
    )  # fmt: skip


def block(shape: Shape, mode: str, tokens: int, dtype: str = "bfloat16", precision: str = "ieee") -> Case:
    """The model's whole feed-forward block: mlp, or gated_mlp."""
    return layer(shape, mode, tokens, dtype, precision)._replace(op="gated_mlp" if shape.gated else "mlp")


SMOKE = (
    block(LLAMA, BOTH, 4096),
    block(GPT2_XL, BOTH, 4096),
    layer(LLAMA, INFERENCE, 4096),
    layer(GPT2_XL, INFERENCE, 4096),
    layer(VIT, TRAINING, 4096),
    block(LLAMA, INFERENCE, 1),
    layer(GPT2, BOTH, 1024, "float16"),
    block(BERT, BOTH, 1024, "float32", "tf32"),
)

HEADLINE = (
    # The claims: single layers, which max-autotune tunes in seconds, and whole blocks trained, of each kind of model.
    *(layer(shape, INFERENCE, 8192) for shape in (LLAMA, GPT2_XL, OPT)),
    *(block(shape, BOTH, 8192) for shape in (LLAMA, GPT2_XL, BERT)),
    *(block(shape, BOTH, 8192) for shape in (LLAMA_70B, GEMMA, VIT, GPT2)),
    *(layer(shape, INFERENCE, 8192) for shape in (LLAMA_70B, GEMMA, VIT, BERT)),
    *(layer(shape, TRAINING, 8192) for shape in (LLAMA, GPT2_XL, OPT)),
    # Decoding, and other sizes of batches.
    *(block(shape, INFERENCE, tokens) for tokens in (1, 128) for shape in (LLAMA, GPT2_XL)),
    *(layer(shape, INFERENCE, tokens) for tokens in (16, 1024) for shape in (LLAMA, BERT)),
    *(block(shape, BOTH, tokens) for tokens in (1024, 32768) for shape in (LLAMA, BERT)),
    *(layer(shape, BOTH, 8192) for shape in (LLAMA, VIT)),
    # Other dtypes, and every class of activations.
    *(block(VIT, BOTH, 8192, *numbers) for numbers in (("float16",), ("float32", "tf32"), ("float32", "ieee"))),
    *(layer(OPT, INFERENCE, 8192, activation=name) for name in CLASSES if name != OPT.activation),
)


def everything() -> Iterable[Case]:
    """Yield the headline's cases, then every shape, number of tokens, operation and mode; every activation; every dtype."""
    yield from HEADLINE
    for tokens, mode, shape, part in product(reversed(TOKENS), MODES, TIMED, (block, layer)):
        yield part(shape, mode, tokens)
    for mode, shape, act in product(MODES, (VIT, LLAMA), ACTIVATIONS.values()):
        if (act.arity == 1 or shape.gated) and Parameter.empty not in act.params.values():
            yield layer(shape, mode, 4096, activation=act.name)
    for mode, shape, part in product(MODES, (VIT, LLAMA), (block, layer)):
        for numbers in (("float16",), ("float32", "tf32"), ("float32", "ieee")):
            yield part(shape, mode, 4096, *numbers)


SUITES = {
    "smoke": Suite(150, 0, SMOKE),
    "headline": Suite(660, 3, HEADLINE),
    "full": Suite(3 * 3600, 60, tuple(dict.fromkeys(everything()))),
}
"""Smoke may take 3 minutes and headline 12; these seconds leave some of them for the case that has begun."""
