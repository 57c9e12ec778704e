#!/usr/bin/env bash
# torch 2.13.0 and CuPy 14.2.0: a compiled function asks sys.modules whether CuPy is loaded. Right after CuPy was imported, its first two
# compilations fail with "dictionary changed size during iteration"; the third works. Dynamo looks at every loaded module, and CuPy loads
# submodules of its own when it is looked at. One would expect a look-up of one name to touch that module alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 cupy-cuda13x==14.2.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import warnings

import torch


def scaled(x):
    return x if sys.modules.get("cupy") is None else 2.0 * x


def compiled():
    torch._dynamo.reset()
    try:
        return torch.compile(scaled, backend="eager", fullgraph=True)(torch.ones(1)).item()
    except torch._dynamo.exc.InternalTorchDynamoError as error:
        return str(error).strip().splitlines()[0]


before = compiled()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # CuPy says that it finds no CUDA
    import cupy
after = [compiled() for _ in range(3)]
print(torch.__version__, cupy.__version__)
print(f"before: {before}; after: {after}")
failure = "RuntimeError: dictionary changed size during iteration"
assert (before, after) == (1.0, [failure, failure, 2.0]), "the behaviour has changed"
PYTHON
