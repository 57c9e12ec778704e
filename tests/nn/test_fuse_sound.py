"""`fuse` changes nothing but how an expression is computed: every other statement, branch and argument is the very same code."""

import inspect
import traceback

import pytest
import torch

from as_stock import X, assert_as_stock, assert_same, check, hook, pair
from blocks import Packed
from epilogue.nn import unfuse
from forwards import FORWARDS, GLU, MLP, Forwards, Res, closed_over, sequential


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("name", FORWARDS)
def test_a_forward_stays_the_very_same_code(name):
    module, stock = pair(FORWARDS[name])
    for _ in range(2):
        for training in (True, False):
            module.train(training), stock.train(training)
            check(module, stock)
            with torch.no_grad():
                assert_as_stock(module, stock)
        assert [vars(module).get(name) for name in ("seen", "calls")] == [
            vars(stock).get(name) for name in ("seen", "calls")
        ]
        hook(module), hook(stock)
    unfuse(module)
    check(module, stock)


def test_a_closure_is_the_same_cell():
    cls = closed_over(1)
    module, stock = pair(cls)
    before = inspect.getclosurevars(cls.forward).nonlocals["scale"]
    y, h = module(X), MLP.forward(stock, X)
    assert inspect.getclosurevars(cls.forward).nonlocals["scale"] == before + 1
    assert_same((y, stock(X)), (h * (before + 2), h * (before + 3)))


@pytest.mark.parametrize(
    "make", [Forwards.Squeezed, Forwards.Scaled, Forwards.ParentTwice, Forwards.WithAMixin, Forwards.Inherits]
)
def test_a_subclass_that_calls_super_runs_fused(make, counted):
    """Its parent's forward is the rewritten one: a squeeze, a factor and what changes later are the subclass's own."""
    module, stock = pair(make)
    counted.clear()
    check(module, stock)
    assert counted
    module.scale = stock.scale = 0.0
    check(module, stock)


@pytest.mark.parametrize("args", [(2.0,), (None,), ()])
@pytest.mark.parametrize("kwargs", [{}, {"shift": 3.0}])
def test_optional_arguments(args, kwargs):
    module, stock = pair(Forwards.Optional)
    assert_as_stock(module, stock, lambda m: m(X, *args, **kwargs))
    assert_as_stock(module, stock, lambda m: m(x=X, scale=0.5))
    assert_as_stock(module, stock, lambda m: m(X, 1.0, 2.0))  # its own error
    assert_as_stock(module, stock, lambda m: m(X, skale=1.0))


class Strict(MLP):
    def forward(self, x):
        if x.ndim == 3 and len(x) == 3:
            raise ValueError("three are too many")
        y = self.fc2(self.act(self.fc1(x)))
        assert len(y) != 7, "seven, too"
        return y


INPUTS = [
    torch.randn(3, 2, 8).double(), torch.randn(7, 8).double(), torch.randn(4, 9).double(), torch.randn(4, 8), torch.randn(8).double(),
    torch.randn(0, 8).double(), torch.randn(2, 0, 8).double(), torch.zeros(4, 8, dtype=torch.long), None, [1.0] * 8,
    torch.tensor(1.0).double(), torch.randn(4, 8, dtype=torch.complex128), torch.randn(4, 8).double().to_sparse(),
    torch.randn(4, 8, device="meta").double(), torch.randn(2, 8).double().expand(2, 2, 8), torch.randn(8, 8).double().t(),
]  # fmt: skip


@pytest.mark.parametrize("make", [Strict, MLP, Res, GLU, Packed, sequential])
def test_any_input_is_taken_or_refused_as_stock(make):
    module, stock = (m.eval() for m in pair(make))
    for x in INPUTS:
        assert_as_stock(module, stock, lambda m, x=x: m(x))


def test_tracebacks_show_the_users_lines():
    frames = []
    for module in pair(Strict):
        with pytest.raises(AssertionError) as error:
            module(torch.zeros(7, 8).double())
        frames.append([f for f in traceback.extract_tb(error.value.__traceback__) if f.filename == __file__])
    ours, theirs = ([(f.filename, f.lineno, f.name, f.line) for f in found] for found in frames)
    assert ours == theirs
