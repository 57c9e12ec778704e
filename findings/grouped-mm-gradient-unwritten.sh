#!/usr/bin/env bash
# torch 2.13.0, CPU: F.grouped_mm leaves the rows past the last offset unwritten. Its backward leaves the same rows of the input's
# gradient unwritten, even where the incoming gradient is zero. Such rows take no part in the product, so their gradient should be 0, but it
# is whatever the memory held. The manual says only that these rows "are ignored".
# So code that pads tokens to a fixed size has to zero both. Deterministic mode fills fresh memory with NaN, which makes it visible here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import torch.nn.functional as F

torch.use_deterministic_algorithms(True)  # fills memory that torch.empty hands out with NaN
x = torch.ones(8, 16, dtype=torch.bfloat16, requires_grad=True)
experts = torch.ones(2, 16, 16, dtype=torch.bfloat16)
y = F.grouped_mm(x, experts, offs=torch.tensor([2, 5], dtype=torch.int32))
dy = torch.ones(8, 16, dtype=torch.bfloat16)
dy[5:] = 0
y.backward(dy)
written = {name: (~rows.isnan()).all(1).tolist() for name, rows in (("result", y), ("gradient", x.grad))}
print("torch", torch.__version__)
for name, rows in written.items():
    print(f"{name:8} rows written: {rows}")
assert written == dict.fromkeys(("result", "gradient"), [True] * 5 + [False] * 3), "the behaviour has changed"
PYTHON
