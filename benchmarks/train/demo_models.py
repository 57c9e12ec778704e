"""`epilogue demo --model llama`, `bert`: a small transformers model, stock and after `epilogue.nn.fuse`.

Random weights, nothing is downloaded. They learn the bytes of the standard library's own sources: the Llama each next byte, the BERT those
that are masked.
"""

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import transformers
from torch import Tensor, nn

from epilogue.benchmarks.train import losses
from epilogue.benchmarks.train.kernel_step import StepCase
from epilogue.benchmarks.train.language_models import BYTES, Size, batches
from epilogue.benchmarks.train.side_by_side import Run, Training, apart, train
from epilogue.nn import fuse

MASK, MASKED = BYTES, 0.15
"""The token that stands for a masked byte, and the share of bytes that are masked."""
IGNORED = -100
"""The label that transformers' losses leave out."""


class TransformersScale(NamedTuple):
    """The size of a training. tolerance: the largest distance of the loss curves, from float32 rounding and what the steps make of it."""

    size: Size
    batch: int
    steps: int
    learning_rate: float
    tolerance: float


# Results that are 3e-7 off give losses of the Llama that are 6e-6 apart at this learning rate, and 4e-2 apart at twice this rate.
FULL = TransformersScale(Size(d=128, hidden=384, blocks=4, heads=4, context=64), 8, 120, 1.5e-3, tolerance=1e-3)
INTERPRETED = TransformersScale(Size(d=32, hidden=48, blocks=1, heads=2, context=8), 2, 4, 1e-2, tolerance=1e-5)
STEP = FULL._replace(size=FULL.size._replace(blocks=1))
"""Of the step through the kernels: a block is enough."""


def llama(size: Size) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=BYTES, hidden_size=size.d, intermediate_size=size.hidden, num_hidden_layers=size.blocks,
        num_attention_heads=size.heads, num_key_value_heads=size.heads // 2, max_position_embeddings=size.context,
        use_cache=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def bert(size: Size) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=BYTES + 1, hidden_size=size.d, intermediate_size=size.hidden, num_hidden_layers=size.blocks,
        num_attention_heads=size.heads, max_position_embeddings=size.context,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


def next_bytes(scale: TransformersScale, steps: int, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (bytes, labels), both [batch, context]: transformers' loss itself holds each byte against the one that follows."""
    return ((x, x) for x, _ in batches(scale.size, scale.batch, steps, device))


def masked_bytes(scale: TransformersScale, steps: int, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (bytes, some of them masked; the masked ones, all others ignored), both [batch, context]."""
    generator = torch.Generator().manual_seed(0)
    for x, _ in batches(scale.size, scale.batch, steps, device):
        masked = (torch.rand(x.shape, generator=generator) < MASKED).to(device)
        masked[:, 0] = True  # so that there is one
        yield x.where(~masked, MASK), x.where(masked, IGNORED)


class Model(NamedTuple):
    """The function that builds a model, and the one that yields its data."""

    build: Callable[[Size], nn.Module]
    data: Callable[[TransformersScale, int, str], Iterator[tuple[Tensor, Tensor]]]


MODELS = {"llama": Model(llama, next_bytes), "bert": Model(bert, masked_bytes)}


def loss_of(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return model(input_ids=x, labels=labels).loss


def unlearned(stock: Run, fused: Run, scale: TransformersScale) -> list[str]:
    """A message for each model that did not learn, which is promised of a whole training alone."""
    whole = [run for run in (stock, fused) if len(run.losses) >= scale.steps]
    return [message for run in whole for message in losses.stuck(run.name, run.losses)]


def run(name: str, device: torch.device, interpret: bool, steps: int | None) -> Training:
    """Fuse a copy of the model, print what was found, train both."""
    scale = INTERPRETED if interpret else FULL
    steps = steps or scale.steps
    torch.manual_seed(0)
    stock = MODELS[name].build(scale.size).to(device)
    kind, parameters = type(stock).__name__, sum(parameter.numel() for parameter in stock.parameters())
    print(
        f"{kind}, {parameters / 1e6:.2f} M parameters; {steps} steps of {scale.batch} x {scale.size.context} bytes on {device}, float32"
    )
    fused = copy.deepcopy(stock)
    report = fuse(fused)
    print(f"fuse(model): {report}")
    data = MODELS[name].data(scale, steps, str(device))
    runs = train({"stock": stock, "fused": fused}, loss_of, data, steps, scale.learning_rate)
    broken = apart(*runs, scale.tolerance) + unlearned(*runs, scale)
    if not report.fused:
        broken.append("fuse found nothing in the model")
    return Training(f"{kind}: the same weights and batches", *runs, scale.tolerance, broken)


def step_case(name: str, device: torch.device, interpret: bool) -> StepCase:
    """A step of the model, stock and fused, before training; in evaluation, since float64 draws other dropouts."""
    scale = INTERPRETED if interpret else STEP
    torch.manual_seed(0)
    stock = MODELS[name].build(scale.size).to(device).eval()
    fused = copy.deepcopy(stock)
    fuse(fused)
    x, labels = next(MODELS[name].data(scale, 1, str(device)))
    return StepCase(stock, fused, loss_of, x, labels)
