"""Fixtures of the tests of modules."""

import gc

import pytest

from epilogue.nn.surgery import sites


@pytest.fixture
def counted(monkeypatch):
    """The fused operations that ran."""
    names = []
    for name in ("linear", "glu", "mlp", "gated_mlp"):
        operation = getattr(sites, name)

        def run(*args, name=name, operation=operation, **kwargs):
            names.append(name)
            return operation(*args, **kwargs)

        monkeypatch.setattr(sites, name, run)
    return names


@pytest.fixture
def collect():
    """gc.collect, for what the test makes: everything older is not looked at, which takes most of the time."""
    gc.freeze()
    yield gc.collect
    gc.unfreeze()
