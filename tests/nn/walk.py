"""`fuse` on one model of every type that transformers can make on the meta device: what it takes, what it refuses, and whether it is right.

    python tests/nn/walk.py [TYPE …]        # prints the summary, which is data: benchmarks/results/fuse_walk.json

Layers beyond the second are left out where a config has a number of layers: they repeat. Whatever is fused is computed once more, with
other weights and inputs than `fuse` tried, by the module and by what became of it; one module of each class.
"""

import copy
import json
import signal
import sys
import time
import warnings
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

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
    """On the meta device; of two layers, or of all where the config then does not fit itself."""
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


def wrong(model: nn.Module, paths: list[str]) -> list[str]:
    """Of the paths that are fused, those whose module, materialised, computes something else than it does fused."""
    found = []
    for path in paths:
        module = copy.deepcopy(model.get_submodule(path)).to_empty(device="cpu").double()
        torch.manual_seed(1)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.05) if parameter.ndim > 1 else nn.init.uniform_(parameter)
        layers = [child for child in module.children() if hasattr(child, "weight") and child.weight.ndim == 2]
        fused, own = module, copy.deepcopy(module)
        unfuse(own)
        widths = dict.fromkeys(size for layer in layers for size in layer.weight.shape)
        if not any(_equal(own, fused, width) for width in widths):
            found.append(path)
    return found


def _equal(own: nn.Module, fused: nn.Module, width: int) -> bool:
    x = 3.0 * torch.randn(2, 4, width, dtype=torch.float64)
    try:
        with torch.no_grad():
            expected, actual = own.eval()(x), fused.eval()(x)
    except Exception:
        return False
    return isinstance(expected, torch.Tensor) and torch.allclose(
        actual, expected, 1e-9, 1e-9 * expected.abs().max().item()
    )


def walk(types: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Model type -> its rows of fuse's report, and what was wrong; or why there is no model."""
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    results: dict[str, dict[str, Any]] = {}
    for name, config_class in CONFIG_MAPPING.items():
        if config_class not in MODEL_MAPPING or (types and name not in types):
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
            classes = {path: type(module).__name__.removeprefix("Fused") for path, module in model.named_modules()}
            of_class = {classes[row.path]: row.path for row in report.fused if row.pattern != "linear + activation"}
            results[name] = {
                "fused": [[classes[row.path], *row] for row in report.fused],
                "refused": [[classes[row.path], *row] for row in report.refused],
                "wrong": wrong(model, list(of_class.values())),
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


OTHER = ("it computes something else", "it also holds", "its experts are")
"""How the reasons begin of what is no MLP: not by what it computes, or not by what it holds (a convolution, a norm between). What could not
be tried may be one."""


def summary(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Counts by pattern and by reason: modules, their classes, the model types that have them."""
    groups: dict[str, dict[str, list[tuple[str, str]]]] = {"fused": {}, "refused": {}}
    for name, result in results.items():
        for cls, _, pattern, *_ in result.get("fused", []):
            groups["fused"].setdefault(pattern, []).append((cls, name))
        for cls, *_, reason in result.get("refused", []):
            kind = next((other for other in OTHER if reason.startswith(other)), "it could not be tried")
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
        "wrong": {name: result["wrong"] for name, result in results.items() if result.get("wrong")},
        "failed": {name: result["failed"] for name, result in results.items() if "failed" in result},
    }


def readme(found: dict[str, Any]) -> str:
    """The README's part that is made from a summary."""
    rows = [("", "modules", "classes", "model types")]
    names = {
        "gated": "gated MLP",
        "gated packed": "gated MLP, gate and up in one",
        "plain": "plain MLP",
        "sequential": "in an `nn.Sequential`",
        OTHER[0]: "refused: computes something else",
        OTHER[1]: "refused: holds more, such as a convolution or a norm between",
        OTHER[2]: "refused: experts as parameters of three axes",
        "it could not be tried": "refused: could not be tried alone",
    }
    for key, n in [*found["fused"].items(), *found["refused"].items()]:
        rows.append((names.get(key, key), *(str(n[column]) for column in ("modules", "classes", "types"))))
    wrong = sum(map(len, found["wrong"].values()))
    made = f"{found['made']} can be made on the meta device (here with two layers where their configs allow it)"
    checked = f"The MLPs, one of each class and type, were computed once more with other weights: {wrong} wrong"
    return (
        f"Of the {found['types']} model types of transformers {found['transformers']}, {made}, and {found['fused somewhere']} have "
        f"something to fuse. Fused are {found['coverage']:.1%} of the modules that are one of these or may be. {checked} "
        f"(`pytest -m slow tests/nn/test_walk.py`).\n\n{markdown(rows)}"
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    found = walk(sys.argv[1:])
    print(json.dumps(summary(found), indent=1))
