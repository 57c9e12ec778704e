"""What backward keeps, computes and refuses; autocast, checkpointing and higher derivatives as the unfused layer has them."""

import copy

import pytest
import torch
import torch.nn.functional as F

import epilogue
from checks import arguments, each, fused, kept
from epilogue import ACTIVATIONS
from epilogue.applied import Applied
from epilogue.nn import FusedGatedMLP, FusedLinear, FusedMLP
from epilogue.operands import Layer
from epilogue.triton import refusal
from epilogue.triton.linear import linear_fwd


@pytest.fixture
def arrays(device):
    x, weight, bias = torch.randn(12, 16), torch.randn(24, 16), torch.randn(24)
    return [t.to(device).requires_grad_() for t in (x, weight, bias)]


X, Z, BITS = ("float32", 12, 16), ("float32", 12, 24), ("uint8", 12, 3)


@pytest.mark.parametrize(
    ("activation", "params", "what"),
    [
        ("gelu", {}, Z),
        ("leaky_relu", {"negative_slope": 0.1}, BITS),
        ("leaky_relu", {"negative_slope": -0.1}, Z),
        ("step", {}, BITS),
        ("softplus", {}, Z),
        ("hardtanh", {}, Z),
        ("elu", {}, Z),
    ],
)
def test_keeps_x_and_z_or_bits_of_it(arrays, activation, params, what):
    assert kept(lambda: epilogue.linear(*arrays, activation, **params), *arrays[1:]) == [X, what]


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_keeps_y_where_torchs_own_layer_does(arrays, activation):
    y = epilogue.linear(*arrays, activation)
    saved = y.grad_fn.saved_tensors[0]
    assert saved.data_ptr() == y.data_ptr()


def test_frozen_costs_nothing(arrays):
    x, weight, bias = (t.detach() for t in arrays)
    live = x.clone().requires_grad_()
    assert kept(lambda: epilogue.linear(live, weight, None, "gelu"), weight) == [Z]  # no x
    assert kept(lambda: epilogue.linear(x, weight, bias, "gelu")) == []
    y = epilogue.linear(live, weight, bias, "gelu")
    (dx,) = torch.autograd.grad(y.sum(), live)
    expected = torch.autograd.grad(F.gelu(F.linear(live, weight, bias)).sum(), live)[0]
    torch.testing.assert_close(dx, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", range(3))
def test_subsets_of_gradients(arrays, frozen):
    def gradients(function):
        tensors = [t.detach().requires_grad_(i != frozen) for i, t in enumerate(arrays)]
        function(*tensors).square().sum().backward()
        return [t.grad for t in tensors]

    ours = gradients(lambda x, w, b: epilogue.linear(x, w, b, "silu"))
    for actual, expected in zip(ours, gradients(lambda x, w, b: F.silu(F.linear(x, w, b))), strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_inference_writes_y_alone(arrays):
    x, weight, bias = (t.detach() for t in arrays)
    gelu = epilogue.ACTIVATIONS["gelu"]
    assert linear_fwd(Layer(x, weight, bias=bias), Applied(gelu), "nothing")[1] is None
    with torch.no_grad():
        assert epilogue.linear(*arrays).grad_fn is None


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_second_backward_is_the_first(arrays, activation):
    before = [t.detach().clone() for t in arrays]
    y = epilogue.linear(*arrays, activation)
    dy = torch.randn_like(y)
    first = torch.autograd.grad(y, arrays, dy, retain_graph=True)
    second = torch.autograd.grad(y, arrays, dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(arrays, before, strict=True))
    assert torch.equal(epilogue.linear(*arrays, activation), y)


def test_result_may_be_changed_in_place(arrays):
    y = epilogue.linear(*arrays, "gelu").mul_(2.0)  # z is kept, not y
    y.sum().backward()
    expected = torch.autograd.grad((2 * F.gelu(F.linear(*arrays))).sum(), arrays[1])[0]
    torch.testing.assert_close(arrays[1].grad, expected, rtol=1e-4, atol=1e-4)
    y = epilogue.linear(*arrays, "relu").mul_(2.0)  # y is kept: torch refuses rather than be wrong
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("op", ["linear", "glu packed", "glu"])
def test_second_derivatives(op, device):
    x = torch.randn(5, 6, device=device)
    weight, bias = torch.randn(8, 6, device=device), torch.randn(8, device=device)

    def penalty(dtype):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (x, weight, bias)]
        a, w, b = leaves
        if op == "linear":
            y = epilogue.linear(
                a, w, b, "swish", beta=(beta := torch.tensor(1.3, dtype=dtype, device=device, requires_grad=True))
            )
            leaves.append(beta)
        elif op == "glu packed":
            y = epilogue.glu(a, w, b)
        else:
            y = epilogue.glu(a, (w[:4], w[4:]), (b[:4], b[4:]))
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for actual, expected in zip(penalty(torch.float32), penalty(torch.float64), strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=2e-4, atol=2e-3)


DEPENDENT = {
    "a shared weight": lambda x, w: epilogue.linear(epilogue.linear(x, w, None, "silu"), w, None, "silu"),
    "one weight twice": lambda x, w: epilogue.glu(x, (w, w)),
    "one from the other": lambda x, w: epilogue.glu(x, (w, 2 * w)),
    "weight from x": lambda x, w: epilogue.linear(x, x.t() @ x, None, "silu"),
    "everything w": lambda x, w: epilogue.linear(w, w, None, "silu"),
}


@pytest.mark.parametrize("case", DEPENDENT)
def test_inputs_that_depend_on_each_other(case, device):
    x, w = torch.randn(5, 6, device=device), torch.randn(6, 6, device=device)

    def gradients(dtype):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (x, w)]
        y = DEPENDENT[case](*leaves)
        plain = torch.autograd.grad(y.sum(), leaves, retain_graph=True, materialize_grads=True)
        first = torch.autograd.grad(y.sum(), leaves, create_graph=True, materialize_grads=True)
        penalty = sum(g.square().sum() for g in first)
        return [*plain, *first, *torch.autograd.grad(penalty, leaves, materialize_grads=True)]

    for actual, expected in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-3)


def test_lazily_negated_gradient(arrays):
    a, c = torch.randn(12, 24), torch.randn(12, 24, dtype=torch.complex64)
    a, c = a.to(arrays[0].device), c.to(arrays[0].device)

    def gradient(y):
        return torch.autograd.grad((torch.complex(a, y).conj() * c).real.sum(), arrays[1])[0]

    actual, expected = gradient(epilogue.linear(*arrays)), gradient(F.gelu(F.linear(*arrays)))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert "negated" in refusal(torch.complex(a, a).conj().imag, arrays[1])


def test_batched_gradients(arrays):
    dys = torch.randn(3, 12, 24, device=arrays[0].device)
    batched = torch.autograd.grad(epilogue.linear(*arrays), arrays, dys, is_grads_batched=True)
    for i, dy in enumerate(dys):
        for actual, expected in zip(batched, torch.autograd.grad(epilogue.linear(*arrays), arrays, dy), strict=True):
            torch.testing.assert_close(actual[i], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("activation", "params"),
    [("hardtanh", {"min_val": -0.7, "max_val": 0.7}), ("elu", {"alpha": 0.3}), ("celu", {"alpha": 0.3}), ("selu", {})],
)
def test_saturated_units_have_no_gradient(activation, params, dtype, device):
    """Where the bound is not a 16-bit number, the rounded y no longer shows that it was reached."""
    x = torch.tensor([[1.0]], device=device, dtype=dtype, requires_grad=True)
    epilogue.linear(x, torch.tensor([[-60.0]], device=device, dtype=dtype), None, activation, **params).sum().backward()
    assert abs(x.grad.item()) < 1e-20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["gelu", "softplus"])
def test_autocast(arrays, dtype, activation, device):
    with torch.autocast(device, dtype):
        y = epilogue.linear(*arrays, activation)
        plain = F.linear(*arrays)
        half = epilogue.linear(arrays[0].double(), arrays[1].double(), arrays[2].double(), activation)
    assert y.dtype == plain.dtype == dtype
    assert half.dtype == torch.float64
    y.sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in arrays)
    assert refusal(*arrays[:2]) is None


def test_checkpoint(arrays):
    from torch.utils.checkpoint import checkpoint

    function = lambda *tensors: epilogue.linear(*tensors, "mish")  # noqa: E731
    expected = torch.autograd.grad(function(*arrays).sum(), arrays)
    actual = torch.autograd.grad(checkpoint(function, *arrays, use_reentrant=False).sum(), arrays)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_functorch_and_forward_mode_run_plain_operations(arrays):
    x, weight, bias = (t.detach() for t in arrays)
    gradient = torch.func.grad(lambda w: epilogue.linear(x, w, bias).sum())(weight)
    torch.testing.assert_close(gradient, torch.autograd.grad(F.gelu(F.linear(*arrays)).sum(), arrays[1])[0])
    _, tangent = torch.func.jvp(lambda x: epilogue.linear(x, weight, bias), (x,), (torch.ones_like(x),))
    expected = torch.func.jvp(lambda x: F.gelu(F.linear(x, weight, bias)), (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(tangent, expected)
    mapped = torch.vmap(lambda row: epilogue.linear(row, weight, bias))(x)
    torch.testing.assert_close(mapped, F.gelu(F.linear(x, weight, bias)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.int64])
def test_what_is_refused(dtype, device):
    x = torch.ones(4, 4, device=device).to(dtype)
    assert str(dtype) in refusal(x, x)


@pytest.mark.parametrize("module", [FusedLinear(16, 24), FusedMLP(16, 24), FusedGatedMLP(16, 24, dropout=0.5)])
def test_modules_train(module, device):
    module = copy.deepcopy(module).to(device)
    reference = copy.deepcopy(module).double()
    x = torch.randn(3, 5, 16, device=device)
    for m, data in ((module.eval(), x), (reference.eval(), x.double())):
        m(data).square().mean().backward()
    for ours, exact in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)
    if hasattr(module, "dropout"):
        module.train()(x).sum().backward()


@pytest.mark.parametrize("shapes", [((), ()), ((1,), (16,)), ((16,), (16,))], ids=str)
@pytest.mark.parametrize("op", ["linear", "glu", "mlp", "gated_mlp"])
def test_two_tensors_that_learn(op, shapes, device, rng):
    """xIELU's, of one element or one per column, in another dtype than x; one of them frozen; with second derivatives."""
    args = each(lambda a: torch.tensor(a, dtype=torch.float32, device=device), arguments(op, rng, (9,), (8, 16, 4)))
    tensors = [
        torch.full(shape, value, device=device, dtype=torch.float64, requires_grad=True)
        for shape, value in zip(shapes, (0.3, -0.7), strict=True)
    ]
    x = args["x"].requires_grad_()

    def gradients(by, create_graph=False, **options):
        y = fused(op, args, ACTIVATIONS["xielu"], (*tensors, 0.5, -1e-6), **options)
        return y.grad_fn.name(), torch.autograd.grad(y.square().sum(), by, create_graph=create_graph)

    with epilogue.backend("eager"):
        _, expected = gradients([x, *tensors], True)
        (second,) = torch.autograd.grad(sum(g.square().sum() for g in expected), x)
    name, found = gradients([x, *tensors])
    assert name in ("_LinearBackward", "_MLPBackward")
    assert [(g.shape, g.dtype) for g in found] == [(t.shape, t.dtype) for t in (x, *tensors)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (again,) = torch.autograd.grad(sum(g.square().sum() for g in gradients([x, *tensors], True)[1]), x)
    torch.testing.assert_close(again, second, rtol=1e-4, atol=1e-4)
    if op.endswith("mlp"):
        torch.testing.assert_close(gradients([x, *tensors], recompute=True)[1], expected, rtol=1e-5, atol=1e-5)
    tensors[0].requires_grad_(False)
    torch.testing.assert_close(gradients([tensors[1]])[1][0], expected[2], rtol=1e-5, atol=1e-5)
