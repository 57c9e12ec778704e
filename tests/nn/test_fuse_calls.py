"""What a call of a fused block finds: children that are still plain, or more than that, which are then called as the forward says."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from blocks import Dense, Layer, LoRA, Plain, Twice, block, call
from epilogue.nn import fuse, unfuse


def spoiled_by_hook(module, name):
    calls = []
    getattr(module, name).register_forward_hook(lambda *args: calls.append(1))
    return calls


# what becomes of a child of down_proj(act_fn(two(x)) * one(x)), and what still runs fused
SPOILS = {
    "a hook on a layer": (lambda m: spoiled_by_hook(m, "two"), []),
    "a hook on the activation": (lambda m: spoiled_by_hook(m, "act_fn"), []),
    "a hook on the last layer": (lambda m: spoiled_by_hook(m, "down_proj"), ["glu"]),
    "another layer's class": (lambda m: setattr(m, "one", LoRA(m.one)), ["linear"]),
    "a parametrization": (
        lambda m: parametrize.register_parametrization(m.one, "weight", Twice()) and None,
        ["linear"],
    ),
    "another activation": (lambda m: setattr(m, "act_fn", nn.ReLU()), ["gated_mlp"]),
    "no activation of ours": (lambda m: setattr(m, "act_fn", nn.Softmax(-1)), []),
    "another dtype of one layer": (lambda m: m.one.float(), ["linear"]),
    "a forward of its own": (
        lambda m: setattr(m.one, "forward", lambda x: torch.zeros(*x.shape[:-1], 12, dtype=x.dtype)),
        ["linear"],
    ),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_what_is_more_than_plain_is_called(spoil, counted):
    module, stock, x = block("gated"), block("gated"), torch.randn(3, 8).double()
    fuse(module)
    change, operations = SPOILS[spoil]
    torch.manual_seed(3)
    calls = change(module)
    torch.manual_seed(3)
    change(stock)
    counted.clear()
    if "dtype" in spoil:
        with pytest.raises(RuntimeError, match="dtype"):  # torch's own message
            module(x)
    else:
        torch.testing.assert_close(module(x), stock(x), rtol=1e-12, atol=1e-12)
        assert not calls or len(calls) == 1
    assert counted == operations


@pytest.mark.parametrize("name", ["layer", "layer, module", "dense"])
def test_an_adapter_in_place_of_a_layer(name, counted):
    module, stock, x = block(name), block(name), torch.randn(3, 5, 8).double()
    layer = "dense" if name == "dense" else "fc1"
    width = getattr(stock, layer).out_features
    fuse(module)
    for m in (module, stock):
        torch.manual_seed(3)
        adapter = LoRA(getattr(m, layer))
        adapter.b = nn.Linear(2, width, dtype=torch.float64)
        setattr(m, layer, adapter)
    counted.clear()
    torch.testing.assert_close(call(module.eval(), x), call(stock.eval(), x), rtol=0, atol=0)
    assert counted == []
    setattr(module, layer, getattr(module, layer).base)  # merged again
    setattr(stock, layer, getattr(stock, layer).base)
    torch.testing.assert_close(call(module, x), call(stock, x), rtol=1e-12, atol=1e-12)
    assert counted == ["linear" if name == "dense" else "mlp"]


def test_an_activation_that_others_use_too(counted):
    class Two(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.first, self.second = Dense(act), Dense(act)

        def forward(self, x):
            return self.first(x) + self.second(x) + self.first.activation(x[:, 0])

    module, x = Two(nn.Tanh()).double(), torch.randn(3, 5, 8).double()
    expected = module(x)
    report = fuse(module)
    assert [row.path for row in report.fused] == ["first", "second"]
    counted.clear()
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    assert counted == ["linear", "linear"]
    unfuse(module)
    assert torch.equal(module(x), expected)


def test_parameters_of_the_activation_are_looked_up(counted):
    module = Plain(nn.LeakyReLU(0.1)).double().eval()
    x = torch.randn(3, 8).double()
    fuse(module)
    module.activation.negative_slope = 0.5
    expected = module.fc2(F.leaky_relu(module.fc1(x), 0.5))
    counted.clear()
    torch.testing.assert_close(module(x), expected)
    assert counted == ["mlp"]


def test_a_hook_on_a_dropout(counted):
    module, seen = Plain().double(), []
    fuse(module)
    module.between.register_forward_hook(lambda *args: seen.append(1))
    counted.clear()
    module(torch.randn(3, 8).double())
    assert (seen, counted) == ([1], ["linear"])
    module.between = nn.AlphaDropout(0.5)
    module(torch.randn(3, 8).double())
    assert counted == ["linear", "linear"]


@pytest.mark.parametrize("act", [F.gelu, nn.GELU()], ids=["function", "module"])
@pytest.mark.parametrize("name", ["layer", "layer, module"])
def test_another_activation_later(name, act, counted):
    module, x = block(name).eval(), torch.randn(3, 5, 8).double()
    fuse(module)
    del module.activation_fn
    module.activation_fn = act
    stock = block(name).eval()
    del stock.activation_fn
    stock.activation_fn = act
    counted.clear()
    torch.testing.assert_close(call(module, x), call(stock, x), rtol=1e-12, atol=1e-12)
    assert counted == ["mlp"]


def test_a_hook_on_an_activation(counted):
    module, seen, x = block("layer, module").eval(), [], torch.randn(3, 5, 8).double()
    fuse(module)
    module.activation_fn.register_forward_hook(lambda _module, args, y: seen.append((args[0], y)))
    counted.clear()
    call(module, x)
    ((z, y),) = seen
    torch.testing.assert_close(y, F.mish(z), rtol=0, atol=0)
    assert counted == []


def test_activations_changed_places(counted):
    one, other = (Layer(F.gelu).double().eval() for _ in range(2))
    x = torch.randn(3, 5, 8).double()
    expected = call(one, x)
    for module in (one, other):
        fuse(module)
    one.activation_fn, other.activation_fn = other.activation_fn, one.activation_fn
    torch.testing.assert_close(call(one, x), expected, rtol=0, atol=0)


def test_an_activation_of_what_another_layer_computed():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Dense(), Dense(nn.Mish())

        def forward(self, x):
            return self.second(x) + self.second.activation(self.first(x))

    module, x = Chain().double(), torch.randn(3, 5, 8).double()
    expected = module(x)
    assert len(fuse(module).fused) == 2
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_a_sequential_that_is_changed(counted):
    module, stock, x = block("sequential").eval(), block("sequential").eval(), torch.randn(3, 8).double()
    fuse(module)
    for m in (module, stock):
        del m[0]  # the others are renumbered
    torch.testing.assert_close(module(x), stock(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["one", "two", "down_proj"])
def test_a_weight_that_is_not_there(name, counted):
    """As ZeRO-3 leaves it between calls: torch's own error, since nobody gathers it here."""
    module = block("gated")
    fuse(module)
    counted.clear()
    getattr(module, name).weight.data = torch.empty(0, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        module(torch.randn(3, 8).double())
    assert "gated_mlp" not in counted


def test_dropouts_are_looked_up():
    module = Plain(between=0.0, after=0.0).double()
    x = torch.randn(200, 8).double()
    fuse(module)
    module.between.p = 1.0
    torch.testing.assert_close(module(x), module.fc2.bias.expand(200, 8))
    module.between.p, module.after.p = 0.0, 1.0
    assert not module(x).any()
    module.eval()
    assert module(x).all()


def test_autocast_and_compile():
    module, x = block("gated").float(), torch.randn(3, 8)
    expected = module(x)
    fuse(module)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
    for name in ("gated", "layer, module", "sequential"):
        module, x = block(name).eval(), torch.randn(3, 5, 8).double()
        expected = call(module, x)
        fuse(module)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(call_compiled(compiled, module, x), expected)


def call_compiled(compiled, module, x):
    return compiled(x, x) if isinstance(module, Layer) else compiled(x)


def test_the_encoders_fast_path_is_left_alone(counted):
    """In evaluation nn.TransformerEncoderLayer reads the weights itself, past the forward of its feed-forward block."""
    layer, x = block("encoder layer").eval(), torch.randn(3, 5, 8).double()
    expected = layer(x)
    fuse(layer)
    counted.clear()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    assert counted == []
    torch.testing.assert_close(layer(x), expected)
    assert counted == ["mlp"]
