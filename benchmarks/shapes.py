"""The feed-forward blocks of public models, which the benchmarks measure.

d and hidden are features, as in weights [hidden, d]; tokens are rows of x [tokens, d].
"""

from typing import NamedTuple


class Shape(NamedTuple):
    """One model's block: down(act(up(x))), or down(act(gate(x)) * up(x)) when gated; dropout stands before the down projection."""

    model: str
    d: int
    hidden: int
    activation: str  # a key of ACTIVATIONS
    gated: bool
    bias: bool
    dropout: float = 0.0


SHAPES = (
    Shape("Llama 3 8B, Mistral 7B", 4096, 14336, "silu", gated=True, bias=False),
    Shape("Qwen2 7B", 3584, 18944, "silu", gated=True, bias=False),
    Shape("Phi-3 mini", 3072, 8192, "silu", gated=True, bias=False),
    Shape("Gemma 2 9B", 3584, 14336, "gelu_tanh", gated=True, bias=False),
    Shape("T5 v1.1 large", 1024, 2816, "gelu_tanh", gated=True, bias=False, dropout=0.1),
    Shape("BERT base, ViT-B/16", 768, 3072, "gelu", gated=False, bias=True),
    Shape("ViT-L/16", 1024, 4096, "gelu", gated=False, bias=True),
    Shape("Whisper large", 1280, 5120, "gelu", gated=False, bias=True),
    Shape("GPT-2 XL", 1600, 6400, "gelu_tanh", gated=False, bias=True),
    Shape("CLIP ViT-L/14", 1024, 4096, "quick_gelu", gated=False, bias=True),
    Shape("OPT 6.7B", 4096, 16384, "relu", gated=False, bias=True),
    Shape("Minitron 8B", 4096, 16384, "relu_squared", gated=False, bias=False),
)
"""The blocks that `epilogue memory` counts: none is too large for Triton's interpreter."""

TIMED = (
    *SHAPES,
    Shape("Llama 3 70B", 8192, 28672, "silu", gated=True, bias=False),
    Shape("Qwen3 8B", 4096, 12288, "silu", gated=True, bias=False),
    Shape("GPT-2", 768, 3072, "gelu_tanh", gated=False, bias=True),
)
"""The blocks that `epilogue bench` times."""

TOKENS = (1, 16, 128, 1024, 4096, 8192, 16384, 32768)
"""From the decoding of one sequence to a training step's batch."""
