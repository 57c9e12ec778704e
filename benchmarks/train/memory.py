"""`epilogue memory`: the bytes that a feed-forward block keeps for backward, by stock torch.nn, torch.compile and epilogue.

Counted, not sampled: every tensor that autograd saves in one forward pass in training mode, bfloat16 (torch's saved_tensors_hooks), each
storage once, without the parameters. What is kept grows with the tokens and nothing else, so a few tokens give the exact bytes per token.

On a CPU torch.compile's backend is `aot_eager_decomp_partition`: decompositions as inductor's and the same min-cut partitioner, which
decides what is kept, without the C++ that would follow; a test holds its bytes equal to inductor's. Epilogue's kernels run in Triton's
interpreter there.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from epilogue import triton
from epilogue.benchmarks.progress import progress
from epilogue.benchmarks.provenance import machine
from epilogue.benchmarks.report import check_place, fill, markdown, table, write
from epilogue.benchmarks.shapes import SHAPES, Shape
from epilogue.benchmarks.train.stock import MLP, GatedMLP
from epilogue.catalogue import ACTIVATIONS
from epilogue.nn import FusedGatedMLP, FusedMLP

TOKENS = 16
DTYPE = torch.bfloat16

OURS: dict[str, dict[str, Any]] = {
    "epilogue": {},
    "recompute=True": {"recompute": True},
}
"""Column -> the keywords that FusedMLP and FusedGatedMLP get for it."""


def bytes_kept(forward: Callable[[], Tensor], module: nn.Module) -> int:
    """Count the bytes that one forward pass keeps for backward: each storage once, without the module's parameters."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # held, so that no later tensor gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    for parameter in module.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in storages.values())


def blocks(shape: Shape, device: str) -> dict[str, nn.Module]:
    """Column -> the block, in training mode; all of them have the same weights in the same memory."""
    stock, fused = (GatedMLP, FusedGatedMLP) if shape.gated else (MLP, FusedMLP)
    act = ACTIVATIONS[shape.activation]
    options: dict[str, Any] = {"bias": shape.bias, "dropout": shape.dropout, "dtype": DTYPE}
    eager = stock(
        shape.d, shape.hidden, activation=functools.partial(act.oracle, F), device=torch.device(device), **options
    )
    backend = "inductor" if device == "cuda" else "aot_eager_decomp_partition"
    columns: dict[str, Any] = {
        "eager": eager,
        "torch.compile": torch.compile(eager, backend=backend, fullgraph=True, dynamic=False),
    }
    for name, keywords in OURS.items():
        columns[name] = fused(shape.d, shape.hidden, activation=act, device="meta", **options, **keywords)
        columns[name].load_state_dict(eager.state_dict(), assign=True)
    return columns


def measure(shape: Shape, device: str, tokens: int = TOKENS) -> dict[str, float]:
    """Measure a block: column -> bytes per token."""
    torch.compiler.reset()  # every block is a recompilation of one class's forward, and torch allows eight
    x = torch.randn(tokens, shape.d, device=device, dtype=DTYPE, requires_grad=True)
    return {
        name: bytes_kept(functools.partial(block, x), block) / tokens for name, block in blocks(shape, device).items()
    }


def rows(shapes: Sequence[Shape], device: str) -> list[dict[str, Any]]:
    """Measure each shape: its fields and its bytes_per_token by column."""
    each = progress(shapes, "counting", len(shapes), "block", lambda shape: shape.model)
    return [{**shape._asdict(), "bytes_per_token": measure(shape, device)} for shape in each]


def cells(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The result as a table's rows: KiB per token, and their share of eager's."""
    columns = list(result["rows"][0]["bytes_per_token"])
    lines = [("model", "activation", "d", "hidden", "dropout", *columns)]
    for row in result["rows"]:
        kept = row["bytes_per_token"]
        sizes = [
            f"{size / 1024:.1f}" if name == "eager" else f"{size / 1024:.1f} ({size / kept['eager']:.0%})"
            for name, size in ((name, kept[name]) for name in columns)
        ]
        dropout = f"{row['dropout']:g}" if row["dropout"] else ""
        lines.append((row["model"], activation(row), str(row["d"]), str(row["hidden"]), dropout, *sizes))
    return lines


def activation(row: dict[str, Any]) -> str:
    act = ACTIVATIONS[row["activation"]]
    return act.gated.name if row["gated"] else act.name


def readme(result: dict[str, Any]) -> str:
    """The README's part about memory, made from the result."""
    return f"KiB per token and layer:\n\n{markdown(cells(result))}"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the bytes of each block relative to eager's, as grouped bars."""
    models = [f"{row['model']}\n{activation(row)}" for row in result["rows"]]
    columns = list(result["rows"][0]["bytes_per_token"])
    height = 0.8 / len(columns)
    figure = Figure(figsize=(8, 1 + 0.6 * len(models)), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(columns):
        shares = [row["bytes_per_token"][name] / row["bytes_per_token"]["eager"] for row in result["rows"]]
        places = [place + (i - (len(columns) - 1) / 2) * height for place in range(len(models))]
        bars = axes.barh(places, shares, height, label=name)
        axes.bar_label(bars, [f"{share:.0%}" for share in shares], padding=2, fontsize=7)
    axes.set_yticks(range(len(models)), models, fontsize=8)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_xlim(0, 1.1)
    axes.set(xlabel="kept for backward, relative to eager", title="Bytes kept for backward per token, bfloat16")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=len(columns), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def run() -> dict[str, Any]:
    """Measure every shape on the GPU, or interpreted on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.empty(1, 1, device=device, dtype=DTYPE)
    refusal = triton.refusal(x, x)
    if refusal:
        raise SystemExit(f"epilogue memory: no Triton kernel runs here, {refusal}")
    case = {"dtype": str(DTYPE).removeprefix("torch."), "tokens": TOKENS, "interpreted": triton.INTERPRET}
    return {**machine(), "case": case, "rows": rows(SHAPES, device)}


def main(source: Path | None, path: Path | None, plot: Path | None, document: Path | None) -> int:
    """Measure, or read an earlier result from source; print it, and write the files that were asked for."""
    if document:
        check_place(document, "memory")
    result = run() if source is None else json.loads(source.read_text())
    print("bytes kept for backward by one layer, KiB per token; in brackets: relative to eager")
    print(table(cells(result)))
    if path:
        write(path, result)
    if plot:
        draw(result, plot)
    if document:
        fill(document, "memory", readme(result))
    for written in filter(None, (path, plot, document)):
        print(f"written: {written}")
    return 0
