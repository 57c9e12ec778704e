"""The MLPs' children: run as the modules they are wherever they are more than a plain nn.Linear; dropout."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from epilogue.nn import FusedGatedMLP, FusedMLP

CHILDREN = {FusedMLP: ("up", "down"), FusedGatedMLP: ("gate", "up", "down")}
every_child = pytest.mark.parametrize(
    ("fused", "name"), [(fused, name) for fused, names in CHILDREN.items() for name in names]
)
every_block = pytest.mark.parametrize("fused", CHILDREN)


class LoRALinear(nn.Linear):
    def __init__(self, base, rank=2):
        super().__init__(base.in_features, base.out_features)
        self.load_state_dict(base.state_dict())
        self.A = nn.Parameter(torch.randn(rank, base.in_features))
        self.B = nn.Parameter(torch.randn(base.out_features, rank))

    def forward(self, x):
        return super().forward(x) + x @ self.A.T @ self.B.T


def by_hand(block, x):
    """The block as its children compute it."""
    if isinstance(block, FusedGatedMLP):
        return block.down(nn.functional.silu(block.gate(x)) * block.up(x))
    return block.down(nn.functional.gelu(block.up(x)))


def check(block, x):
    block.zero_grad()
    expected = by_hand(block, x)
    expected.sum().backward()
    gradients = [parameter.grad.clone() for parameter in block.parameters()]
    block.zero_grad()
    y = block(x)
    y.sum().backward()
    torch.testing.assert_close(y, expected)
    for parameter, gradient in zip(block.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.fixture
def x():
    return torch.randn(4, 5)


@every_child
def test_lora(fused, name, x):
    block = fused(5, 6, bias=True)
    plain = block(x)
    setattr(block, name, LoRALinear(getattr(block, name)))
    check(block, x)
    assert not torch.allclose(block(x), plain)


@every_child
def test_parametrizations(fused, name, x):
    block = fused(5, 6, bias=True)
    parametrizations.weight_norm(getattr(block, name))
    check(block, x)
    parametrize.register_parametrization(getattr(block, name), "bias", nn.Tanh())
    check(block, x)


@every_child
def test_pruning(fused, name, x):
    block = fused(5, 6, bias=True)
    plain = block(x)
    prune.random_unstructured(getattr(block, name), "weight", amount=0.5)
    check(block, x)
    assert not torch.allclose(block(x), plain)


@every_child
def test_forward_hooks_run_and_may_replace_the_result(fused, name, x):
    block = fused(5, 6)
    plain, seen = block(x), []
    handle = getattr(block, name).register_forward_hook(lambda module, args, y: seen.append(y) or 2 * y)
    check(block, x)
    assert len(seen) == 2
    assert not torch.allclose(block(x), plain)
    handle.remove()
    torch.testing.assert_close(block(x), plain)


@every_child
def test_forward_pre_hooks_run_and_may_replace_the_input(fused, name, x):
    block = fused(5, 6)
    plain = block(x)
    getattr(block, name).register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    check(block, x)
    assert not torch.allclose(block(x), plain)


@every_child
def test_backward_hooks_run(fused, name, x):
    block, seen = fused(5, 6), []
    child = getattr(block, name)
    child.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0].shape))
    child.register_full_backward_pre_hook(lambda module, outputs: (2 * outputs[0],))
    block(x.requires_grad_()).sum().backward()
    assert seen == [(4, child.out_features)]
    check(block, x)


@every_child
def test_a_forward_of_the_instances_own_runs(fused, name, x):
    """accelerate puts its hooks there, and may have moved the weight elsewhere before."""
    block = fused(5, 6)
    plain = block(x)
    child = getattr(block, name)
    original = child.forward
    child.forward = lambda x: 3 * original(x)
    check(block, x)
    assert not torch.allclose(block(x), plain)
    del child.forward
    torch.testing.assert_close(block(x), plain)


@every_child
def test_any_module_may_be_a_child(fused, name, x):
    block = fused(5, 6)
    child = getattr(block, name)
    setattr(block, name, nn.Sequential(child, nn.LayerNorm(child.out_features)))
    check(block, x)


@every_block
def test_dropout_is_torchs_in_both_ways(fused):
    block = fused(8, 64, dropout=0.5, bias=True)
    x = torch.randn(16, 8)
    hooked = copy.deepcopy(block)
    hooked.up.register_forward_hook(lambda *_: None)
    results = []
    for module in (block, hooked):
        torch.manual_seed(3)
        results.append(module(x))
    torch.manual_seed(3)
    h = nn.functional.silu(block.gate(x)) * block.up(x) if fused is FusedGatedMLP else nn.functional.gelu(block.up(x))
    expected = block.down(nn.functional.dropout(h, 0.5))
    for result in results:
        torch.testing.assert_close(result, expected)
    assert not torch.allclose(block(x), expected)  # other units are dropped the next time


@every_block
@pytest.mark.parametrize("hooked", [False, True])
def test_dropout_rests_in_eval(fused, hooked):
    block = fused(8, 64, dropout=0.5).eval()
    if hooked:
        block.up.register_forward_hook(lambda *_: None)
    x = torch.randn(16, 8)
    assert torch.equal(block(x), block(x))
    torch.testing.assert_close(block(x), by_hand(block, x))
    assert not torch.allclose(block.train()(x), by_hand(block, x))


@every_block
def test_compiles_with_a_lora_child(fused, x):
    torch._dynamo.reset()
    block = fused(5, 6)
    block.up = LoRALinear(nn.Linear(5, 6))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x))
    torch._dynamo.reset()


@pytest.mark.parametrize("hooked", [False, True])
@every_block
def test_recompute_runs_the_children_again(fused, hooked):
    """The same numbers and the same dropped units, whether the children are read or called; x alone is kept."""
    block = fused(8, 64, dropout=0.5, bias=True, recompute=True)
    calls = []
    if hooked:
        block.up.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(16, 8, requires_grad=True)
    results, kept = [], []
    for block.recompute in (False, True):
        torch.manual_seed(2)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape[-1]) or t, lambda t: t):
            y = block(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()])])
        assert (64 in kept) != block.recompute
        kept.clear()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert len(calls) == 3 * hooked
    assert "recompute=True" in repr(block)
    assert "recompute" not in repr(fused(5, 6))
