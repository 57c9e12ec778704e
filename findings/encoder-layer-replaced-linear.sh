#!/usr/bin/env bash
# torch 2.13.0: in eval mode and without grad, nn.TransformerEncoderLayer reads linear1.weight and computes with its own fused function.
# It does so even where linear1 was replaced by a subclass of nn.Linear with another forward: that forward is never called, and there is no
# warning. A forward hook on linear1 is noticed and turns the fast path off.
# So a layer that was swapped in for its kernel, or to count, quantise or trace, runs in training and is skipped in inference.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn


class Counted(nn.Linear):
    calls = 0

    def forward(self, x):
        Counted.calls += 1
        return super().forward(x)


def calls(layer, grad):
    Counted.calls = 0
    with torch.set_grad_enabled(grad):
        layer(torch.randn(2, 3, 8))
    return Counted.calls


layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
layer.linear1 = Counted(8, 16)
found = {"with grad": calls(layer, True), "without grad": calls(layer, False)}
layer.linear1.register_forward_hook(lambda module, inputs, output: None)
found["without grad, with a hook"] = calls(layer, False)
print("torch", torch.__version__)
for how, number in found.items():
    print(f"{how:25} linear1 called {number} times")
assert found == {"with grad": 1, "without grad": 0, "without grad, with a hook": 1}, "the behaviour has changed"
PYTHON
