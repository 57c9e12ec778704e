"""`epilogue fuse-report`: what `fuse` finds in a model, built on the meta device, where it takes no memory and has no weights."""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from epilogue.benchmarks.progress import say
from epilogue.nn import fuse


def from_config(path: Path) -> nn.Module:
    """The transformers model of a local config file: the first of its `architectures`, else the base model of its `model_type`."""
    config = _read(path)
    os.environ["HF_HUB_OFFLINE"] = "1"  # a config may name a backbone that its model would download
    import transformers

    kind, architectures = config.get("model_type"), config.get("architectures")
    if kind not in transformers.CONFIG_MAPPING:
        raise _stop(f"{path}: transformers {transformers.__version__} has no model_type {kind!r}")
    if architectures and not hasattr(transformers, architectures[0]):
        raise _stop(f"{path}: transformers {transformers.__version__} has no class {architectures[0]}")
    if config.get("quantization_config"):
        print("The config asks for quantised layers, which fuse leaves alone; this is the model without them.")
    make = getattr(transformers, architectures[0]) if architectures else transformers.AutoModel.from_config
    return _built(str(path), lambda: make(transformers.CONFIG_MAPPING[kind].from_dict(config)))


def from_callable(target: str) -> nn.Module:
    """The model that a function without arguments returns, `module:function`; the current directory is importable for it."""
    module_name, _, name = target.partition(":")
    # At the end: a folder here, such as this project's own kernels/, must not hide an installed package of its name.
    sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise _stop(f"{module_name} cannot be imported: {_said(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise _stop(f"{module_name} has no function {name}")
    model = _built(target, function)
    if not isinstance(model, nn.Module):
        raise _stop(f"{target} returns no torch.nn.Module, but {type(model).__name__}")
    return model


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise _stop(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise _stop(f"{path} is no transformers config: it holds a {type(config).__name__}")
    return config


def _built(what: str, make: Callable[[], Any]) -> Any:
    try:
        with torch.device("meta"):
            return make()
    except Exception as error:  # a user's, or a model that wants numbers in its tensors
        raise _stop(f"{what} cannot be built on the meta device: {_said(error)}") from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _stop(message: str) -> SystemExit:
    return SystemExit(f"epilogue fuse-report: {message}")


def main(target: str) -> int:
    """Print what would be fused in the model of `config.json` or `module:function`."""
    say(f"building {target} on the meta device")
    model = from_config(Path(target)) if target.endswith(".json") else from_callable(target)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{type(model).__name__}, {parameters / 1e6:,.1f} M parameters, on the meta device")
    print(fuse(model, dry_run=True))
    return 0
