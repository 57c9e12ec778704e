"""`fuse` on the blocks: the same numbers, copies, how it is called, and the way back."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from blocks import BLOCKS, Gated, Layer, Other, Packed, Plain, Twice, block, call, trained
from epilogue.nn import fuse, unfuse
from epilogue.nn.surgery import candidates, fusing
from epilogue.nn.surgery.remade import is_remade

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
    assert {(row.pattern, row.activation) for row in report.fused} == {(pattern, activation)}
    assert not report.refused
    for actual, wanted in zip(trained(module, x), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)
    times = {"sequential": 2, "one activation for several": 3}.get(name, 1)
    assert counted == [OPERATION.get(pattern, "linear")] * times
    assert list(module.state_dict()) == keys
    assert module.training == training


def test_a_linear_layer_of_ones_own_is_tried_without_a_draw():
    class Own(nn.Linear):
        def forward(self, x):
            y = x @ self.weight.T
            return y if self.bias is None else y + self.bias

    module = Plain()
    module.fc1, module.fc2 = Own(8, 12), Own(12, 8)
    state = torch.get_rng_state()
    (row,) = fuse(module).fused
    assert row.pattern == "plain"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", BLOCKS)
def test_undone_to_the_bit(name):
    module = block(name)
    before = {path: (type(m), dict(m.__dict__)) for path, m in module.named_modules()}
    x = torch.randn(3, 5, 12 if "as hidden" in name else 8).double()
    expected = trained(module, x)
    report = fuse(module)
    assert any(is_remade(m) for m in module.modules())
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
    assert not any(is_remade(m) for m in other.modules())
    assert any(is_remade(m) for m in module.modules())


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
    report = fuse(module, dry_run=True)
    assert len(report.fused) == 3
    assert str(report).startswith("would fuse 3, ")
    assert unfuse(module) == []


def test_for_a_while():
    module = model()
    with fuse(module) as report:
        assert len(report.fused) == 3
        assert is_remade(module["a"])
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
    module, examined = model(), fusing.examined

    def failing(path, *args):
        if path == "c":
            raise MemoryError("no more")
        return examined(path, *args)

    monkeypatch.setattr(fusing, "examined", failing)
    with pytest.raises(MemoryError):
        fuse(module)
    assert unfuse(module) == []
    assert type(module["a"]) is Gated


def test_without_verification_the_likeliest(monkeypatch):
    monkeypatch.setattr(candidates, "difference", None)
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
    assert unfuse(module)  # a layer is of its own class, whatever becomes of that
    parametrize.remove_parametrizations(module.fc1, "weight", leave_parametrized=False)
    module.scale = nn.Parameter(torch.ones(8))
    fuse(module)
    parametrize.register_parametrization(module, "scale", Twice())
    with pytest.raises(ValueError, match=r"unfuse: \(the model\) is by now a ParametrizedLayer"):
        unfuse(module)
    parametrize.remove_parametrizations(module, "scale", leave_parametrized=False)
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
