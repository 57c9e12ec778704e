"""What a call of a fused block finds: children that are still plain, or more than that, and then the module's own forward."""

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


SPOILS = {
    "a hook on a layer": lambda m: spoiled_by_hook(m, "two"),
    "a hook on the activation": lambda m: spoiled_by_hook(m, "act_fn"),
    "another layer's class": lambda m: setattr(m, "one", LoRA(m.one)),
    "a parametrization": lambda m: parametrize.register_parametrization(m.one, "weight", Twice()) and None,
    "another activation": lambda m: setattr(m, "act_fn", nn.ReLU()),
    "another dtype of one layer": lambda m: m.one.float(),
    "a forward of its own": lambda m: setattr(
        m.one, "forward", lambda x: torch.zeros(*x.shape[:-1], 12, dtype=x.dtype)
    ),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_what_is_more_than_plain_is_called(spoil, counted):
    module, stock, x = block("gated"), block("gated"), torch.randn(3, 8).double()
    fuse(module)
    torch.manual_seed(3)
    calls = SPOILS[spoil](module)
    torch.manual_seed(3)
    SPOILS[spoil](stock)
    counted.clear()
    if "dtype" in spoil:
        with pytest.raises(RuntimeError, match="dtype"):  # torch's own message
            module(x)
    else:
        torch.testing.assert_close(module(x), stock(x), rtol=0, atol=0)
        assert not calls or len(calls) == 1
    assert counted == []


@pytest.mark.parametrize("name", ["layer", "layer, module", "dense"])
def test_a_folded_layer_that_is_more_than_plain(name, counted):
    """Adapters take a linear layer that computes its activation for a plain one; then it must be one."""
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
    assert counted == ["linear"]


def test_an_activation_that_others_use_too(counted):
    """The folded activation hands on what its layer gave it and nothing else."""

    class Two(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.first, self.second = Dense(act), Dense(act)

        def forward(self, x):
            return self.first(x) + self.second(x) + self.first.activation(x[:, 0])

    module, x = Two(nn.Tanh()).double(), torch.randn(3, 5, 8).double()
    expected = module(x)
    report = fuse(module)
    assert [row.path for row in report.fused] == ["first"]
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
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
    assert (seen, counted) == ([1], [])
    module.between = nn.AlphaDropout(0.5)
    module(torch.randn(3, 8).double())
    assert counted == []


@pytest.mark.parametrize("act", [F.gelu, nn.GELU()], ids=["function", "module"])
@pytest.mark.parametrize("name", ["layer", "layer, module"])
def test_another_activation_behind_a_folded_layer(name, act, counted):
    module, x = block(name).eval(), torch.randn(3, 5, 8).double()
    fuse(module)
    del module.activation_fn
    module.activation_fn = act
    stock = block(name).eval()
    del stock.activation_fn
    stock.activation_fn = act
    counted.clear()
    torch.testing.assert_close(call(module, x), call(stock, x), rtol=0, atol=0)
    assert counted == []


def test_a_hook_on_a_folded_activation(counted):
    module, seen, x = block("layer, module").eval(), [], torch.randn(3, 5, 8).double()
    fuse(module)
    module.activation_fn.register_forward_hook(lambda _module, args, y: seen.append((args[0], y)))
    counted.clear()
    call(module, x)
    ((z, y),) = seen
    torch.testing.assert_close(y, F.mish(z), rtol=0, atol=0)
    assert counted == []


def test_folded_activations_changed_places(counted):
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
    assert counted == []


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


def test_the_encoders_fast_path_would_read_past_the_layer(counted):
    """In evaluation nn.TransformerEncoderLayer reads linear1.weight itself, unless told that it cannot."""
    layer, x = block("encoder layer").eval(), torch.randn(3, 5, 8).double()
    with torch.no_grad():
        expected = layer(x)
        fuse(layer)
        counted.clear()
        torch.testing.assert_close(layer(x), expected)
        assert counted == ["linear"]
        unfuse(layer)
        assert layer.activation_relu_or_gelu == 1
