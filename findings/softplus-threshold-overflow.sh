#!/usr/bin/env bash
# torch 2.13.0, CPU: softplus's threshold is not only a shortcut. The function below it is log1p(exp(x)) as it stands, so with the threshold
# out of the way (infinity, or more than the exponential's range) softplus(800) is inf in float64 and its gradient NaN, where
# logaddexp(x, 0), the same function, gives 800 and 1. At the default of 20 the result is exact in float32 and off by e^-20 in float64.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import math

import torch
import torch.nn.functional as F


def at(function, number):
    """(value, gradient) in float64."""
    x = torch.tensor([number], dtype=torch.float64, requires_grad=True)
    y = function(x)
    y.backward()
    return y.item(), x.grad.item()


unlimited = at(lambda x: F.softplus(x, threshold=math.inf), 800.0)
stable = at(lambda x: torch.logaddexp(x, x.new_zeros(())), 800.0)
default, exact = at(F.softplus, 20.5)[0], at(lambda x: torch.logaddexp(x, x.new_zeros(())), 20.5)[0]
print(f"torch {torch.__version__}, x = 800: softplus(threshold=inf) {unlimited}, logaddexp(x, 0) {stable}")
print(f"x = 20.5: softplus errs by {exact - default:.2g}, log(1 + e^-x) is {math.log1p(math.exp(-20.5)):.2g}")
assert unlimited[0] == math.inf and math.isnan(unlimited[1]), "the behaviour has changed"
assert stable == (800.0, 1.0)
assert default == 20.5 and 1e-9 < exact - default < 2e-9, "the behaviour has changed"
PYTHON
