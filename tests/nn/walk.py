"""`fuse` on one model of every type that transformers can make on the meta device: what it fuses and refuses, and whether it is right.

    python tests/nn/walk.py [TYPE …]        # prints the summary, which is data: benchmarks/results/fuse_walk.json

Where a config has a number of layers, the model has no more than two: others repeat these. One module of each fused class is run, fused
and as it was, with other weights and inputs than `fuse` tried.
"""

import copy
import inspect
import itertools
import json
import signal
import sys
import time
import warnings
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from epilogue.benchmarks.report import markdown
from epilogue.nn import fuse, unfuse

LAYERS = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
)
SECONDS = 120


def model_of(config_class: Any, model_class: Any) -> nn.Module:
    """Return the model on the meta device, with two layers, or with all of them if the config then contradicts itself."""
    for shorten in (True, False):
        config = config_class()
        if shorten:
            shortened(config)
        try:
            with torch.device("meta"):
                return model_class(config)
        except Exception:
            if not shorten:
                raise
    raise AssertionError


def shortened(config: Any) -> None:
    for name, value in list(vars(config).items()):
        if name in LAYERS and isinstance(value, int) and value > 2:
            setattr(config, name, 2)
        elif hasattr(value, "to_dict"):
            shortened(value)


def wrong(model: nn.Module, paths: list[str]) -> tuple[list[str], int]:
    """Return (the paths whose module, materialised, computes something else fused than unfused; how many could not be called alone)."""
    found, uncalled = [], 0
    for path in paths:
        if sum(parameter.numel() for parameter in model.get_submodule(path).parameters()) > 5e8:  # 4 GB
            uncalled += 1
            continue
        fused = copy.deepcopy(model.get_submodule(path)).to_empty(device="cpu").double()
        torch.manual_seed(1)
        for parameter in fused.parameters():
            nn.init.normal_(parameter, std=0.05) if parameter.ndim > 1 else nn.init.uniform_(parameter)
        equal = _equal(fused)
        found += [path] if equal is False else []
        uncalled += equal is None
    return found, uncalled


class Stub(nn.Module):
    """Stands for an attention: returns the first tensor that it is given, in a tuple if that has a length of more than one."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        return x if self.length == 1 else (x, *[None] * (self.length - 1))


def _equal(fused: nn.Module) -> bool | None:
    """Return whether it computes the same as unfused, for the first kind of input that it accepts; None if it accepts none."""
    tensors = [*fused.parameters(), *fused.buffers()]
    widths = dict.fromkeys(size for tensor in tensors for size in tensor.shape[:2])
    parameters = inspect.signature(fused.forward).parameters.values()
    asked = sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    for stubs in range(4):
        if stubs:
            for name, child in fused.named_children():
                if isinstance(child, Stub) or next(child.children(), None) is not None:
                    fused._modules[name] = Stub(stubs)
        own = copy.deepcopy(fused)
        unfuse(own)
        for width, again in itertools.product(widths, (False, True)):
            for shape in ((2, 4, width), (8, width), (1, 4, 4, width), (1, width, 4, 4)):
                x = 3.0 * torch.randn(shape, dtype=torch.float64)
                args = [x, *[x if again else None] * (asked - 1)]
                try:
                    with torch.no_grad():
                        expected = tree_leaves(own.eval()(*args))
                except Exception:  # another input, then
                    continue
                with torch.no_grad():
                    actual = tree_leaves(fused.eval()(*args))
                return all(
                    torch.allclose(a, b, 1e-9, 1e-9 * b.nan_to_num(0.0, 0.0, 0.0).abs().max().item(), equal_nan=True)
                    for a, b in zip(actual, expected, strict=True)
                    if isinstance(b, torch.Tensor) and b.is_floating_point() and b.numel()
                )
    return None


def walk(types: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return, by model type, the rows of fuse's report and what was wrong; or why there is no model."""
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    results: dict[str, dict[str, Any]] = {}
    for name in types or CONFIG_MAPPING.keys():  # not items(), which imports all of transformers' configs
        config_class = CONFIG_MAPPING[name]
        if config_class not in MODEL_MAPPING:
            continue
        start = time.monotonic()
        signal.alarm(SECONDS)
        try:
            model_class = MODEL_MAPPING[config_class]
            model = model_of(config_class, model_class[0] if isinstance(model_class, tuple) else model_class)
        except Exception as error:
            results[name] = {"no model": f"{type(error).__name__}: {error}"[:200]}
            continue
        finally:
            signal.alarm(0)
        signal.alarm(SECONDS)
        try:
            report = fuse(model)
            classes = {path: type(module).__name__ for path, module in model.named_modules()}
            of_class = {classes[row.path]: row.path for row in report.fused}
            differing, uncalled = wrong(model, list(of_class.values()))
            results[name] = {
                "fused": [[classes[row.path], *row] for row in report.fused],
                "refused": [[classes[row.path], *row] for row in report.refused],
                "wrong": differing,
                "checked": [None] * (len(of_class) - uncalled),
                "uncalled": [None] * uncalled,
            }
        except Exception as error:
            results[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
        finally:
            signal.alarm(0)
        counts = {key: len(value) for key, value in results[name].items()}
        refused = {(cls, row[-1]) for cls, *row in results[name].get("refused", [])}
        print(
            f"{name}: {time.monotonic() - start:.0f} s, {counts}, {results[name].get('wrong')}, {refused}", flush=True
        )
    return results


OTHER = ("between its layers", "it does more", "its experts are", "`")
"""How the reasons begin for modules that are no MLPs. One that could not be read, or has none of the expressions, may be an MLP."""


def summary(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return counts by pattern and by reason: modules, their classes, the model types that have them."""
    groups: dict[str, dict[str, list[tuple[str, str]]]] = {"fused": {}, "refused": {}}
    for name, result in results.items():
        for cls, _, pattern, *_ in result.get("fused", []):
            groups["fused"].setdefault(pattern, []).append((cls, name))
        for cls, *_, reason in result.get("refused", []):
            kind = next((other for other in OTHER if reason.startswith(other)), "it could not be read")
            groups["refused"].setdefault(kind, []).append((cls, name))
    counts = {
        group: {
            key: {"modules": len(found), "classes": len({c for c, _ in found}), "types": len({t for _, t in found})}
            for key, found in sorted(members.items())
        }
        for group, members in groups.items()
    }
    missed = sum(n["modules"] for kind, n in counts["refused"].items() if kind not in OTHER)
    fused = sum(n["modules"] for n in counts["fused"].values())
    return {
        "transformers": version("transformers"),
        "torch": version("torch"),
        "types": len(results),
        "made": sum("no model" not in result for result in results.values()),
        "fused somewhere": sum(bool(result.get("fused")) for result in results.values()),
        **counts,
        "coverage": fused / max(1, fused + missed),
        "checked": sum(len(result.get("checked", [])) for result in results.values()),
        "wrong": {name: result["wrong"] for name, result in results.items() if result.get("wrong")},
        "failed": {name: result["failed"] for name, result in results.items() if "failed" in result},
    }


def readme(found: dict[str, Any]) -> str:
    """Return the README's part that is made from a summary."""
    rows = [("", "modules", "classes", "model types")]
    names = {
        "gated": "gated MLP",
        "gated packed": "gated MLP, gate and up in one",
        "plain": "plain MLP",
        "sequential": "in an `nn.Sequential`",
        "glu": "act(gate) · up before something else",
        OTHER[0]: "refused: something else stands between its layers, such as a norm or a clamp",
        OTHER[1]: "refused: does more, as a condition holds",
        OTHER[2]: "refused: experts as parameters of three axes",
        OTHER[3]: "refused: an activation that is not in the catalogue, or in a scope of its own",
        "it could not be read": "refused: none of the expressions in its source",
    }
    for key, n in [*found["fused"].items(), *found["refused"].items()]:
        rows.append((names.get(key, key), *(str(n[column]) for column in ("modules", "classes", "types"))))
    wrong = sum(map(len, found["wrong"].values()))
    checked = f"One module of each class and type, {found['checked']} in all, was computed again with other weights: {wrong} were wrong"
    return (
        f"transformers {found['transformers']} has {found['types']} model types. {found['made']} of them could be built without memory for "
        "their weights (on the meta device, with two layers where the config allows it), and `fuse` finds something in "
        f"{found['fused somewhere']}. It fuses {found['coverage']:.1%} of the modules that compute one of its expressions; the rest are "
        "those below with none of the expressions in their source. The other refused modules compute something else. "
        f"{checked} (`pytest -m slow tests/nn/test_walk.py`).\n\n{markdown(rows)}"
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    found = walk(sys.argv[1:])
    print(json.dumps(summary(found), indent=1))
