"""What the tests of modules share."""

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
