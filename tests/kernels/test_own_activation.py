"""An activation of the user's own is one block, and then works everywhere."""

import pickle

import numpy as np
import pytest
import torch

import epilogue
from checks import arguments, assert_accurate, each
from epilogue import catalogue, lookup
from epilogue.vocabulary import exp, maximum, sin, softplus, tanh, where

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
    """Also in a call, whose activation is another one before its keywords are read."""
    x, weight = torch.randn(3, 4), torch.randn(2, 4)
    y = epilogue.linear(x, weight, activation="tanh", sharp=1, scale=0.5)
    torch.testing.assert_close(y, torch.tanh(0.5 * (x @ weight.T)))
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

    assert exp_relu.output_derivative((1.0,)) is not None
    assert exp_relu_grad_output(3.0, 1.0) == exp_relu.output_derivative((1.0,))(3.0, 1.0) == 3.0
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


def test_the_formula_alone_is_enough(rng):
    """On arrays and tensors, forward and backward: its derivatives follow, torch computes it, and each parameter may learn."""

    @epilogue.activation
    def snake(x, alpha=1.5, shift=0.0):
        """x + sin²(alpha x) / alpha.  Ziyin et al. 2020, arXiv:2006.08195."""
        return x + sin(alpha * x + shift) ** 2 / alpha

    assert snake.learnable == ("alpha", "shift")
    args, values = arguments("linear", rng), {"alpha": rng.uniform(0.5, 2.0, 6), "shift": rng.standard_normal(1)}
    tensors = each(lambda array: torch.tensor(array, requires_grad=True), {**args, **values})
    y = epilogue.linear(**tensors, activation="snake")
    z = torch.nn.functional.linear(*(tensors[name] for name in args))
    torch.testing.assert_close(y, z + (tensors["alpha"] * z + tensors["shift"]).sin().square() / tensors["alpha"])
    np.testing.assert_allclose(epilogue.linear(**args, activation=snake, **values), y.detach().numpy(), rtol=1e-12)
    dy = rng.standard_normal(y.shape)
    y.backward(torch.tensor(dy))
    grads = epilogue.linear_backward(dy, **args, activation=snake, **values)
    np.testing.assert_allclose(grads.x, tensors["x"].grad.numpy(), rtol=1e-10, atol=1e-13)
    for name, gradient in grads.params.items():
        np.testing.assert_allclose(gradient, tensors[name].grad.numpy(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_without_an_oracle_a_formula_is_rounded_once(dtype):
    """On tensors of 16 bits, where each of torch's operations alone would round."""

    @epilogue.activation
    def steep(x):
        return tanh(x) * exp(-x * x) + x

    z = torch.linspace(-3.0, 3.0, 200).to(dtype)
    exact = z.double().tanh() * (-(z.double() ** 2)).exp() + z.double()
    y = epilogue.linear(z[:, None], torch.ones(1, 1, dtype=dtype), activation="steep")[:, 0]
    assert y.dtype == dtype
    expected = exact.float() if dtype == torch.float32 else exact.to(dtype)
    torch.testing.assert_close(
        y, expected, rtol=1e-6 if dtype == torch.float32 else 0, atol=1e-6 if dtype == torch.float32 else 0
    )


def test_a_compiler_sees_a_formula_without_an_oracle():
    @epilogue.activation
    def bump(x, width=0.3):
        return where(x > width, x, maximum(x, -1.0) * softplus(x) + 0.1)

    torch._dynamo.reset()  # what other tests compiled of the same code counts, too
    layer = epilogue.nn.FusedLinear(4, 6, activation="bump")
    x = torch.randn(5, 4, requires_grad=True)
    expected = layer(x)
    found = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, expected)
    (dx,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(dx, torch.autograd.grad(expected.sum(), x)[0])
    torch.testing.assert_close(torch.vmap(layer)(x[None])[0], expected)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), expected)


@pytest.mark.parametrize("name", ["gate", "up", "down"])
def test_these_names_are_free_for_parameters(name, rng):
    namespace = {}
    exec(f"def named(x, {name}=0.5):\n    return {name} * x * x\n", namespace)
    epilogue.activation(namespace["named"])
    block = epilogue.nn.FusedGatedMLP(4, 6, activation="named", **{name: torch.nn.Parameter(torch.full((6,), 0.7))})
    x = torch.randn(3, 4)
    expected = block.down(0.7 * block.gate(x) ** 2 * block.up(x))
    torch.testing.assert_close(block(x), expected)
    assert isinstance(block.gate, torch.nn.Linear)
    (gradient,) = torch.autograd.grad(block(x).sum(), dict(block.named_parameters())[f"activation_{name}"])
    assert gradient.shape == (6,)


@pytest.mark.parametrize("names", [("type", "half"), ("operation", "forward"), ("gate", "activation_gate")])
def test_names_of_a_modules_methods_are_free_too(names):
    namespace = {}
    exec(f"def named(x, {names[0]}=0.5, {names[1]}=0.5):\n    return {names[0]} * x + {names[1]}\n", namespace)
    epilogue.activation(namespace["named"])
    params = [torch.nn.Parameter(torch.rand(6)) for _ in names]
    layer = epilogue.nn.FusedLinear(4, 6, activation="named", **dict(zip(names, params, strict=True)))
    x = torch.randn(3, 4)
    expected = params[0] * torch.nn.functional.linear(x, layer.weight, layer.bias) + params[1]
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), expected)


@pytest.mark.parametrize("name", ["bias", "inplace"])
def test_a_taken_name_of_a_parameter_is_said(name):
    namespace = {}
    exec(f"def named(x, {name}=1.0):\n    return x + {name}\n", namespace)
    with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
        epilogue.activation(namespace["named"])


def test_a_name_of_underscores_is_none():
    with pytest.raises(ValueError, match="needs a name"):

        @epilogue.activation
        def _(x):
            return x * x


@pytest.mark.parametrize("x", [[-1.0, 2.0], [np.inf, -np.inf], [np.nan, 0.0]])
def test_what_only_conditions_use_has_a_gradient_of_0(x):
    """As from the kernels, where autograd alone has none and `backward` raises."""

    @epilogue.activation
    def gated_number(x, low=0.5, high=1.5):
        return where(x > low, high, 0.25)

    x, low, high = torch.tensor(x, requires_grad=True), torch.ones(2, requires_grad=True), torch.ones(2)
    y = epilogue.linear(x, torch.eye(2), activation="gated_number", low=low, high=high)
    gradients = torch.autograd.grad(y.sum(), (x, low), create_graph=True)
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == gradients[1].tolist() == [0.0, 0.0]
    alone = gated_number(x)
    np.testing.assert_array_equal(alone.detach(), np.where(x.detach() > 0.5, 1.5, 0.25))
    assert torch.autograd.grad(alone.sum(), x)[0].tolist() == [0.0, 0.0]


def test_whole_numbers_are_not_cut():
    @epilogue.activation
    def halved(x, scale=0.5):
        return maximum(scale * x, 0.25)

    np.testing.assert_array_equal(halved(np.array([1, 2])), [0.5, 1.0])
    torch.testing.assert_close(halved(torch.tensor([0, 1, 2])), torch.tensor([0.25, 0.5, 1.0]))


def test_the_default_device_is_not_that_of_a_formulas_numbers():
    @epilogue.activation
    def leaky(x, slope=0.5):
        return maximum(x, slope * x)

    layer = epilogue.nn.FusedLinear(4, 6, activation=leaky)
    x = torch.randn(3, 4)
    expected = layer(x)
    with torch.device("meta"):
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    "oracle",
    [
        torch.nn.functional.silu,
        torch.tanh,
        lambda x, scale: x,
        lambda F, x: x,
        lambda F, x, scale, shift: x,
        lambda F, x, *, scale: x,
        "tanh",
    ],
)
def test_an_oracle_of_other_arguments_is_refused_at_once(oracle):
    with pytest.raises(
        ValueError, match=r"own: the oracle must take \(F, x, scale\), .* as `lambda F, x, scale: F.silu"
    ):

        @epilogue.activation(oracle=oracle)
        def own(x, scale=2.0):
            return tanh(scale * x)

    assert "own" not in epilogue.ACTIVATIONS


def test_a_derivative_may_name_its_activation():
    """And makes a parameter of one with an oracle learn."""

    @epilogue.activation(oracle=lambda F, x, scale: torch.tanh(scale * x))
    def own(x, scale=2.0):
        return tanh(scale * x)

    slope = torch.ones(4, requires_grad=True)
    x, weight = torch.randn(3, 5), torch.randn(4, 5)
    with pytest.raises(TypeError, match=r"or give its derivative: @epilogue.derivative_of\('own', 'scale'\)"):
        epilogue.linear(x, weight, activation="own", scale=slope)

    @epilogue.derivative_of("own", "scale")
    def by_scale(x, scale):
        t = tanh(scale * x)
        return x * (1.0 - t * t)

    (gradient,) = torch.autograd.grad(epilogue.linear(x, weight, activation="own", scale=slope).sum(), slope)
    z = x @ weight.T
    torch.testing.assert_close(gradient, (z / z.cosh() ** 2).sum(0))
    with pytest.raises(ValueError, match="unknown activation 'owm'"):
        epilogue.derivative_of("owm")


def test_a_pickle_says_what_to_import(own_activations):
    """Loaded where nobody has registered the activation."""

    @epilogue.activation
    def pickled(x):
        return tanh(x)

    layer = pickle.dumps(epilogue.nn.FusedLinear(2, 2, activation="pickled"))
    gated = pickle.dumps(pickled.gated)
    assert pickle.loads(layer).activation is pickled
    assert pickle.loads(gated) is pickled.gated
    del epilogue.ACTIVATIONS["pickled"]
    for data in (layer, gated):
        with pytest.raises(
            ValueError, match=f"the activation 'pickled' of the module {__name__!r}: import that module first"
        ):
            pickle.loads(data)


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
    block = epilogue.nn.FusedGatedMLP(4, 6, activation=first, dtype=torch.float64)
    block.up.register_forward_hook(lambda *call: None)  # so that its children are called as modules
    before, gated, hooked = layer(x), glu(x), block(x)
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
    torch.testing.assert_close(block(x), 1.5 * hooked)
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
