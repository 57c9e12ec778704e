"""Comparing a fused module with a stock one of the same weights: results, gradients and errors."""

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

import blocks
from epilogue.nn import fuse

X = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def pair(make):
    """Return (fused, stock) of the same weights."""
    modules = []
    for _ in range(2):
        torch.manual_seed(0)
        modules.append(make().double())
    fuse(modules[0])
    return modules


def run(call, x=X, module=None):
    """Return (the result, what became of x, the gradients of x and of the parameters)."""
    torch.manual_seed(7)
    leaves = {**dict((call if module is None else module).named_parameters()), "x": x.clone().requires_grad_()}
    given = leaves["x"] * 1.0
    found = call(given)
    trained = [y for y in tree_flatten(found)[0] if isinstance(y, torch.Tensor) and y.requires_grad]
    for leaf in leaves.values():
        leaf.grad = None
    if trained:
        sum(y.square().sum() for y in trained).backward()
    return found, given, {name: leaves[name].grad for name in sorted(leaves)}


def assert_same(actual, expected, tolerance=1e-12):
    (actual, as_actual), (expected, as_expected) = tree_flatten(actual), tree_flatten(expected)
    assert as_actual == as_expected
    for a, b in zip(actual, expected, strict=True):
        assert type(a) is type(b)
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
            assert a.requires_grad == b.requires_grad
        else:
            assert a == b


def check(module, stock, x=X):
    assert_same(run(module, x), run(stock, x))


def outcome(call):
    """Return the result, or what is raised."""
    torch.manual_seed(7)
    try:
        return call()
    except Exception as error:
        return type(error).__name__, str(error)


def assert_as_stock(module, stock, call=lambda m: m(X.clone())):
    """Assert the same result or the same error."""
    assert_same(outcome(lambda: call(module)), outcome(lambda: call(stock)))


def hook(module):
    """Hook the layers: they have to be called then, so that the original expression runs."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            child.register_forward_hook(lambda *args: None)


def in_a_process(code, *args):
    """Return the stdout of Python code, run in a process of its own with the tests' modules on its path."""
    code = f"import sys; sys.path.insert(0, {str(Path(blocks.__file__).parent)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
