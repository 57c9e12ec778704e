"""The MLPs on the kernels: every activation's training, what is kept for backward, dropout, recomputation, and who may be frozen."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import checks
import epilogue
from checks import assert_accurate, kept, philox
from epilogue.nn import FusedGatedMLP, FusedMLP
from epilogue.operands import Dropout, draw_seed
from epilogue.triton import refusal
from epilogue.triton.dropout import dropout_mask

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = {
    "pointer": (37, (19, 29, 13)),
    "descriptor": (40, (32, 48, 24)),
    "unfused": (37, (19, 29, 13)),
}  # M and (K, H, N): primes; multiples of 16 bytes
FORMS = {1: ("mlp", "gated_mlp", "gated_mlp packed"), 2: ("gated_mlp", "gated_mlp packed")}
EVERY = [
    pytest.param(form, *case.values, id=f"{form}-{case.id}")
    for arity, forms in FORMS.items()
    for form in forms
    for case in checks.cases(arity, every=form == "mlp")
]


def tensors(op, rng, kernel, dtype, device, bias=True):
    m, sizes = SHAPES[kernel]
    args = checks.arguments(op, rng, (m,), sizes, bias)
    return checks.each(lambda a: torch.as_tensor(a).to(device, dtype), args)


def train(function, args, dy, values=()):
    """[y, gradients of all tensors in args and values]."""
    args = checks.each(lambda t: t.detach().clone().requires_grad_(), args)
    values = tuple(v.detach().clone().requires_grad_() if isinstance(v, torch.Tensor) else v for v in values)
    y = function(args, values)
    leaves = [*checks.leaves(args), *(v for v in values if isinstance(v, torch.Tensor))]
    return [y, *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def compare(op, args, entry, values, dy, **options):
    """The kernels against the unfused layers of the same dtype, by the error of both."""

    def fused(args, values):
        operation = getattr(epilogue, op.split()[0])
        return operation(**args, activation=entry, **checks.keywords(entry, values), **options)

    def unfused(args, values):
        return checks.unfused(op, args, entry, values)

    assert refusal(args["x"], args["down_weight"]) is None
    exact = train(unfused, checks.each(lambda t: t.double(), args), dy, checks.each(as_double, values))
    own = train(unfused, args, dy, values)
    for actual, torchs, truth in zip(train(fused, args, dy, values), own, exact, strict=True):
        assert_accurate(actual, torchs, truth)


def as_double(value):
    return value.double() if isinstance(value, torch.Tensor) else value


def output_gradient(kernel, dtype, device):
    m, (_, _, n) = SHAPES[kernel]
    return torch.randn(m, n, dtype=torch.float64).to(device, dtype)


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
        train(lambda args, _: epilogue.gated_mlp(**args, activation=activation), a, dy) for a in (args, packed)
    )
    y, dx, dgate, dup, ddown, *biases = pair
    expected = [y, dx, torch.cat([dgate, dup]), ddown, *([torch.cat(biases[:2]), biases[2]] if bias else [])]
    for actual, wanted in zip(one, expected, strict=True):  # dx is one product here, two for a pair
        assert (actual - wanted).abs().max() <= 4e-3 * wanted.abs().max()


# --- what is kept for backward


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
        train(lambda args, _, r=r: getattr(epilogue, op)(**args, activation=activation, recompute=r), args, dy)
        for r in (False, True)
    )
    exact = train(
        lambda args, _: checks.unfused(op, args, epilogue.resolve(activation)[0].gate or epilogue.resolve(activation)[0]),
        checks.each(lambda t: t.double(), args), dy,
    )  # fmt: skip
    for actual, own, truth in zip(recomputed, kept, exact, strict=True):
        assert_accurate(actual, own, truth)


# --- dropout


def test_mask_is_philox(device):
    assert philox(0, 0, 0, 10) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # Random123's known answer
    seed, p, (m, n) = 0x123456789ABCDEF, 0.3, (3, 11)
    mask = dropout_mask(Dropout(p, torch.tensor([seed], device=device)), m, n).cpu()
    words = np.array([[philox(seed, col // 4, row, 7)[col % 4] for col in range(n)] for row in range(m)], np.uint32)
    kept = words.view(np.int32) >= round(p * 2**32) - 2**31
    np.testing.assert_array_equal(mask.numpy(), np.where(kept, np.float32(1 / (1 - p)), 0))


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.1, 0.5, 0.9, 1.0])
def test_share_and_scale(p, device):
    mask = dropout_mask(Dropout(p, draw_seed(torch.device(device))), 500, 499)
    count = mask.numel()
    assert abs((mask == 0).double().mean().item() - p) <= 4 * (p * (1 - p) / count) ** 0.5
    if p < 1:
        assert mask.unique().max().item() == pytest.approx(1 / (1 - p))
        if p:
            rows, cols = ((mask == 0).double().mean(axis) for axis in (1, 0))
            for share in (
                rows,
                cols,
            ):  # no row or column, and no pair of neighbours, sees more of it than chance allows
                assert (share - p).abs().max() <= 6 * (p * (1 - p) / 499) ** 0.5
            both = ((mask[:, 1:] == 0) & (mask[:, :-1] == 0)).double().mean().item()
            assert abs(both - p * p) <= 5 * (p * p / count) ** 0.5


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("activation", "dtype", "kernel"),
    checks.dealt(
        [pytest.param(name, id=name) for name in ("gelu", "relu", "leaky_relu", "tanh", "swiglu", "maxout")],
        DTYPES,
        SHAPES,
    ),
)
def test_dropout_is_one_mask(activation, dtype, kernel, recompute, rng, device, monkeypatch):
    """Forward and backward equal the unfused layer with the mask that the seed stands for."""
    op = "gated_mlp" if activation in ("swiglu", "maxout") else "mlp"
    entry = epilogue.resolve(activation)[0]
    entry, p = entry.gate or entry, 0.3
    args, dy = tensors(op, rng, kernel, dtype, device), output_gradient(kernel, dtype, device)
    m, (_, hidden, _) = SHAPES[kernel]
    torch.manual_seed(3)
    mask = dropout_mask(Dropout(p, draw_seed(torch.device(device))), m, hidden)
    monkeypatch.setattr(F, "dropout", lambda h, p: h * mask.to(h.dtype))

    def fused(args, values):
        torch.manual_seed(3)
        keywords = checks.keywords(entry, values)
        return getattr(epilogue, op)(
            **args, activation=entry, dropout_p=p, training=True, recompute=recompute, **keywords
        )

    values = tuple(entry.params.values())
    unfused = functools.partial(checks.unfused, op, entry=entry, dropout_p=p)
    own, exact = (
        train(lambda args, values: unfused(args=args, values=values), a, dy, values)
        for a in (args, checks.each(lambda t: t.double(), args))
    )
    for actual, torchs, truth in zip(train(fused, args, dy, values), own, exact, strict=True):
        assert_accurate(actual, torchs, truth)


def test_dropout_follows_the_generator(rng, device):
    args = tensors("mlp", rng, "descriptor", torch.float32, device)

    def draw(**options):
        return epilogue.mlp(**args, dropout_p=0.5, **options)

    torch.manual_seed(1)
    first, second = draw(training=True), draw(training=True)
    torch.manual_seed(1)
    assert torch.equal(draw(training=True), first)
    assert not torch.equal(first, second)
    assert torch.equal(draw(), epilogue.mlp(**args))
    state = torch.get_rng_state()
    draw()
    assert torch.equal(torch.get_rng_state(), state)
    everything = epilogue.mlp(**args, dropout_p=1.0, training=True)
    torch.testing.assert_close(everything, args["down_bias"].expand_as(everything))


def test_dropout_under_checkpointing(rng, device):
    from torch.utils.checkpoint import checkpoint

    args = {
        name: t.requires_grad_() for name, t in tensors("gated_mlp", rng, "descriptor", torch.float16, device).items()
    }
    function = functools.partial(epilogue.gated_mlp, dropout_p=0.4, training=True)
    results = []
    for wrapped in (function, functools.partial(checkpoint, function, use_reentrant=False)):
        torch.manual_seed(5)
        y = wrapped(*args.values())
        results.append([y, *torch.autograd.grad(y.float().square().sum(), args.values())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# --- derivatives of derivatives, autocast, odd inputs


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
