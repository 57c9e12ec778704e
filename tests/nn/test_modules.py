"""The modules against the unfused ones that they replace: seeds, state_dicts, results, gradients; copies, devices."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import epilogue
from checks import assert_accurate, cases, keywords
from epilogue.nn import FusedGatedMLP, FusedGLU, FusedLinear, FusedMLP


class MLP(nn.Module):
    """The block as people write it."""

    def __init__(self, in_features, hidden, out_features=None, bias=True, activation=torch.relu, dropout=0.0):
        super().__init__()
        self.up = nn.Linear(in_features, hidden, bias)
        self.down = nn.Linear(hidden, out_features or in_features, bias)
        self.activation, self.dropout = activation, nn.Dropout(dropout)

    def forward(self, x):
        return self.down(self.dropout(self.activation(self.up(x))))


class GatedMLP(nn.Module):
    def __init__(self, in_features, hidden, out_features=None, bias=False, activation=torch.relu, dropout=0.0):
        super().__init__()
        self.gate = nn.Linear(in_features, hidden, bias)
        self.up = nn.Linear(in_features, hidden, bias)
        self.down = nn.Linear(hidden, out_features or in_features, bias)
        self.activation, self.dropout = activation, nn.Dropout(dropout)

    def forward(self, x):
        return self.down(self.dropout(self.activation(self.gate(x)) * self.up(x)))


class Linear(nn.Linear):
    def __init__(self, *args, activation=torch.relu, **kwargs):
        super().__init__(*args, **kwargs)
        self.activation = activation

    def forward(self, x):
        return self.activation(super().forward(x))


class GLU(nn.Linear):
    def __init__(self, in_features, out_features, *args, activation=torch.relu, **kwargs):
        super().__init__(in_features, 2 * out_features, *args, **kwargs)
        self.activation = activation

    def forward(self, x):
        gate, up = super().forward(x).chunk(2, -1)
        return self.activation(gate) * up


PAIRS = [(FusedLinear, Linear), (FusedGLU, GLU), (FusedMLP, MLP), (FusedGatedMLP, GatedMLP)]
FUSED = [fused for fused, _ in PAIRS]
pairs = pytest.mark.parametrize(("fused", "unfused"), PAIRS, ids=[fused.__name__ for fused in FUSED])
every_module = pytest.mark.parametrize("fused", FUSED)


def twins(fused, unfused, activation="relu", function=torch.relu, **kwargs):
    """The two modules, each made from the same seed."""
    torch.manual_seed(5)
    module = fused(5, 6, activation=activation, **kwargs)
    torch.manual_seed(5)
    return module, unfused(5, 6, activation=function, **kwargs)


def assert_same(module, plain, x, device="cpu"):
    """Results and gradients are as accurate as the unfused module's; they have the same parameters."""
    module, plain, exact = module.to(device), plain.to(device), copy.deepcopy(plain).to(device).double()
    inputs = [x.to(device, dtype, copy=True).requires_grad_() for dtype in (x.dtype, x.dtype, torch.float64)]
    results = [layer(t) for layer, t in zip((module, plain, exact), inputs, strict=True)]
    dy = torch.randn_like(results[1])
    for result in results:
        result.backward(dy.to(result.dtype))
    assert_accurate(*results)
    assert_accurate(*(t.grad for t in inputs))
    for (name, parameter), (plain_name, of), true in zip(
        module.named_parameters(), plain.named_parameters(), exact.parameters(), strict=True
    ):
        assert name == plain_name
        assert_accurate(parameter.grad, of.grad, true.grad)


@pairs
@pytest.mark.parametrize("bias", [True, False])
def test_same_seed_same_weights_same_results(fused, unfused, bias, device):
    module, plain = twins(fused, unfused, bias=bias)
    assert module.state_dict().keys() == plain.state_dict().keys()
    for actual, expected in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(actual, expected)
    assert_same(module, plain, torch.randn(2, 7, 5), device)


@pairs
def test_the_defaults_are_the_unfused_ones(fused, unfused):
    function = nn.functional.gelu if fused in (FusedLinear, FusedMLP) else nn.functional.silu
    torch.manual_seed(5)
    module = fused(5, 6)
    torch.manual_seed(5)
    plain = unfused(5, 6, activation=function)
    assert module.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(3, 5)
    torch.testing.assert_close(module(x), plain(x))


@pairs
def test_reset_parameters_is_nn_linears(fused, unfused):
    module, plain = twins(fused, unfused)
    for layer in (module, plain):
        torch.manual_seed(9)
        for child in [layer] if hasattr(layer, "reset_parameters") else layer.children():
            if hasattr(child, "reset_parameters"):
                child.reset_parameters()
    for actual, expected in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(actual, expected)


@pairs
def test_state_dicts_interchange(fused, unfused):
    module, plain = fused(5, 6, activation="relu", bias=True), unfused(5, 6, bias=True)
    x = torch.randn(3, 5)
    module.load_state_dict(plain.state_dict(), strict=True)
    torch.testing.assert_close(module(x), plain(x))
    other = unfused(5, 6, bias=True)
    other.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(other(x), plain(x))


def test_state_dict_of_plain_linears():
    linear = nn.Linear(5, 6)
    module = FusedLinear(5, 6, activation="tanh")
    module.load_state_dict(linear.state_dict(), strict=True)
    torch.testing.assert_close(module(torch.ones(5)), torch.tanh(linear(torch.ones(5))))
    sequential = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5))
    block = FusedMLP(5, 6, activation=sequential[1])
    names = {"0": "up", "2": "down"}
    block.load_state_dict({f"{names[key[0]]}{key[1:]}": value for key, value in sequential.state_dict().items()})
    torch.testing.assert_close(block(torch.ones(5)), sequential(torch.ones(5)))


@pytest.mark.parametrize(("entry", "values"), cases(every=False))
def test_every_activation_through_every_module(entry, values, device):
    for fused, op in zip(FUSED, ("linear", "glu", "mlp", "gated_mlp"), strict=True):
        if entry.arity == 2 and op in ("linear", "mlp"):
            continue
        module = fused(5, 6, activation=entry.name, device=device, **keywords(entry, values))
        weights = {name.replace(".", "_"): parameter for name, parameter in module.named_parameters()}
        x = torch.randn(4, 5, device=device)
        expected = getattr(epilogue, op)(x, **weights, activation=entry, **keywords(entry, values))
        assert torch.equal(module(x), expected)


def test_parameters_are_named_and_shaped_as_torchs():
    def shapes(module):
        return {name: list(parameter.shape) for name, parameter in module.named_parameters()}

    assert shapes(FusedLinear(5, 6)) == {"weight": [6, 5], "bias": [6]}
    assert shapes(FusedGLU(5, 6)) == {"weight": [12, 5], "bias": [12]}
    assert shapes(FusedMLP(5, 6, 3, bias=False)) == {"up.weight": [6, 5], "down.weight": [3, 6]}
    assert shapes(FusedGatedMLP(5, 6)) == {"gate.weight": [6, 5], "up.weight": [6, 5], "down.weight": [5, 6]}
    for module in (FusedLinear(5, 6), FusedGLU(5, 6)):
        assert not isinstance(module, nn.Linear)
    for module in (FusedMLP(5, 6), FusedGatedMLP(5, 6)):
        assert {type(child) for child in module.children()} == {nn.Linear}


@every_module
def test_device_and_dtype(fused):
    for dtype in (torch.bfloat16, torch.float64):
        module = fused(5, 6, dtype=dtype)
        assert {parameter.dtype for parameter in module.parameters()} == {dtype}
        assert module(torch.ones(3, 5, dtype=dtype)).dtype == dtype
    module = fused(5, 6, device="meta")
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    assert module(torch.ones(3, 5, device="meta")).shape == (3, 5 if "MLP" in fused.__name__ else 6)
    empty = module.to_empty(device="cpu")
    empty.load_state_dict(fused(5, 6).state_dict())
    assert empty(torch.ones(3, 5)).isfinite().all()
    with torch.device("meta"):
        assert next(fused(5, 6).parameters()).is_meta


@every_module
def test_copies_and_pickles(fused):
    module = fused(5, 6, activation="swish", beta=1.7)
    x = torch.randn(3, 5)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        assert again.activation is module.activation
        assert torch.equal(again(x), module(x))
        with torch.no_grad():
            next(again.parameters()).add_(1.0)
        assert not torch.equal(again(x), module(x))


@every_module
def test_compiles_and_exports(fused):
    torch._dynamo.reset()
    module = fused(5, 6)
    x = torch.randn(4, 5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        (FusedLinear(5, 6), "FusedLinear(in_features=5, out_features=6, bias=True, activation='gelu')"),
        (
            FusedLinear(5, 6, bias=False, activation=nn.LeakyReLU(0.2)),
            "FusedLinear(in_features=5, out_features=6, bias=False, activation='leaky_relu', negative_slope=0.2)",
        ),
        (
            FusedLinear(5, 6, activation=nn.PReLU(6)),
            "FusedLinear(in_features=5, out_features=6, bias=True, activation='prelu', slope=[6])",
        ),
        (
            FusedGLU(5, 6, activation="swiglu"),
            "FusedGLU(in_features=5, out_features=6, bias=True, activation='swiglu')",
        ),
    ],
)
def test_repr(module, shown):
    assert repr(module) == shown


def test_repr_of_the_blocks():
    assert repr(FusedMLP(5, 6, dropout=0.1)).startswith("FusedMLP(\n  activation='gelu', dropout=0.1\n  (up): Linear(")
    assert repr(FusedGatedMLP(5, 6)).startswith("FusedGatedMLP(\n  activation='silu', dropout=0\n  (gate): Linear(")
