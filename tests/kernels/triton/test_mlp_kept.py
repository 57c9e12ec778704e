"""What an MLP keeps for backward, who may be frozen, and recomputation."""

import pytest
import torch

import checks
import epilogue
from checks import assert_accurate, kept
from epilogue.nn import FusedGatedMLP, FusedMLP
from mlps import SHAPES, output_gradient, tensors

X, H, Z = ("float32", 12, 16), ("float32", 12, 24), ("float32", 12, 48)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"activation": "gelu"}, [X, H]),
        ({"activation": "gelu", "bias": False}, [X, H]),
        ({"activation": "relu"}, [X, H]),
        ({"activation": "gelu", "dropout": 0.1}, [X, H, ("int64", 1)]),
        ({"activation": "gelu", "recompute": True}, [X]),
        ({"activation": "gelu", "recompute": True, "dropout": 0.1}, [X, ("int64", 1)]),
    ],
)
@pytest.mark.parametrize("kind", [FusedMLP, FusedGatedMLP])
def test_keeps_x_and_the_preactivations(kind, options, what, device):
    module, x = kind(16, 24, 16, **options).to(device), torch.randn(12, 16, device=device)
    expected = [Z if size == H and kind is FusedGatedMLP else size for size in what]
    assert kept(lambda: module(x), *module.parameters()) == sorted(expected)
    assert kept(lambda: module.requires_grad_(False)(x), *module.parameters()) == []


@pytest.mark.parametrize(
    ("frozen", "activation", "what"),
    [
        (("down.weight",), "relu", [X, ("uint8", 12, 3)]),
        (("down.weight",), "leaky_relu", [X, ("uint8", 12, 3)]),
        (("down.weight",), "tanh", [X, H]),
        (("up.weight", "up.bias"), "gelu", [H]),
        (("up.weight", "up.bias", "down.weight"), "gelu", []),
        (("up.weight", "down.weight"), "relu", [("uint8", 12, 3)]),
        (("up.weight", "up.bias"), "recompute", [X]),
        (("up.weight", "up.bias", "down.weight"), "recompute", []),
    ],
)
def test_frozen_parameters_cost_nothing(frozen, activation, what, device):
    options = {"recompute": True} if activation == "recompute" else {"activation": activation}
    module, x = FusedMLP(16, 24, **options).to(device), torch.randn(12, 16, device=device)
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    assert kept(lambda: module(x), *module.parameters()) == sorted(what)


@pytest.mark.parametrize("kernel", SHAPES)
@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "gelu", "swiglu"])
def test_subsets_of_gradients(activation, dropout_p, kernel, rng, device):
    """Whatever is frozen, the other gradients are those of the whole: kept is then z, h or a bit of h."""
    op = "gated_mlp" if activation == "swiglu" else "mlp"
    args = tensors(op, rng, kernel, torch.float16, device)
    dy = output_gradient(kernel, torch.float16, device)

    def gradients(wanted):
        leaves = {name: t.detach().clone().requires_grad_(name in wanted) for name, t in args.items()}
        torch.manual_seed(1)
        y = getattr(epilogue, op)(**leaves, activation=activation, dropout_p=dropout_p, training=True)
        y.backward(dy)
        return {name: t.grad for name, t in leaves.items()}

    whole = gradients(set(args))
    for wanted in ({"x"}, {"down_weight"}, {"down_bias"}, {"up_weight", "up_bias"}, {"x", "up_bias", "down_bias"}):
        for name, grad in gradients(wanted).items():
            assert (grad is not None) == (name in wanted)
            if grad is not None:
                # h is kept as forward rounded it, or computed again from a rounded z
                assert (grad - whole[name]).abs().max() <= 4e-3 * whole[name].abs().max()


@pytest.mark.parametrize("options", [{}, {"dropout_p": 0.5, "training": True}, {"recompute": True}])
@pytest.mark.parametrize("activation", ["gelu", "relu", "swiglu"])
def test_second_backward_is_the_first(activation, options, rng, device):
    op = "gated_mlp" if activation == "swiglu" else "mlp"
    args = tensors(op, rng, "descriptor", torch.float16, device)
    leaves = [t.requires_grad_() for t in args.values()]
    before = [t.detach().clone() for t in leaves]
    y = getattr(epilogue, op)(**args, activation=activation, **options)
    dy = torch.randn_like(y)
    first = torch.autograd.grad(y, leaves, dy, retain_graph=True)
    second = torch.autograd.grad(y, leaves, dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ["gelu", "relu", "swiglu"])
def test_recompute_changes_no_number(activation, dtype, rng, device):
    op = "gated_mlp" if activation == "swiglu" else "mlp"
    args, dy = tensors(op, rng, "descriptor", dtype, device), output_gradient("descriptor", dtype, device)
    kept, recomputed = (
        checks.train(lambda args, _, r=r: getattr(epilogue, op)(**args, activation=activation, recompute=r), args, dy)
        for r in (False, True)
    )
    exact = checks.train(
        lambda args, _: checks.unfused(op, args, epilogue.resolve(activation)[0].gate or epilogue.resolve(activation)[0]),
        checks.each(lambda t: t.double(), args), dy,
    )  # fmt: skip
    for actual, own, truth in zip(recomputed, kept, exact, strict=True):
        assert_accurate(actual, own, truth)
