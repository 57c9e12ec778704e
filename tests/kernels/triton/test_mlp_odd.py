"""The MLPs under second derivatives, autocast, hooks and batches of gradients, with odd shapes, layouts and numbers."""

import pytest
import torch
import torch.nn.functional as F

import checks
import epilogue
from checks import assert_accurate
from epilogue.nn import FusedGatedMLP, FusedMLP
from epilogue.operands import Dropout, draw_seed
from epilogue.triton.dropout import dropout_mask
from mlps import SHAPES, output_gradient, tensors


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
@pytest.mark.parametrize("form", ["mlp", "gated_mlp", "packed"])
def test_second_derivatives(form, dropout_p, rng, device, monkeypatch):
    """Those of the unfused layer; with dropout, of the same mask."""
    op = "mlp" if form == "mlp" else "gated_mlp"
    args = {name: t.float() for name, t in tensors(op, rng, "pointer", torch.float64, device).items()}
    m, (_, hidden, _) = SHAPES["pointer"]
    torch.manual_seed(3)
    mask = dropout_mask(Dropout(dropout_p, draw_seed(torch.device(device))), m, hidden) if dropout_p else 1.0
    entry = epilogue.ACTIVATIONS["tanh"]

    def penalty(fused, args):
        args = {name: t.detach().clone().requires_grad_() for name, t in args.items()}
        if not fused:
            hidden_args = {
                **args,
                "down_weight": torch.eye(hidden, device=device, dtype=torch.float64),
                "down_bias": None,
            }
            h = checks.unfused(op, hidden_args, entry) * mask
            y = F.linear(h, args["down_weight"], args["down_bias"])
        else:
            call = dict(args)
            if form == "packed":
                call |= {"gate_weight": torch.cat([args["gate_weight"], args["up_weight"]]), "up_weight": None}
                call |= {"gate_bias": torch.cat([args["gate_bias"], args["up_bias"]]), "up_bias": None}
            torch.manual_seed(3)
            y = getattr(epilogue, op)(**call, activation=entry, dropout_p=dropout_p, training=True)
        first = torch.autograd.grad(y.square().sum(), list(args.values()), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), list(args.values()))

    doubles = {name: t.double() for name, t in args.items()}
    for actual, expected in zip(penalty(True, args), penalty(False, doubles), strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=5e-4, atol=5e-4 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [FusedMLP, FusedGatedMLP])
def test_autocast(kind, dtype, device):
    module, x = kind(16, 24, dropout=0.1, bias=True).to(device), torch.randn(12, 16, device=device)
    with torch.autocast(device, dtype):
        y = module(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize(("m", "k", "h", "n"), [(0, 5, 4, 3), (3, 0, 4, 2), (3, 5, 0, 2), (3, 5, 4, 0)])
@pytest.mark.parametrize("op", ["mlp", "gated_mlp"])
def test_empty(op, m, k, h, n, rng, device):
    args = checks.each(
        lambda a: torch.as_tensor(a).to(device).requires_grad_(), checks.arguments(op, rng, (2, m), (k, h, n))
    )
    single = checks.each(lambda t: t.detach().float().requires_grad_(), args)
    y = getattr(epilogue, op)(**single, activation="silu")
    assert y.shape == (2, m, n)
    y.sum().backward()
    checks.unfused(op, args, epilogue.ACTIVATIONS["silu"]).sum().backward()
    for actual, expected in zip(checks.leaves(single), checks.leaves(args), strict=True):
        torch.testing.assert_close(actual.grad.double(), expected.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["sum", "transposed weights", "strided x", "leading axes"])
def test_layouts(layout, rng, device):
    args = tensors("gated_mlp", rng, "descriptor", torch.float16, device)
    m, (k, _, n) = SHAPES["descriptor"]
    dy = output_gradient("descriptor", torch.float16, device)
    if layout == "sum":
        dy = torch.ones((), device=device, dtype=torch.float16).expand(
            m, n
        )  # as out.sum().backward() gives: every stride 0
    elif layout == "transposed weights":
        args = {name: t.t().contiguous().t() if "weight" in name else t for name, t in args.items()}
    elif layout == "strided x":
        args["x"] = torch.stack([args["x"]] * 2, -1)[..., 0]
    else:
        args["x"], dy = args["x"].view(5, 8, k).transpose(0, 1), dy.view(8, 5, n)

    def run(function, args, dy):
        leaves = {name: t.detach().requires_grad_() for name, t in args.items()}
        y = function(leaves)
        return [y, *torch.autograd.grad(y, list(leaves.values()), dy)]

    silu = epilogue.ACTIVATIONS["silu"]
    own = run(lambda args: checks.unfused("gated_mlp", args, silu), args, dy)
    exact = run(
        lambda args: checks.unfused("gated_mlp", args, silu), checks.each(lambda t: t.double(), args), dy.double()
    )
    for actual, torchs, truth in zip(run(lambda args: epilogue.gated_mlp(**args), args, dy), own, exact, strict=True):
        assert_accurate(actual, torchs, truth)


@pytest.mark.parametrize("op", ["linear", "glu packed", "mlp", "gated_mlp"])
def test_hooks_may_return_other_strides(op, rng, device):
    """As hooks that compress or offload what is kept do."""
    args = checks.each(
        lambda a: torch.as_tensor(a).float().to(device).requires_grad_(), checks.arguments(op, rng, (12,), (16, 24, 8))
    )
    operation = getattr(epilogue, op.split()[0])
    expected = torch.autograd.grad(operation(**args, activation="silu").square().sum(), checks.leaves(args))

    def other_strides(t):
        return t.t().contiguous().t() if t.ndim == 2 else t

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, other_strides):
        y = operation(**args, activation="silu")
    for actual, wanted in zip(torch.autograd.grad(y.square().sum(), checks.leaves(args)), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


def test_non_finite_stays_in_its_row(rng, device):
    args = tensors("gated_mlp", rng, "descriptor", torch.float16, device)
    dy = output_gradient("descriptor", torch.float16, device)

    def gradient(x):
        x = x.clone().requires_grad_()
        epilogue.gated_mlp(**{**args, "x": x}).backward(dy)
        return x.grad

    clean, x = gradient(args["x"]), args["x"].clone()
    x[3], x[7, 5] = float("nan"), float("inf")
    rows = [row for row in range(40) if row not in (3, 7)]
    assert torch.equal(gradient(x)[rows], clean[rows])


def test_batched_gradients(rng, device):
    args = {name: t.requires_grad_() for name, t in tensors("mlp", rng, "pointer", torch.float32, device).items()}
    y = epilogue.mlp(**args)
    dys = torch.randn(3, *y.shape, device=device)
    batched = torch.autograd.grad(y, args.values(), dys, is_grads_batched=True, retain_graph=True)
    for i, dy in enumerate(dys):
        for actual, expected in zip(batched, torch.autograd.grad(y, args.values(), dy, retain_graph=True), strict=True):
            torch.testing.assert_close(actual[i], expected)
