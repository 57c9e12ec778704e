#!/usr/bin/env bash
# torch 2.13.0, CPU: F.linear of a three-dimensional input returns a view (of the two-dimensional product) when it is given a bias, and a tensor
# of its own when it is not. Usually nobody notices. But if it is one of two results of an autograd.Function, it decides whether a caller may
# write to the result: with a bias `y.add_(1)` is refused ("Output 0 of … is a view …"), without one it is allowed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import torch.nn.functional as F


class Two(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        return F.linear(x, weight, bias), x.new_empty(0)

    @staticmethod
    def backward(ctx, dy, _):
        return None, None, None


x, weight, bias = torch.randn(2, 3, 4, requires_grad=True), torch.randn(5, 4), torch.randn(5)
found = {}
for name, b in (("bias", bias), ("no bias", None)):
    with torch.no_grad():
        view = F.linear(x, weight, b)._is_view()
    y, _ = Two.apply(x, weight, b)
    try:
        y.add_(1)
        found[name] = view, "written"
    except RuntimeError as error:
        found[name] = view, str(error).partition(".")[0]
print("torch", torch.__version__)
for name, (view, outcome) in found.items():
    print(f"{name:8} a view: {view}; add_: {outcome}")
assert found["bias"][0], "the behaviour has changed"
assert found["bias"][1] == "Output 0 of Two is a view and is being modified inplace", "the behaviour has changed"
assert found["no bias"] == (False, "written"), "the behaviour has changed"
PYTHON
