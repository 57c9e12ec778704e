"""What the tests of modules share."""

import pytest

from epilogue.nn import fused


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
