"""The operations on torch tensors against the unfused layers: results, gradients of every order, layouts, dropout."""

import copy

import pytest
import torch
from torch import nn

import epilogue
from checks import OPS, arguments, assert_accurate, each, fused, leaves, op_cases, unfused
from epilogue import ACTIVATIONS


def tensors(args, device="cpu", dtype=torch.float64):
    return each(lambda array: torch.tensor(array, dtype=dtype, device=device, requires_grad=True), args)


def twins(args):
    """The same leaves again, with gradients of their own."""
    return each(lambda tensor: tensor.detach().clone().requires_grad_(), args)


def check(op, args, entry, values=()):
    """Result and gradients are as accurate as the unfused layer's of the same dtype."""
    plain, exact = twins(args), each(lambda tensor: tensor.detach().double().requires_grad_(), args)
    y, expected = fused(op, args, entry, values), unfused(op, plain, entry, values)
    precise = unfused(op, exact, entry, values)
    assert_accurate(y, expected, precise)
    dy = torch.randn_like(expected)
    for result, gradient in ((y, dy), (expected, dy), (precise, dy.double())):
        result.backward(gradient)
    for actual, of, true in zip(*map(leaves, (args, plain, exact)), strict=True):
        assert_accurate(actual.grad, of.grad, true.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("op", "entry", "values"), op_cases())
def test_every_activation_is_the_unfused_layer(op, entry, values, dtype, device, rng):
    check(op, tensors(arguments(op, rng, (2, 9), (16, 24, 8)), device, dtype), entry, values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("op", OPS)
def test_the_other_dtypes(op, dtype, device, rng):
    check(op, tensors(arguments(op, rng, (9,), (16, 24, 8)), device, dtype), ACTIVATIONS["gelu"])


@pytest.mark.parametrize("lead", [(), (1,), (0,), (2, 3), (2, 0, 3)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("op", OPS)
def test_leading_axes_and_bias(op, lead, bias, device, rng):
    args = tensors(arguments(op, rng, lead, bias=bias), device, torch.float32)
    y = fused(op, args, ACTIVATIONS["silu"])
    assert y.shape == (*lead, 3 if "mlp" in op else 6)
    check(op, twins(args), ACTIVATIONS["silu"])


@pytest.mark.parametrize("sizes", [(1, 1, 1), (0, 4, 3), (5, 4, 0), (17, 13, 11)])
@pytest.mark.parametrize("op", OPS)
def test_sizes(op, sizes, device, rng):
    check(op, tensors(arguments(op, rng, sizes=sizes), device, torch.float32), ACTIVATIONS["gelu"])


@pytest.mark.parametrize("name", ["prelu", "swish"])
@pytest.mark.parametrize("shape", [(), (1,), (6,)])
@pytest.mark.parametrize("op", OPS)
def test_learnable_parameters_get_their_gradient(op, name, shape, device, rng):
    args, value = tensors(arguments(op, rng), device), torch.randn(shape, dtype=torch.float64, device=device)
    entry, values = ACTIVATIONS[name], [value.clone().requires_grad_() for _ in range(2)]
    fused(op, args, entry, values[:1]).square().sum().backward()
    plain = twins(args)
    unfused(op, plain, entry, values[1:]).square().sum().backward()
    for actual, of in zip(leaves((args, values[0])), leaves((plain, values[1])), strict=True):
        assert_accurate(actual.grad, of.grad, of.grad)


@pytest.mark.parametrize(("op", "entry", "values"), op_cases(every=False))
def test_gradients_of_both_orders_in_float64(op, entry, values, device, rng):
    args = tensors(arguments(op, rng, (2,), (3, 4, 2)), device)
    if entry.learnable:
        first = torch.full((4,), values[0] + 0.5, dtype=torch.float64, device=device, requires_grad=True)
        values = (first, *values[1:])

    def function(*flat):
        flat = iter(flat)
        rebuilt = each(lambda _: next(flat), args)
        return fused(op, rebuilt, entry, (next(flat), *values[1:]) if entry.learnable else values)

    inputs = leaves((args, values[:1] if entry.learnable else ()))
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True, atol=1e-6)
    if entry.name == "hardsigmoid":
        with pytest.raises(
            RuntimeError, match="hardsigmoid_backward is not implemented"
        ):  # by torch: never silently wrong
            torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    elif entry.name not in ("step", "sign"):  # gradgradcheck miscounts gradients that are constant
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True, atol=1e-6)


@pytest.mark.parametrize("op", OPS)
def test_frozen_inputs_get_no_gradient(op, device, rng):
    args = tensors(arguments(op, rng), device, torch.float32)
    for frozen in leaves(args)[1::2]:
        frozen.requires_grad_(False)
    fused(op, args, ACTIVATIONS["gelu"]).sum().backward()
    assert [tensor.grad is None for tensor in leaves(args)] == [i % 2 == 1 for i in range(len(leaves(args)))]
    with torch.no_grad():
        assert not fused(op, args, ACTIVATIONS["gelu"]).requires_grad


@pytest.mark.parametrize("name", ["relu", "silu", "prelu"])
@pytest.mark.parametrize("op", OPS)
def test_nothing_of_the_users_is_written_to_and_a_second_backward_is_the_first(op, name, device, rng):
    args = tensors(arguments(op, rng), device, torch.float32)
    before = copy.deepcopy(args)
    y = fused(op, args, ACTIVATIONS[name], (0.25,) if name == "prelu" else ())
    result, dy = y.detach().clone(), torch.randn_like(y)
    gradient = dy.clone()
    first = torch.autograd.grad(y, leaves(args), dy, retain_graph=True)
    second = torch.autograd.grad(y, leaves(args), dy)
    for actual, of in zip(first, second, strict=True):
        assert torch.equal(actual, of)
    for actual, of in zip(leaves((args, y, dy)), leaves((before, result, gradient)), strict=True):
        assert torch.equal(actual, of)


def strided(tensor):
    """The same values in memory that is neither contiguous nor dense."""
    big = torch.full([2 * size + 1 for size in tensor.shape], float("nan"), dtype=tensor.dtype, device=tensor.device)
    view = big[tuple(slice(1, None, 2) for _ in tensor.shape)]
    view.copy_(tensor)
    return view.detach().requires_grad_()


def transposed(tensor):
    return tensor.detach().mT.contiguous().mT.requires_grad_() if tensor.ndim > 1 else twins(tensor)


def expanded(tensor):
    """Every row the first one, at stride 0."""
    return tensor.detach()[:1].expand(tensor.shape).requires_grad_()


@pytest.mark.parametrize("layout", [strided, transposed, expanded])
@pytest.mark.parametrize("op", OPS)
def test_layouts(op, layout, device, rng):
    args = each(layout, tensors(arguments(op, rng, (3, 5)), device, torch.float32))
    assert not leaves(args)[1].is_contiguous()
    check_layout = each(lambda tensor: tensor.detach().clone(memory_format=torch.contiguous_format), args)
    expected = fused(op, each(lambda tensor: tensor.requires_grad_(), check_layout), ACTIVATIONS["silu"])
    y = fused(op, args, ACTIVATIONS["silu"])
    torch.testing.assert_close(y, expected)
    for result in (y, expected):
        result.sum().backward()  # a gradient of stride 0
    for actual, of in zip(leaves(args), leaves(check_layout), strict=True):
        torch.testing.assert_close(actual.grad, of.grad)


@pytest.mark.parametrize("op", OPS)
def test_gradients_of_any_layout_are_taken(op, device, rng):
    args = tensors(arguments(op, rng), device, torch.float32)
    y = fused(op, args, ACTIVATIONS["silu"])
    dy = torch.randn_like(y)
    expected = torch.autograd.grad(y, leaves(args), dy, retain_graph=True)
    for layout in (strided, transposed):
        for actual, of in zip(
            torch.autograd.grad(y, leaves(args), layout(dy), retain_graph=True), expected, strict=True
        ):
            torch.testing.assert_close(actual, of)


def test_a_gated_weight_may_be_two_views_of_one_tensor(device, rng):
    args = tensors(arguments("glu packed", rng), device, torch.float32)
    weight, bias = args["weight"], args["bias"]
    y = epilogue.glu(args["x"], weight, bias)
    again = epilogue.glu(args["x"], tuple(weight.chunk(2)), tuple(bias.chunk(2)))
    torch.testing.assert_close(y, again)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), weight), torch.autograd.grad(again.sum(), weight))


@pytest.mark.parametrize("spec", ["swiglu", nn.SiLU(), nn.functional.silu, "SiLU", ACTIVATIONS["silu"].gated])
@pytest.mark.parametrize("op", ["glu", "gated_mlp"])
def test_every_spelling_of_swiglu(op, spec, device, rng):
    args = tensors(arguments(op, rng), device, torch.float32)
    assert torch.equal(getattr(epilogue, op)(**args, activation=spec), getattr(epilogue, op)(**args))


@pytest.mark.parametrize(
    "module",
    [nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.Hardtanh, nn.Softplus, nn.Softshrink, nn.Hardshrink, nn.GELU, nn.ReLU],
)
def test_defaults_are_torchs(module, device, rng):
    args = tensors(arguments("linear", rng), device)
    torch.testing.assert_close(
        epilogue.linear(**args, activation=module.__name__),
        module().double().to(device)(nn.functional.linear(*args.values())),
    )


def test_modules_and_keywords_carry_parameters(device, rng):
    args = tensors(arguments("linear", rng), device)
    z = nn.functional.linear(*args.values())
    for spec, params in (("leaky_relu", {"negative_slope": 0.3}), (nn.LeakyReLU(0.3), {})):
        torch.testing.assert_close(epilogue.linear(**args, activation=spec, **params), nn.functional.leaky_relu(z, 0.3))
    torch.testing.assert_close(epilogue.linear(**args, approximate="tanh"), nn.functional.gelu(z, approximate="tanh"))


@pytest.mark.parametrize("op", ["mlp", "gated_mlp"])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout_is_torchs(op, p, device, rng):
    args = tensors(arguments(op, rng, (64,), (5, 32, 3)), device)
    results = []
    for run in (lambda: fused(op, args, ACTIVATIONS["silu"], dropout_p=p, training=True),
                lambda: unfused(op, args, ACTIVATIONS["silu"], dropout_p=p)):  # fmt: skip
        torch.manual_seed(3)
        y = run()
        results.append((y, *torch.autograd.grad(y.sum(), leaves(args))))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)
    dropped = not torch.allclose(results[0][0], fused(op, args, ACTIVATIONS["silu"]))
    assert dropped == (p > 0)


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
@pytest.mark.parametrize("op", ["mlp", "gated_mlp", "gated_mlp packed"])
def test_recompute_keeps_x_alone_and_changes_no_number(op, dropout_p, device, rng):
    args = tensors(arguments(op, rng, (64,), (5, 32, 3)), device)
    results, kept = [], []
    for recompute in (False, True):
        torch.manual_seed(3)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            y = fused(op, args, ACTIVATIONS["silu"], recompute=recompute, dropout_p=dropout_p, training=True)
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves(args))))
        kept.append(sum(size for size in sizes if size >= args["x"].numel()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept[1] < kept[0] / 3


@pytest.mark.parametrize("op", ["mlp", "gated_mlp"])
def test_without_training_nothing_is_dropped(op, device, rng):
    args = tensors(arguments(op, rng), device)
    state = torch.random.get_rng_state()
    y = fused(op, args, ACTIVATIONS["silu"], dropout_p=0.9)
    assert torch.equal(y, fused(op, args, ACTIVATIONS["silu"]))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_no_module_is_looked_up_for_a_tensor(monkeypatch):
    """A compiler would trace the look-up in sys.modules, and with it look at every module there is (findings/dynamo-lazy-modules.sh)."""

    def is_cupy(x):
        raise AssertionError("asked whether a tensor is CuPy's")

    monkeypatch.setattr(epilogue.functional, "is_cupy", is_cupy)
    assert epilogue.linear(torch.ones(2, 3), torch.ones(4, 3)).shape == (2, 4)
