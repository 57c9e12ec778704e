"""The kernels run on a GPU, or on the CPU in Triton's interpreter (TRITON_INTERPRET=1); compiling for a GPU needs that switch off."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from epilogue.triton import INTERPRET, interpreter_refusal

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic mode wants it
torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN, so that what a kernel leaves unwritten shows

COMPILED = {"test_explained.py", "test_launches.py", "test_offline.py"}
WITHOUT_KERNELS = {"test_dispatch.py", "test_own_formulas.py"}
if INTERPRET:
    collect_ignore = [*COMPILED]
elif not torch.cuda.is_available():
    collect_ignore = [*({path.name for path in Path(__file__).parent.glob("test_*.py")} - COMPILED - WITHOUT_KERNELS)]


def patched_once(patch):
    """Triton's interpreter puts its own functions into triton.language at a launch, and looks through all of it again at every call of a
    jitted function within: a third of these tests' time, for nothing."""
    import triton.language as tl

    def patch_lang(fn):
        languages = [value for value in fn.__globals__.values() if value is tl or value is tl.core]
        return patch(fn) if any(tl.core.is_builtin(language.load) for language in languages) else None

    return patch_lang


if INTERPRET and interpreter_refusal() is None:
    from triton.runtime import interpreter

    interpreter._patch_lang = patched_once(interpreter._patch_lang)


@pytest.fixture(autouse=True)
def chosen(request, monkeypatch):
    """The tests of kernels run the fused ones whatever would be faster here; those of the parameter kernel="unfused" the others."""
    if find_spec("triton") is None:
        return
    from epilogue.triton import dact, linear
    from epilogue.triton.plan.configs import Config
    from epilogue.triton.plan.dispatch import candidates

    unfused = hasattr(request.node, "callspec") and request.node.callspec.params.get("kernel") == "unfused"

    def choose(problem, chip):
        return (
            "unfused" if unfused else next(c.choice for c in candidates(problem, chip) if isinstance(c.choice, Config))
        )

    for module in (linear, dact):
        monkeypatch.setattr(module, "choose", choose)


def pytest_collection_modifyitems(items):
    """The interpreter computes with NumPy, which warns where IEEE arithmetic just goes on to inf or NaN; with some it does not work."""
    refusal = interpreter_refusal() if INTERPRET else None
    for item in items:
        if "kernels/triton" in item.path.as_posix():
            if refusal:
                item.add_marker(pytest.mark.skip(reason=refusal))
            item.add_marker(pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"))
