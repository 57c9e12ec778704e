"""The MLPs on the kernels: every activation's training, learnable parameters, packed weights."""

import pytest
import torch

import checks
import epilogue
from epilogue.triton import refusal
from mlps import DTYPES, SHAPES, output_gradient, tensors

FORMS = {1: ("mlp", "gated_mlp", "gated_mlp packed"), 2: ("gated_mlp", "gated_mlp packed")}
EVERY = [
    pytest.param(form, *case.values, id=f"{form}-{case.id}")
    for arity, forms in FORMS.items()
    for form in forms
    for case in checks.cases(arity, every=form == "mlp")
]


def compare(op, args, entry, values, dy, **options):
    def function(args, values):
        return checks.fused(op, args, entry, values, **options)

    assert refusal(args["x"], args["down_weight"]) is None
    checks.assert_trains(function, op, args, entry, values, dy)


@pytest.mark.parametrize(("op", "entry", "values", "dtype", "kernel"), checks.dealt(EVERY, DTYPES, SHAPES))
def test_every_activation_trains(op, entry, values, dtype, kernel, rng, device):
    args = tensors(op, rng, kernel, dtype, device)
    compare(op, args, entry, values, output_gradient(kernel, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", ["pointer", "unfused"])
@pytest.mark.parametrize("size", ["scalar", "channel"])
@pytest.mark.parametrize("op", ["mlp", "gated_mlp"])
@pytest.mark.parametrize("name", [name for name, entry in epilogue.ACTIVATIONS.items() if entry.learnable])
def test_learnable(name, op, size, dtype, kernel, rng, device):
    args = tensors(op, rng, kernel, dtype, device)
    for operand, tensor in args.items():
        if operand in ("down_weight", "up_weight", "up_bias", "x")[: 1 if op == "mlp" else 4]:
            tensor.detach().abs_()  # a sum whose terms cancel would measure luck
    hidden = SHAPES[kernel][1][1]
    slope = 0.5 + torch.rand({"scalar": (), "channel": (hidden,)}[size], device=device).to(dtype)
    entry = epilogue.ACTIVATIONS[name]
    compare(op, args, entry, (slope, *list(entry.params.values())[1:]), output_gradient(kernel, dtype, device).abs())


@pytest.mark.parametrize("kernel", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["silu", "maxout"])
def test_packed(activation, bias, kernel, rng, device):
    """gate|up as one weight: the same numbers, gradients packed too."""
    args = tensors("gated_mlp", rng, kernel, torch.float16, device, bias)
    x, gate, up, down, gate_bias, up_bias, down_bias = args.values()
    packed = {
        "x": x, "gate_weight": torch.cat([gate, up]), "up_weight": None, "down_weight": down,
        "gate_bias": torch.cat([gate_bias, up_bias]) if bias else None, "up_bias": None, "down_bias": down_bias,
    }  # fmt: skip
    dy = output_gradient(kernel, torch.float16, device)
    pair, one = (
        checks.train(lambda args, _: epilogue.gated_mlp(**args, activation=activation), a, dy) for a in (args, packed)
    )
    y, dx, dgate, dup, ddown, *biases = pair
    expected = [y, dx, torch.cat([dgate, dup]), ddown, *([torch.cat(biases[:2]), biases[2]] if bias else [])]
    for actual, wanted in zip(one, expected, strict=True):  # dx is one product here, two for a pair
        assert (actual - wanted).abs().max() <= 4e-3 * wanted.abs().max()
