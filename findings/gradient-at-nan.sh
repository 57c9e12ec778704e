#!/usr/bin/env bash
# torch 2.13.0, CPU: the gradient of an activation at NaN depends on the element's place in the tensor. Full vectors and the elements left
# over at the end are computed by two pieces of code that compare NaN differently. For elu, selu, celu and hardswish the gradient is NaN in a
# vector and finite at the end; for relu6, hardtanh and softshrink it is 0 and 1. In both places it is 1 for relu and the slope for leaky_relu.
# So there is no value to compare a kernel's gradient at NaN with. The last of 65 equal elements shows it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import math

import torch
import torch.nn.functional as F

found = {}
for act in F.elu, F.selu, F.celu, F.hardswish, F.relu6, F.hardtanh, F.softshrink, F.relu, F.leaky_relu:
    x = torch.full((65,), math.nan, requires_grad=True)
    act(x).sum().backward()
    found[act.__name__] = [round(value, 4) for value in (x.grad[0].item(), x.grad[-1].item())]
print("torch", torch.__version__)
for name, (first, last) in found.items():
    print(f"{name:10} first of 65: {first}, last: {last}")
assert repr(found) == repr({
    "elu": [math.nan, 1.0],
    "selu": [math.nan, 1.0507],
    "celu": [math.nan, 1.0],
    "hardswish": [math.nan, 1.0],
    "relu6": [0.0, 1.0],
    "hardtanh": [0.0, 1.0],
    "softshrink": [0.0, 1.0],
    "relu": [1.0, 1.0],
    "leaky_relu": [0.01, 0.01],
}), "the behaviour has changed"
PYTHON
