"""`fuse` on blocks whose forward spells its activation out, and on what looks alike."""

import pytest
import torch

from epilogue.nn import fuse, unfuse
from inline_blocks import BLOCKS, SIBLINGS

MAKE = {name: block.make for name, block in BLOCKS.items()} | {name: make for name, (make, _) in SIBLINGS.items()}


def made(name, training):
    torch.manual_seed(0)
    module = MAKE[name]().double().train(training)
    return module, torch.randn(3, 5, 8, dtype=torch.float64)


def trained(module, x):
    """[every tensor that comes back, gradients of x and of the parameters, None where one has none]."""
    x = x.clone().requires_grad_()
    torch.manual_seed(7)
    y = module(x)
    y = y if isinstance(y, tuple) else (y,)
    if not y[0].requires_grad:
        return [*y]
    loss = sum(tensor.square().sum() for tensor in y)
    return [*y, *torch.autograd.grad(loss, [x, *module.parameters()], allow_unused=True)]


def check(module, x, expected, counted, tolerance):
    """What ran fused in one call, whose numbers are the expected ones."""
    counted.clear()
    torch.testing.assert_close(trained(module, x), expected, rtol=tolerance, atol=tolerance)
    return counted


@pytest.mark.parametrize("name", MAKE)
def test_each_is_a_block_that_trains(name):
    tensors = [tensor for tensor in trained(*made(name, True)) if tensor is not None]
    assert all(tensor.isfinite().all() and tensor.any() for tensor in tensors)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_an_inline_activation(name, training, counted):
    module, x = made(name, training)
    expected = trained(module, x)
    report = fuse(module)
    assert check(module, x, expected, counted, 1e-10) == list(BLOCKS[name].operations)
    assert BLOCKS[name].activation in {known for row in report.fused for known in row.activation.split(", ")}
    assert not report.refused
    unfuse(module)
    assert check(module, x, expected, counted, 0) == []


def test_nearly_all_run_fused(counted):
    complete = []
    for name, block in BLOCKS.items():
        module, x = made(name, False)
        fuse(module)
        counted.clear()
        module(x)
        if counted == list(block.operations):
            complete.append(name)
    assert len(BLOCKS) >= 40
    assert len(complete) >= 0.95 * len(BLOCKS), f"not fused: {', '.join(BLOCKS.keys() - complete)}"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SIBLINGS)
def test_what_looks_alike(name, training, counted):
    module, x = made(name, training)
    expected = trained(module, x)
    fuse(module)
    assert check(module, x, expected, counted, 1e-10) in SIBLINGS[name][1]
    unfuse(module)
    assert check(module, x, expected, counted, 0) == []


def test_an_unknown_activation_has_a_row():
    report = fuse(made("UnknownActivation", False)[0])
    assert not report.fused
    assert [row.path for row in report.refused] == [""]
