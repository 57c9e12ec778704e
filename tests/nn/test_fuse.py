"""`fuse` on blocks written here: what it finds, what it refuses, what a call does when a child is no longer plain, and the way back."""

import copy
import functools
import logging
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from epilogue.nn import fuse, fused, surgery, unfuse


class Gated(nn.Module):
    def __init__(self, act=None, bias=False, d=8, hidden=12):
        super().__init__()
        self.down_proj = nn.Linear(hidden, d, bias)
        self.one, self.two = nn.Linear(d, hidden, bias), nn.Linear(d, hidden, bias)
        self.act_fn = act or nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.two(x)) * self.one(x))


class Packed(nn.Module):
    def __init__(self, second=False, bias=True):
        super().__init__()
        self.second = second
        self.w1, self.w2 = nn.Linear(8, 24, bias), nn.Linear(12, 8, bias)
        self.act, self.drop = nn.GELU("tanh"), nn.Dropout(0.1)

    def forward(self, x):
        a, b = self.w1(x).chunk(2, -1)
        gate, up = (b, a) if self.second else (a, b)
        return self.w2(self.drop(up * self.act(gate)))


class Plain(nn.Module):
    def __init__(self, act=F.gelu, between=0.1, after=0.2):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)
        self.activation = act
        self.after, self.between = nn.Dropout(after), nn.Dropout(between)

    def forward(self, hidden_states):
        return self.after(self.fc2(self.between(self.activation(self.fc1(hidden_states)))))


class Layer(nn.Module):
    """A block with more in it; forward wants a mask."""

    def __init__(self, act=F.relu):
        super().__init__()
        self.attention, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)
        self.activation_fn = act

    def forward(self, x, mask):
        x = x + self.attention(self.norm(x))
        return x + self.fc2(F.dropout(self.activation_fn(self.fc1(x)), 0.1, self.training))


class Dense(nn.Module):
    def __init__(self, act=None):
        super().__init__()
        self.dense, self.activation = nn.Linear(8, 8), act or nn.Tanh()

    def forward(self, x):
        return self.activation(self.dense(x[:, 0]))


class Other(nn.Module):
    """Somebody's own class for an activation that the catalogue has under another name."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


def sequential():
    return nn.Sequential(
        nn.LayerNorm(8), nn.Linear(8, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 8), nn.Dropout(0.2),
        nn.Linear(8, 6), nn.LeakyReLU(0.2), nn.Linear(6, 8),
    )  # fmt: skip


class VisionMLP(nn.Sequential):
    """As torchvision's: a class of its own that builds what nn.Sequential calls."""

    def __init__(self):
        super().__init__(nn.Linear(8, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, 8), nn.Dropout(0.2))


class Stacked(nn.Module):
    """One activation behind several layers, which it is called for in turn."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 8)
        self.layers = nn.ModuleList([nn.Linear(12, 12), nn.Linear(12, 12)])
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.act(self.first(x))
        for layer in self.layers:
            x = self.act(layer(x))
        return self.last(x)


BLOCKS = {
    "gated": (Gated, "gated", "silu"),
    "gated, bias, own class": (lambda: Gated(Other(), True), "gated", "quick_gelu"),
    "gated, features as hidden": (lambda: Gated(d=12), "gated", "silu"),
    "gated, prelu": (lambda: Gated(nn.PReLU()), "gated", "prelu"),
    "packed": (Packed, "gated packed", "gelu_tanh"),
    "packed, gate second": (lambda: Packed(True, False), "gated packed", "gelu_tanh"),
    "plain": (Plain, "plain", "gelu"),
    "plain, partial": (lambda: Plain(functools.partial(F.leaky_relu, negative_slope=0.3)), "plain", "leaky_relu"),
    "plain, no dropout": (lambda: Plain(nn.ELU(0.5), 0.0, 0.0), "plain", "elu"),
    "layer": (Layer, "linear + activation", "relu"),
    "layer, module": (lambda: Layer(nn.Mish()), "linear + activation", "mish"),
    "dense": (Dense, "linear + activation", "tanh"),
    "sequential": (sequential, "sequential", "relu, leaky_relu"),
    "sequential of a class": (VisionMLP, "sequential", "gelu"),
    "one activation for several": (Stacked, "linear + activation", "relu"),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), "linear + activation", "relu"),
    "encoder layer, gelu": (
        lambda: nn.TransformerEncoderLayer(8, 2, 12, activation="gelu"),
        "linear + activation",
        "gelu",
    ),
    "decoder layer": (lambda: nn.TransformerDecoderLayer(8, 2, 12), "linear + activation", "relu"),
}


def block(name):
    torch.manual_seed(0)
    return BLOCKS[name][0]().double()


def call(module, x):
    torch.manual_seed(7)
    others = {Layer: 1, nn.TransformerDecoderLayer: 1}
    cls = next((cls for cls in others if isinstance(module, cls)), None)
    return module(x, *([x] if cls else []))


def trained(module, x):
    """[y, gradients of x and of the parameters]."""
    x = x.clone().requires_grad_()
    y = call(module, x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


@pytest.fixture
def counted(monkeypatch):
    """The fused operations that ran."""
    names = []
    for name in ("linear", "mlp", "gated_mlp"):
        operation = getattr(fused, name)

        def run(*args, name=name, operation=operation, **kwargs):
            names.append(name)
            return operation(*args, **kwargs)

        monkeypatch.setattr(fused, name, run)
    return names


OPERATION = {"gated": "gated_mlp", "gated packed": "gated_mlp", "plain": "mlp", "sequential": "mlp"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_same_numbers(name, training, counted):
    module, x = (
        block(name).train(training),
        torch.randn(3, 5, 12 if "as hidden" in name else 8),
    )
    x = x.double()
    _, pattern, activation = BLOCKS[name]
    expected = trained(module, x)
    keys = list(module.state_dict())
    state = torch.get_rng_state()
    report = fuse(module)
    assert torch.equal(torch.get_rng_state(), state)  # the trials draw from generators of their own
    counted.clear()
    assert [(row.pattern, row.activation) for row in report.fused] == [(pattern, activation)]
    assert not report.refused
    for actual, wanted in zip(trained(module, x), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)
    assert counted == [OPERATION.get(pattern, "linear")] * (2 if name == "sequential" else 1)
    assert list(module.state_dict()) == keys
    assert module.training == training


@pytest.mark.parametrize("name", BLOCKS)
def test_undone_to_the_bit(name):
    module = block(name)
    before = {path: (type(m), dict(m.__dict__)) for path, m in module.named_modules()}
    x = torch.randn(3, 5, 12 if "as hidden" in name else 8).double()
    expected = trained(module, x)
    report = fuse(module)
    assert any(fused.is_fused(m) for m in module.modules())
    assert unfuse(module)
    for path, m in module.named_modules():
        cls, attributes = before[path]
        assert type(m) is cls
        assert m.__dict__.keys() == attributes.keys()
        assert all(m.__dict__[key] is value for key, value in attributes.items())
    assert all(torch.equal(a, b) for a, b in zip(trained(module, x), expected, strict=True))
    assert unfuse(module) == []
    assert fuse(module).fused == report.fused


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_fused_too(name, copied, counted):
    module, x = block(name).eval(), torch.randn(3, 5, 12 if "as hidden" in name else 8).double()
    expected = call(module, x)
    fuse(module)
    other = copied(module)
    counted.clear()
    torch.testing.assert_close(call(other, x), expected, rtol=1e-12, atol=1e-12)
    assert counted
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(call(module, x), call(module, x))
    torch.testing.assert_close(call(module, x), expected, rtol=1e-12, atol=1e-12)  # the copy's weights are its own
    unfuse(other)
    assert not any(fused.is_fused(m) for m in other.modules())
    assert any(fused.is_fused(m) for m in module.modules())


# --- what a call finds


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


class LoRA(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base, self.a, self.b = base, nn.Linear(8, 2, dtype=torch.float64), nn.Linear(2, 12, dtype=torch.float64)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


class Twice(nn.Module):
    def forward(self, weight):
        return 2.0 * weight


@pytest.mark.filterwarnings("ignore::UserWarning")
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


# --- what is refused


class Residual(Plain):
    def forward(self, x):
        return x + super().forward(x)


class Clamped(Gated):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.two(x).clamp(max=10.0)) * self.one(x))


class Normed(Gated):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(12)

    def forward(self, x):
        return self.down_proj(self.norm(self.act_fn(self.two(x)) * self.one(x)))


class Scaled(Gated):
    def forward(self, x):
        return super().forward(x) * 1.01


class Needy(Gated):
    def forward(self, x, position):
        return super().forward(x) + position


class Mixer(nn.Module):
    """An MLP over another axis, which images of as many columns as rows do not show."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(8, 12), nn.Linear(12, 8), nn.GELU()

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x.transpose(1, 2)))).transpose(1, 2)


class UsedTwice(Dense):
    """The activation is given what the layer computed, and so is something else."""

    def forward(self, x):
        z = self.dense(x)
        return self.activation(z) + z


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.zeros(4, 8, 12)), nn.Parameter(torch.zeros(4, 12, 8))

    def forward(self, x):
        return torch.bmm(torch.bmm(x, self.up).relu(), self.down)


class Untrainable(Gated):
    def forward(self, x):
        if self.training:
            raise ValueError("for inference alone")
        return super().forward(x)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (UsedTwice, "it computes something else, differing by"),
        (Untrainable, "it cannot be called: ValueError: for inference alone"),
        (Clamped, "it computes something else, the nearest differs by"),
        (Normed, r"it also holds norm \(LayerNorm\)"),
        (Scaled, "it computes something else, the nearest differs by 9.9e-03"),
        (Needy, "its forward takes 2 arguments, not hidden states alone"),
        (Experts, "three axes"),
    ],
)
def test_what_is_refused(cls, reason, caplog):
    module = nn.ModuleDict({"mlp": cls()})
    with caplog.at_level(logging.INFO, logger="epilogue"):
        report = fuse(module)
    assert not report.fused
    (row,) = report.refused
    assert row.path == "mlp"
    assert re.search(reason, row.reason)
    assert "0 fused, 1 refused" in str(report)
    assert row.reason in str(report)
    assert "refused mlp" in caplog.text
    assert type(module["mlp"]) is cls


def test_the_report_groups_what_differs_in_numbers_alone():
    def rows(*paths, reason=""):
        return [surgery.Row(path, "gated", "silu", reason) for path in paths]

    report = surgery.Report(
        rows(*(f"layers.{i}.mlp" for i in range(12)), "mlp", "layers.3.fc1", "layers.3.fc2"),
        [*rows("0.experts.8", "0.experts.9", "1.experts.10", "1.mlp", reason="no"), *rows("2.mlp", reason="neither")],
    )
    assert str(report).splitlines() == [
        "15 fused, 5 refused",
        "module            count  pattern  activation",
        "layers.0…11.mlp   12     gated    silu",
        "mlp               1      gated    silu",
        "layers.3.fc1      1      gated    silu",
        "layers.3.fc2      1      gated    silu",
        "0…1.experts.8…10  3      gated    silu        no",
        "1.mlp             1      gated    silu        no",
        "2.mlp             1      gated    silu        neither",
    ]
    assert str(surgery.Report(rows("", "0", "1"))).splitlines()[2:] == [
        "(the model)  1      gated    silu",
        "0…1          2      gated    silu",
    ]


def test_a_prelu_of_channels_is_none_of_ours():
    """torch's channels are the second axis, ours the last."""
    report = fuse(Gated(nn.PReLU(12)))
    assert (report.fused, report.refused) == ([], [])


def test_half_a_block_is_better_than_none():
    """With the residual inside it is no MLP, but a linear layer with an activation it still has."""
    (row,) = fuse(Residual()).fused
    assert row.pattern == "linear + activation"


def test_an_mlp_over_another_axis():
    module, x = Mixer().double(), torch.randn(2, 8, 8, dtype=torch.float64)
    expected = module(x)
    (row,) = fuse(module).fused
    assert row.pattern == "linear + activation"
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_a_layer_of_zeros_hides_nothing():
    module = Scaled()
    nn.init.zeros_(module.down_proj.weight)
    assert not fuse(module).fused
    assert not module.down_proj.weight.any()


def test_a_module_that_knows_its_sizes(counted):
    class Knows(Packed):
        def forward(self, x):
            gate, up = self.w1(x).split([12, 12], -1)
            return self.w2(self.drop(up * self.act(gate)))

    (row,) = fuse(Knows()).fused
    assert row.pattern == "gated packed"


def test_nothing_where_nothing_is():
    report = fuse(
        nn.ModuleList([nn.Linear(3, 3), nn.MultiheadAttention(8, 2), nn.Sequential(nn.Linear(3, 4), nn.ReLU())])
    )
    assert [row.pattern for row in report.fused] == ["linear + activation"]
    assert not report.refused


# --- how it is called


def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"a": Gated(), "b": nn.ModuleDict({"mlp": Plain()}), "c": Packed()})


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ({}, ["a", "b.mlp", "c"]),
        ({"include": "*.mlp"}, ["b.mlp"]),
        ({"include": ["a", "c"]}, ["a", "c"]),
        ({"exclude": "b*"}, ["a", "c"]),
        ({"include": "[ab]*", "exclude": ["a"]}, ["b.mlp"]),
    ],
)
def test_include_and_exclude(options, paths):
    module = model()
    assert [row.path for row in fuse(module, **options).fused] == paths
    assert unfuse(module) == paths


def test_a_dry_run_changes_nothing():
    module = model()
    assert len(fuse(module, dry_run=True).fused) == 3
    assert unfuse(module) == []


def test_for_a_while():
    module = model()
    with fuse(module) as report:
        assert len(report.fused) == 3
        assert fused.is_fused(module["a"])
    assert unfuse(module) == []
    with pytest.raises(KeyError), fuse(module):
        raise KeyError
    assert unfuse(module) == []
    fuse(module, include="a")
    with fuse(module) as report:
        assert [row.path for row in report.fused] == ["b.mlp", "c"]
        unfuse(module["c"])
    assert unfuse(module) == ["a"]  # fused before, and so it stays


def test_twice_is_once():
    module = model()
    fuse(module)
    assert fuse(module).fused == []
    unfuse(module)
    assert type(module["a"]) is Gated


def test_an_exception_half_way(monkeypatch):
    module, found = model(), surgery._found

    def failing(path, *args):
        if path == "c":
            raise MemoryError("no more")
        return found(path, *args)

    monkeypatch.setattr(surgery, "_found", failing)
    with pytest.raises(MemoryError):
        fuse(module)
    assert unfuse(module) == []
    assert type(module["a"]) is Gated


def test_without_verification_the_likeliest(monkeypatch):
    monkeypatch.setattr(surgery, "Trial", None)
    module = model()
    assert [row.pattern for row in fuse(module, verify=False).fused] == ["gated", "plain", "gated packed"]


def test_on_the_meta_device():
    with torch.device("meta"):
        module = model()
    assert len(fuse(module).fused) == 3
    assert module["a"].one.weight.is_meta


def test_hooks_of_the_block_stay():
    module, seen = Gated(Other()), []
    module.register_forward_hook(lambda *args: seen.append("block"))
    module.act_fn.register_forward_hook(lambda *args: seen.append("activation"))
    fuse(module)
    assert seen == []  # trials are not the user's calls
    module(torch.randn(2, 8))
    assert seen == ["activation", "block"]


def test_what_another_library_made_of_it():
    module = Layer()
    fuse(module)
    parametrize.register_parametrization(module.fc1, "weight", Twice())
    with pytest.raises(ValueError, match="unfuse: fc1 is by now a ParametrizedFusedLinear"):
        unfuse(module)
    parametrize.remove_parametrizations(module.fc1, "weight", leave_parametrized=False)
    assert unfuse(module)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fuse("model"), "model must be a torch.nn.Module, got str"),
        (lambda: unfuse(3), "model must be a torch.nn.Module, got int"),
        (lambda: fuse(Gated(), include=3), "include must be a shell pattern"),
        (lambda: fuse(Gated(), exclude=[nn.Linear]), "exclude must be a shell pattern"),
    ],
)
def test_errors(call, message):
    with pytest.raises(TypeError, match=message):
        call()
