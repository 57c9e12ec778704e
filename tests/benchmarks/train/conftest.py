import sys

import pytest


@pytest.fixture(autouse=True)
def _modules_are_whole():
    """Loads what importlib's LazyLoader has put off: CuPy 14 leaves two such modules.

    Dynamo walks through sys.modules for `epilogue.checks.is_cupy`, so that they would load, and the walk break, in the midst of it.
    """
    for module in [*sys.modules.values()]:
        getattr(module, "__class__", None)
