"""An activation of the user's own is one block, and then works everywhere."""

import numpy as np
import pytest
import torch

import epilogue
from checks import arguments, assert_accurate, each
from epilogue import catalogue, lookup
from epilogue.vocabulary import exp, maximum, tanh, where

pytestmark = pytest.mark.usefixtures("own_activations")


@pytest.fixture
def sharp_tanh():
    @epilogue.activation(
        oracle=lambda F, x, scale: F.tanh(scale * x),
        aliases=("stanh",),
        gated="sharpglu",
        variant_of=("tanh", "sharp", 1),
    )
    def sharp_tanh(x, scale=2.0):
        """tanh(scale · x)."""
        return tanh(scale * x)

    @epilogue.derivative_of(sharp_tanh)
    def sharp_tanh_grad(x, scale):
        t = tanh(scale * x)
        return scale * (1.0 - t * t)

    @epilogue.derivative_of(sharp_tanh, "scale")
    def sharp_tanh_grad_scale(x, scale):
        t = tanh(scale * x)
        return x * (1.0 - t * t)

    return sharp_tanh


@pytest.mark.parametrize("spec", ["sharp_tanh", "SharpTanh", "stanh"])
def test_resolves(sharp_tanh, spec):
    assert epilogue.resolve(spec) == (sharp_tanh, {})
    assert epilogue.resolve("sharpglu")[0] is sharp_tanh.gated
    assert epilogue.ACTIVATIONS["sharp_tanh"] is sharp_tanh
    with pytest.raises(ValueError, match=r"Known: .*sharp_tanh"):
        epilogue.resolve("qqq")


def test_keywords_choose_the_variant(sharp_tanh):
    assert lookup.bind_params(epilogue.ACTIVATIONS["tanh"], {"sharp": 1}) == (sharp_tanh, (2.0,))


@pytest.mark.parametrize("scale", [2.0, 0.5])
def test_linear_on_torch(sharp_tanh, scale, device, rng):
    exact = each(torch.tensor, arguments("linear", rng))
    args = each(lambda t: t.float().to(device), exact)
    y = epilogue.linear(**args, activation="sharp_tanh", scale=scale)
    unfused = torch.tanh(scale * torch.nn.functional.linear(*args.values()))
    assert_accurate(y, unfused, torch.tanh(scale * torch.nn.functional.linear(*exact.values())))


def test_linear_and_glu_on_numpy_are_those_on_torch(sharp_tanh, rng):
    for op in ("linear", "glu"):
        args = arguments(op, rng)
        scale = rng.standard_normal(6)
        tensors = each(lambda array: torch.tensor(array, requires_grad=True), {**args, "scale": scale})
        y = getattr(epilogue, op)(**tensors, activation=sharp_tanh)
        np.testing.assert_allclose(
            getattr(epilogue, op)(**args, activation=sharp_tanh, scale=scale), y.detach().numpy(), rtol=1e-12
        )
        y.sum().backward()
        grads = getattr(epilogue, f"{op}_backward")(np.ones(y.shape), **args, activation=sharp_tanh, scale=scale)
        np.testing.assert_allclose(grads.x, tensors["x"].grad.numpy(), rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(grads.params["scale"], tensors["scale"].grad.numpy(), rtol=1e-10)


def test_from_output_and_a_pair(rng):
    @epilogue.activation(oracle=lambda F, x, cap: F.relu(x).exp() * cap, kinks=(0.0,))
    def exp_relu(x, cap=1.0):
        """cap · e^max(x, 0)."""
        return cap * exp(maximum(x, 0.0))

    @epilogue.derivative_of(exp_relu)
    def exp_relu_grad(x, cap):
        return where(x <= 0.0, 0.0, cap * exp(x))

    @epilogue.derivative_of(exp_relu, output=lambda cap: cap > 0.0)
    def exp_relu_grad_output(y, cap):
        return where(y <= cap, 0.0, y)

    assert exp_relu.output_derivative((1.0,)) is exp_relu_grad_output
    assert (exp_relu.saves((1.0,)), exp_relu.saves((-1.0,))) == ("output", "input")
    assert exp_relu.gated_name == "gated_exp_relu"

    @epilogue.pair(oracle=lambda F, a, b: a - b)
    def difference(a, b):
        """a - b."""
        return a - b

    @epilogue.derivative_of(difference, "a")
    def difference_grad_a(a, b):
        return 1.0

    @epilogue.derivative_of(difference, "b")
    def difference_grad_b(a, b):
        return -1.0

    args = arguments("glu", rng)
    y = epilogue.glu(**args, activation="difference")
    x, (gate, up), (gate_bias, up_bias) = args.values()
    np.testing.assert_allclose(y, x @ (gate - up).T + gate_bias - up_bias, rtol=1e-12, atol=1e-14)
    tensors = each(torch.tensor, args)
    np.testing.assert_allclose(y, epilogue.glu(**tensors, activation="difference").numpy(), rtol=1e-12, atol=1e-14)
    grads = epilogue.glu_backward(np.ones(y.shape), **args, activation="difference")
    np.testing.assert_allclose(grads.bias[1], -7.0 * np.ones(6))


@pytest.mark.parametrize("taken", ["gelu", "geluNew", "swiglu", "Sharp-Tanh"])
def test_a_name_that_is_taken_is_refused(sharp_tanh, taken):
    with pytest.raises(ValueError, match=f"an activation called '{taken}' exists already"):

        @epilogue.activation(oracle=lambda F, x: x, aliases=(taken,))
        def something_new(x):
            return x

    assert "something_new" not in epilogue.ACTIVATIONS


def test_a_missing_derivative_says_how_to_add_it():
    @epilogue.activation(oracle=lambda F, x: x.exp())
    def exponential(x):
        return exp(x)

    x = np.ones((2, 3))
    assert epilogue.linear(x, x, activation="exponential").shape == (2, 2)
    with pytest.raises(ValueError, match=r"no derivative with respect to 'x'.*derivative_of"):
        epilogue.linear_backward(np.ones((2, 2)), x, x, activation="exponential")
    with pytest.raises(ValueError, match="no operand or parameter 'y' to derive by; it has: x"):
        epilogue.derivative_of(exponential, "y")(lambda x: x)
    with pytest.raises(ValueError, match="cannot be called 'bias'"):
        epilogue.activation(oracle=None)(lambda x, bias: x)


CELL = """
import epilogue
from epilogue.vocabulary import tanh

@epilogue.activation(oracle=lambda F, x: {factor} * F.tanh(x), aliases={aliases}, variant_of=("tanh", "cell", {factor}))
def from_a_cell(x):
    return {factor} * tanh(x)

@epilogue.derivative_of(from_a_cell)
def _(x):
    t = tanh(x)
    return {factor} * (1.0 - t * t)
"""


def run_cell(factor, aliases=("cell_alias",), module="__main__"):
    namespace = {"__name__": module}
    exec(CELL.format(factor=factor, aliases=aliases), namespace)
    return namespace["from_a_cell"]


def test_a_cell_that_runs_again_replaces_its_activation(rng):
    """Everywhere: by name, by the old entry, in a layer made before; what was called otherwise before is gone."""
    first = run_cell(2.0)
    layer = epilogue.nn.FusedLinear(4, 6, activation=first, dtype=torch.float64)
    glu = epilogue.nn.FusedGLU(4, 6, activation="gated_from_a_cell", dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64)
    before, gated = layer(x), glu(x)
    second = run_cell(3.0, ("cell_name",))
    assert second is not first
    assert (
        epilogue.resolve("from_a_cell")[0] is epilogue.resolve(first)[0] is epilogue.resolve("cell_name")[0] is second
    )
    assert epilogue.resolve(first.gated)[0] is epilogue.resolve("gated_from_a_cell")[0] is second.gated
    with pytest.raises(ValueError, match="unknown activation 'cell_alias'"):
        epilogue.resolve("cell_alias")
    assert {key: name for key, name in catalogue.VARIANTS.items() if name == "from_a_cell"} == {
        ("tanh", "cell", 3.0): "from_a_cell"
    }
    torch.testing.assert_close(layer(x), 1.5 * before)
    torch.testing.assert_close(glu(x), 1.5 * gated)
    arrays = x.numpy(), layer.weight.detach().numpy()
    z = arrays[0] @ arrays[1].T
    np.testing.assert_allclose(epilogue.linear(*arrays, activation=first), 3 * np.tanh(z))
    dx = epilogue.linear_backward(np.ones_like(z), *arrays, activation=first).x
    np.testing.assert_allclose(dx, (3 / np.cosh(z) ** 2) @ arrays[1])


@pytest.mark.parametrize("module", ["elsewhere", "epilogue.activations"])
def test_a_name_from_elsewhere_is_refused(module):
    first = run_cell(2.0)
    with pytest.raises(ValueError, match="an activation called 'from_a_cell' exists already"):
        run_cell(3.0, module=module)
    assert epilogue.resolve("cell_alias")[0] is first


def test_a_function_that_makes_two_of_one_name_is_refused():
    """Each is another activation: the first must not silently become the second."""

    def make(factor):
        @epilogue.activation(oracle=lambda F, x, scale: x * scale)
        def scaled(x, scale=factor):
            return x * scale

        return scaled

    first = make(2.0)
    with pytest.raises(ValueError, match="'scaled' exists already"):
        make(3.0)
    assert epilogue.linear(np.ones((1, 1)), np.eye(1), activation=first) == 2.0


def test_a_cell_that_takes_anothers_name_leaves_what_was():
    first = run_cell(2.0)
    with pytest.raises(ValueError, match="an activation called 'relu' exists already"):
        run_cell(3.0, ("relu",))
    assert epilogue.resolve("cell_alias")[0] is epilogue.resolve("from_a_cell")[0] is first
    assert ("tanh", "cell", 2.0) in catalogue.VARIANTS
