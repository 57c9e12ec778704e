#!/usr/bin/env bash
# torch 2.13.0: inside a backward pass torch._C._will_engine_execute_node(node) says whether the engine will run a node. For a leaf's
# AccumulateGrad node it answers False where torch.autograd.grad does not ask for that leaf. Where grad does ask for it, the call raises
# RuntimeError ("A leaf node was passed ..."): the error means yes. Under .backward(), and for a view of the leaf, it answers True.
# One would expect True or False for every node of the graph. To skip gradients that nobody asked for, pass views of the parameters.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        for (node, _), name in zip(ctx.next_functions, "xw"):
            try:
                answers[name] = str(torch._C._will_engine_execute_node(node))
            except RuntimeError as error:
                answers[name] = str(error).split(" to ")[0]
        return dy * w, dy * x


def ask(run):
    answers.clear()
    run()
    return dict(answers)


answers = {}
x, w = (torch.ones(3, requires_grad=True) for _ in range(2))
found = {
    "grad(y, [x])": ask(lambda: torch.autograd.grad(Product.apply(x, w).sum(), [x])),
    "y.backward()": ask(lambda: Product.apply(x, w).sum().backward()),
    "grad(y, [x]), views": ask(lambda: torch.autograd.grad(Product.apply(x.view_as(x), w.view_as(w)).sum(), [x])),
}
print(torch.__version__)
for how, answer in found.items():
    print(f"{how:20} {answer}")
assert found == {
    "grad(y, [x])": {"x": "A leaf node was passed", "w": "False"},
    "y.backward()": {"x": "True", "w": "True"},
    "grad(y, [x]), views": {"x": "True", "w": "False"},
}, "the behaviour has changed"
PYTHON
