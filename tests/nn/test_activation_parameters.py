"""Parameters of an activation in a module: numbers, learned Parameters, buffers; what does not fit."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import epilogue
from epilogue.nn import FusedGatedMLP, FusedGLU, FusedLinear, FusedMLP

every_module = pytest.mark.parametrize("fused", [FusedLinear, FusedGLU, FusedMLP, FusedGatedMLP])


@every_module
@pytest.mark.parametrize("features", [1, 6])
@pytest.mark.parametrize("name", ["prelu", "swish"])
def test_a_parameter_is_the_modules_own_and_learns(fused, name, features, device):
    (param,) = epilogue.ACTIVATIONS[name].params
    learned = nn.Parameter(torch.full((features,), 0.3))
    module = fused(5, 6, activation=name, **{param: learned}).to(device)
    assert getattr(module, param) is learned
    assert param in module.state_dict()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.randn(64, 5, device=device)).square().sum().backward()
    assert learned.grad.shape == (features,)
    assert (learned.grad != 0).all()
    optimizer.step()
    assert not torch.allclose(learned.detach().cpu(), torch.tensor(0.3))
    again = copy.deepcopy(module)
    assert getattr(again, param) is not learned
    x = torch.randn(4, 5, device=device)
    assert torch.equal(again(x), module(x))


@every_module
@pytest.mark.parametrize("features", [1, 6])
def test_a_prelu_module_lends_its_weight(fused, features, device):
    prelu = nn.PReLU(features, 0.3)
    module = fused(5, 6, activation=prelu).to(device)
    assert module.slope is prelu.weight
    by_name = fused(5, 6, activation="prelu", slope=0.3).to(device)
    by_name.load_state_dict({name: value for name, value in module.state_dict().items() if name != "slope"})
    x = torch.randn(4, 5, device=device)
    torch.testing.assert_close(module(x), by_name(x))


def test_the_result_is_the_unfused_one(device):
    linear, prelu = nn.Linear(5, 6), nn.PReLU(6)
    with torch.no_grad():
        prelu.weight.copy_(torch.linspace(-1.0, 1.0, 6))
    module = FusedLinear(5, 6, activation=copy.deepcopy(prelu))
    module.load_state_dict({**linear.state_dict(), "slope": prelu.weight})
    x = torch.randn(7, 5)
    module(x).sum().backward()
    prelu(linear(x)).sum().backward()
    torch.testing.assert_close(module.slope.grad, prelu.weight.grad)
    torch.testing.assert_close(module.weight.grad, linear.weight.grad)


@every_module
def test_a_plain_tensor_is_a_buffer(fused, device):
    module = fused(5, 6, activation="prelu", slope=torch.full((6,), 0.3)).to(device)
    assert "slope" in dict(module.named_buffers())
    assert "slope" not in dict(module.named_parameters())
    assert module.slope.device.type == device
    module(torch.ones(4, 5, device=device)).sum().backward()
    assert module.slope.grad is None
    assert "slope=[6]" in repr(module)


@every_module
def test_a_number_is_no_state(fused):
    module = fused(5, 6, activation="leaky_relu", negative_slope=0.3)
    plain = fused(5, 6, activation="relu")
    assert module.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(module.state_dict())
    assert "negative_slope=0.3" in repr(module)
    x = torch.randn(16, 5)
    assert not torch.allclose(module(x), plain(x))


def test_parameters_in_any_order_and_partly_given():
    module = FusedMLP(5, 6, activation="softplus", threshold=5.0, beta=2.0)
    other = FusedMLP(5, 6, activation=nn.Softplus(2.0, 5.0))
    other.load_state_dict(module.state_dict())
    x = 3 * torch.randn(16, 5)
    assert torch.equal(module(x), other(x))
    module.down.register_forward_hook(lambda *_: None)  # called as modules, the parameters must come in the same order
    torch.testing.assert_close(module(x), other(x))


GIVEN = {
    "a module": (lambda: {"activation": nn.PReLU(6, 0.3)}, "slope", torch.full((6,), 0.3)),
    "one for all": (
        lambda: {"activation": "swish", "beta": nn.Parameter(torch.tensor(1.7))},
        "beta",
        torch.tensor(1.7),
    ),
    "by channel": (
        lambda: {"activation": "prelu", "slope": nn.Parameter(torch.arange(6.0))},
        "slope",
        torch.arange(6.0),
    ),
    "a buffer": (lambda: {"activation": "prelu", "slope": torch.arange(6.0)}, "slope", torch.arange(6.0)),
}


@every_module
@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("given", GIVEN)
def test_reset_parameters_restores_what_was_given(fused, given, meta, device):
    made, name, expected = GIVEN[given]
    module = fused(5, 6, **made(), device="meta" if meta else device)
    assert {value.device.type for value in module.state_dict().values()} == {"meta" if meta else device}
    module = pickle.loads(pickle.dumps(copy.deepcopy(module))).to_empty(device=device)
    for tensor in module.state_dict().values():
        tensor.fill_(float("nan"))
    torch.manual_seed(3)
    module.reset_parameters()
    torch.testing.assert_close(getattr(module, name).detach().cpu(), expected, rtol=0, atol=0)
    torch.manual_seed(3)
    plain = fused(5, 6, activation="relu", device=device)
    assert all(torch.equal(module.state_dict()[key], value) for key, value in plain.state_dict().items())
    assert module.state_dict().keys() == plain.state_dict().keys() | {name}
    assert module(torch.randn(3, 5, device=device)).isfinite().all()


@every_module
@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: {"activation": nn.PReLU(6, 0.3)}, 0.3),
        (lambda: {"activation": "prelu", "slope": nn.Parameter(torch.full((6,), 0.3))}, 0.25),  # the formula's
        (lambda: {"activation": "swish", "beta": nn.Parameter(torch.full((6,), 0.3))}, 1.0),
    ],
)
def test_a_parameter_that_is_on_meta_gets_its_default(fused, made, expected, device):
    with torch.device("meta"):
        module = fused(5, 6, **made())
        given = made()
    (name,) = module.activation.params
    assert getattr(module, name).is_meta
    module.to_empty(device=device).reset_parameters()
    torch.testing.assert_close(getattr(module, name).detach().cpu(), torch.full((6,), expected))
    there = fused(5, 6, **given, device=device)
    torch.testing.assert_close(getattr(there, name).detach().cpu(), torch.full((6,), expected))


@every_module
def test_the_activations_tensors_get_the_modules_dtype_and_device(fused):
    slope = nn.Parameter(torch.rand(6))
    module = fused(5, 6, activation="prelu", slope=slope, dtype=torch.float64, device="cpu")
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float64}
    torch.testing.assert_close(module.slope, nn.Parameter(slope.detach().double()), rtol=0, atol=0)
    assert slope.dtype == torch.float32
    frozen = fused(
        5, 6, activation="prelu", slope=nn.Parameter(torch.rand(6), requires_grad=False), dtype=torch.float64
    )
    assert (frozen.slope.dtype, frozen.slope.requires_grad) == (torch.float64, False)
    buffer = fused(5, 6, activation="prelu", slope=torch.rand(6), dtype=torch.float64, device="meta")
    assert (buffer.slope.dtype, buffer.slope.is_meta) == (torch.float64, True)
    assert "slope" in dict(buffer.named_buffers())


@every_module
def test_a_parameter_that_fits_is_the_modules_own_and_is_not_written_to(fused):
    slope = nn.Parameter(torch.rand(6))
    module = fused(5, 6, activation="prelu", slope=slope, dtype=torch.float32, device="cpu")
    assert module.slope is slope
    assert slope._version == 0


def test_a_subclass_resets_in_the_constructor_as_nn_linears_does():
    class Zeros(FusedLinear):
        def reset_parameters(self):
            super().reset_parameters()
            nn.init.zeros_(self.weight)

    assert (Zeros(5, 6, activation=nn.PReLU()).weight == 0).all()


@every_module
def test_fake_tensors(fused):
    with FakeTensorMode():
        module = fused(5, 6, activation=nn.PReLU(6))
        module.reset_parameters()
        assert module(torch.ones(3, 5)).shape == (3, 6 if fused in (FusedLinear, FusedGLU) else 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: FusedLinear(5, 6, activation="gelo"), ValueError, r"unknown activation 'gelo'\. Did you mean 'gelu'"),
        (lambda: FusedLinear(5, 6, activation="swiglu"), ValueError, "FusedLinear: 'swiglu' takes two.*FusedGLU"),
        (
            lambda: FusedMLP(5, 6, activation="maxout"),
            ValueError,
            "FusedMLP: 'maxout' takes two.*FusedGatedMLP",
        ),
        (lambda: FusedLinear(5, 6, activation="gelu", alpha=1.0), TypeError, "gelu has no parameter 'alpha'"),
        (lambda: FusedLinear(5, 6, activation="threshold"), TypeError, "threshold needs the parameter 'threshold'"),
        (lambda: FusedLinear(5, 6, activation=nn.Softmax(-1)), TypeError, "no activation for the module Softmax"),
        (lambda: FusedLinear(5, 6, activation=nn.Linear(6, 6)), TypeError, "no activation for the module Linear"),
        (lambda: FusedGLU(5, 6, activation=lambda x: x), TypeError, "got <function"),
        (lambda: FusedMLP(5, 6, activation="elu", alpha=torch.ones(6)), TypeError, "elu's alpha must be a number"),
        (
            lambda: FusedLinear(5, 6, "relu"),
            TypeError,
            "FusedLinear: bias must be True or False, got 'relu'.*activation=",
        ),
        (
            lambda: FusedMLP(5, 6, "relu"),
            TypeError,
            "FusedMLP: features must be whole numbers, got 'relu'.*activation=",
        ),
        (lambda: FusedGatedMLP(5, "silu"), TypeError, "FusedGatedMLP: features must be whole numbers, got 'silu'"),
        (lambda: FusedGLU(5.0, 6), TypeError, "FusedGLU: features must be whole numbers, got 5.0"),
        (lambda: FusedMLP(5, 6, activation=nn.LeakyReLU(0.3), negative_slope=0.1), TypeError, "is given twice"),
        (lambda: FusedMLP(5, 6, dropout=1.5), ValueError, "dropout must be a probability between 0 and 1, got 1.5"),
        (lambda: FusedMLP(5, 6, recompute="no"), ValueError, "recompute must be True or False, got 'no'"),
        (lambda: FusedMLP(5, 6, dropout=None), ValueError, "dropout must be a probability between 0 and 1, got None"),
        (lambda: FusedGatedMLP(5, 6, dropout=-1), ValueError, "dropout must be a probability between 0 and 1, got -1"),
        (
            lambda: FusedLinear(5, 6, activation="prelu", slope=torch.ones(5))(torch.ones(1, 5)),
            ValueError,
            "prelu's slope must have one element or 6",
        ),
        (lambda: FusedLinear(5, 6)(torch.ones(2, 4)), ValueError, "last axis of x must be weight's second, 5; got x"),
        (lambda: FusedLinear(5, 6)(torch.ones(2, 5).double()), TypeError, "weight must have the dtype of x"),
        (lambda: FusedMLP(5, 6)(torch.ones(2, 5).to("meta")), TypeError, "up_weight must be on the device of x, meta"),
    ],
)
def test_what_does_not_fit(call, error, message):
    with pytest.raises(error, match=message):
        call()
