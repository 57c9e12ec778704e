#!/usr/bin/env bash
# torch 2.13.0: once_differentiable does not keep a second derivative from being silently wrong. Its error sits on an edge of the graph that
# torch.autograd.grad never walks when asked for the input. The result is then computed as if the first gradient's factor were constant. Only
# .backward(), which walks every edge, raises. Where the incoming gradient needs no gradient, as for a plain result, even .backward() does not.
# So the decorator does not protect a raw kernel in a backward. Such a backward has to look at torch.is_grad_enabled() and then compute with
# differentiable operations.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.autograd.function import once_differentiable


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return dy * 3 * x**2


def second(cube, power, by_backward):
    """The derivative of x g at x = 2, where g is that of cube(x) ** power."""
    x = torch.tensor(2.0, requires_grad=True)
    (g,) = torch.autograd.grad(cube(x) ** power if power > 1 else cube(x), x, create_graph=True)
    try:
        if not by_backward:
            return torch.autograd.grad(x * g, x)[0].item()
        (x * g).backward()
        return x.grad.item()
    except RuntimeError as error:
        return str(error).partition(" that ")[0]


found = {}
print("torch", torch.__version__)
for power in 1, 2:
    for by_backward in False, True:
        key = f"y^{power}, {'backward' if by_backward else 'grad'}"
        found[key] = second(Cube.apply, power, by_backward)
        print(f"{key:13} {found[key]} (right: {second(lambda x: x**3, power, by_backward)})")
assert found == {
    "y^1, grad": 12.0,
    "y^1, backward": 12.0,
    "y^2, grad": 192.0,
    "y^2, backward": "trying to differentiate twice a function",
}, "the behaviour has changed"
PYTHON
