"""The README's tables of benefits and of activations. `python tests/readme_tables.py` puts them in."""

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

import epilogue
from epilogue import activations, saving
from epilogue.benchmarks.report import fill, markdown
from epilogue.benchmarks.shapes import SHAPES
from epilogue.catalogue import Activation

README = Path(__file__).parent.parent / "README.md"
MEMORY = README.parent / "benchmarks/results/memory.json"
TOKENS = 8192
MODELS = {"Llama 3 8B, Mistral 7B": "Llama 3 8B", "BERT base, ViT-B/16": "BERT base", "GPT-2 XL": "GPT-2 XL"}
"""Model of benchmarks/shapes.py -> its name in the README's first table."""


def benefit() -> str:
    """What one feed-forward block of three models keeps for backward, and the predicted time of the products that are fused."""
    kept = {row["model"]: row["bytes_per_token"] for row in json.loads(MEMORY.read_text(encoding="utf-8"))["rows"]}
    heading = "feed-forward block", "torch.nn keeps", "torch.compile keeps", "epilogue keeps"
    rows = [(*heading, *(f"{step}, {gpu}" for gpu in ("H100", "H200") for step in ("forward", "backward")))]
    for shape in SHAPES:
        if shape.model in MODELS:
            act = epilogue.ACTIVATIONS[shape.activation]
            name = f"{MODELS[shape.model]}: {(act.gated if shape.gated else act).name}, {shape.d:,} → {shape.hidden:,}"
            sizes = [
                f"{kept[shape.model][way] * TOKENS / 1e6:,.0f} MB" for way in ("eager", "torch.compile", "epilogue")
            ]
            rows.append((name, *sizes, *(change for gpu in ("H100", "H200") for change in changes(shape, gpu))))
    return markdown(rows)


def changes(shape: Any, gpu: str) -> list[str]:
    """The predicted change of time, from cuBLAS and a pointwise kernel to the way that is taken: in forward and in backward."""
    op = "gated_mlp" if shape.gated else "mlp"
    explanation = epilogue.explain(
        op, TOKENS, shape.d, shape.hidden, activation=shape.activation, training=True, gpu=gpu
    )
    found = []
    for step in explanation.steps:
        unfused = next(way.microseconds for way in step.candidates if way.choice == "unfused")
        change = round(100 * (step.candidates[0].microseconds / unfused - 1))
        found.append(f"−{-change} %" if change else "same")
    return found


def catalogue() -> str:
    """Each activation: its name, formula, parameters, other names, gated variant, and what backward needs."""
    rows = [("name", "formula", "parameters", "also called", "gated", "keeps")]
    pairs = [("pair", "formula")]
    for entry in epilogue.ACTIVATIONS.values():
        if entry.value.__module__ != activations.__name__:
            continue  # a test's own
        name, other = f"`{entry.name}`", ", ".join(f"`{alias}`" for alias in aliases(entry))
        if entry.arity == 2:
            pairs.append((name, formula(entry)))
        else:
            values = tuple(0.5 if default is inspect.Parameter.empty else default for default in entry.params.values())
            gated = "" if entry.gated.name == f"gated_{entry.name}" else f"`{entry.gated.name}`"
            rows.append((name, formula(entry), parameters(entry), other, gated, kept(entry, values)))
    return f"{markdown(rows)}\n\n{markdown(pairs)}"


def kept(entry: Activation, values: tuple) -> str:
    """What a layer keeps beside x, and what an MLP keeps where that is something else."""
    if entry.name == "identity":
        return "as torch.nn"  # whose product is left as it is
    words = {"input": "z", "output": "y", "sign": "1 bit"}
    layer = words[saving.kept_by_layer(entry, values, False)]
    mlp = words[saving.kept_by_mlp(entry, values, False, False, True, True)]
    return layer if layer == mlp else f"{layer}; MLP: {mlp}"


def formula(entry: Activation) -> str:
    """The first sentence of the formula's docstring, up to a colon."""
    return re.split(r"\.(?:\s|$)|: ", inspect.getdoc(entry.value) or "")[0]


def parameters(entry: Activation) -> str:
    learnable = [name for name in entry.params if name in entry.learnable]
    return ", ".join(
        f"`{name}`" + ("" if default is inspect.Parameter.empty else f" = {default:.6g}") + "\\*" * (name in learnable)
        for name, default in entry.params.items()
    )


def aliases(entry: Activation) -> tuple[str, ...]:
    """The names that the catalogue's source gives the activation beside its own; the catalogue itself spells them without `_`."""
    for node in ast.walk(ast.parse(inspect.getsource(activations))):
        if isinstance(node, ast.FunctionDef) and node.name == entry.value.__name__:
            keywords = [
                keyword for call in node.decorator_list if isinstance(call, ast.Call) for keyword in call.keywords
            ]
            return next((ast.literal_eval(keyword.value) for keyword in keywords if keyword.arg == "aliases"), ())
    raise LookupError(entry.name)


if __name__ == "__main__":
    fill(README, "benefit", benefit())
    fill(README, "activations", catalogue())
