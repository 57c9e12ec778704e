#!/usr/bin/env bash
# torch 2.13.0, CPU build for x86-64: the exact gelu of +inf is inf in a tensor of one element. In a tensor of two or more it is NaN where
# oneDNN computes it, in float32; float64, and float32 with oneDNN off, give inf. The limit is +inf, and the tanh form gives that.
# So at infinities a kernel cannot be compared with a layer's plain CPU path.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import math

import torch
import torch.nn.functional as F

one, two = torch.tensor([math.inf]), torch.tensor([math.inf, math.inf])
found = {
    "one element": F.gelu(one).tolist(),
    "two elements": F.gelu(two).tolist(),
    "two, float64": F.gelu(two.double()).tolist(),
    "two, tanh form": F.gelu(two, approximate="tanh").tolist(),
}
with torch.backends.mkldnn.flags(enabled=False):
    found["two, oneDNN off"] = F.gelu(two).tolist()
print(torch.__version__)
for what, values in found.items():
    print(f"{what:16} {values}")
assert all(map(math.isnan, found.pop("two elements"))), "the behaviour has changed"
assert all(value == math.inf for values in found.values() for value in values), "the behaviour has changed"
PYTHON
