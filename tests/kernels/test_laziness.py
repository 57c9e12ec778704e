"""Importing epilogue imports nothing heavy, and it works where Triton and CuPy are not installed."""

import os
import subprocess
import sys
import textwrap

import pytest


def python(code, folder):
    """Run in a process of its own, away from the root, whose folder `kernels` would hide others' packages."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_and_numpy_need_numpy_alone(tmp_path):
    python(
        """
        import sys
        for name in ("torch", "triton", "cupy", "ml_dtypes"):
            sys.modules[name] = None
        import numpy as np
        import epilogue
        x, w = np.ones((2, 3)), np.ones((4, 3))
        assert epilogue.linear(x, w, activation="relu").tolist() == [[3.0] * 4] * 2
        assert epilogue.linear_backward(np.ones((2, 4)), x, w, activation="relu").x.tolist() == [[4.0] * 3] * 2
        assert epilogue.glu(x, w, activation="bilinear").tolist() == [[9.0] * 2] * 2
        assert epilogue.resolve("gelu_new")[0].name == "gelu_tanh"
        """,
        tmp_path,
    )


def test_import_brings_nothing_heavy(tmp_path):
    python(
        """
        import sys
        import epilogue
        import numpy as np
        epilogue.mlp(np.ones((2, 3)), np.ones((4, 3)), np.ones((3, 4)))
        heavy = {"torch", "triton", "cupy", "scipy", "matplotlib", "epilogue.nn", "epilogue.triton", "epilogue.eager"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        """,
        tmp_path,
    )


def test_dir_is_the_public_face_and_imports_nothing(tmp_path):
    python(
        """
        import sys
        import epilogue
        assert {*dir(epilogue)} == {*epilogue.__all__, "__version__", "fuse", "nn", "unfuse"}
        assert "torch" not in sys.modules
        assert epilogue.fuse is epilogue.nn.fuse and epilogue.unfuse is epilogue.nn.unfuse
        assert all(hasattr(epilogue, name) for name in dir(epilogue))
        """,
        tmp_path,
    )


def test_torch_on_the_cpu_works_without_triton_and_cupy(tmp_path):
    python(
        """
        import sys
        sys.modules["triton"] = sys.modules["cupy"] = None
        import torch
        import epilogue
        x = torch.ones(2, 4, requires_grad=True)
        y = epilogue.linear(x, torch.ones(4, 4), activation="relu")
        y.sum().backward()
        assert y.tolist() == [[4.0] * 4] * 2 and x.grad.tolist() == [[4.0] * 4] * 2
        block = epilogue.nn.FusedGatedMLP(4, 8)
        block(x).sum().backward()
        assert block.gate.weight.grad.abs().sum() > 0
        assert "epilogue.autograd" not in sys.modules  # the kernels themselves
        assert epilogue.linear(x.to("meta"), torch.ones(3, 4, device="meta")).shape == (2, 3)
        """,
        tmp_path,
    )


@pytest.mark.parametrize("statement", ["import epilogue; epilogue.nn", "from epilogue import nn"])
def test_nn_comes_when_it_is_asked_for(statement, tmp_path):
    python(
        f"{statement}\nimport sys\nassert sys.modules['epilogue.nn'].FusedLinear and 'torch' in sys.modules", tmp_path
    )


def test_cupy_arrays_need_no_torch(tmp_path):
    """The whole way of an array without torch; on a machine without a GPU up to the first launch."""
    python(
        """
        import sys
        sys.modules["torch"] = sys.modules["triton"] = None
        import numpy as np
        class ndarray(np.ndarray):
            device = __import__("contextlib").nullcontext(0)
        cupy = sys.modules["cupy"] = type(sys)("cupy")
        cupy.ndarray = ndarray
        import epilogue
        x = np.ones((2, 3)).view(ndarray)
        assert type(epilogue.linear(x, x, activation="identity")) is ndarray
        assert "epilogue.cupy.arrays" in sys.modules
        cupy.RawModule = lambda code, options: sys.exit(0 if "act_fwd" in code else 1)
        cupy.empty = np.empty
        epilogue.linear(x, x, activation="relu")
        raise AssertionError("no kernel was wanted")
        """,
        tmp_path,
    )


@pytest.mark.parametrize("name", ["cupi", "numpy"])
def test_the_environment_names_a_backend(name, tmp_path):
    """Said where a tensor's backend is chosen, not on import: `epilogue doctor` must start."""
    python(
        f"""
        import os
        os.environ["EPILOGUE_BACKEND"] = {name!r}
        import torch
        import epilogue
        x = torch.empty(1, 1)
        with epilogue.backend("eager"):
            assert epilogue.backends.serving(x, x)[0] == "eager"
        try:
            epilogue.backends.serving(x, x)
        except ValueError as error:
            assert str(error) == "EPILOGUE_BACKEND must be one of triton, cupy, eager; got {name!r}"
        else:
            raise AssertionError
        """,
        tmp_path,
    )


def test_the_environment_chooses(tmp_path):
    python(
        """
        import os, sys
        os.environ["EPILOGUE_BACKEND"] = "eager"
        import torch
        import epilogue
        x = torch.empty(1, 1)
        assert epilogue.backends.serving(x, x) == ("eager", "eager was chosen")
        assert not {"cupy", "triton", "epilogue.cupy"} & set(sys.modules)
        """,
        tmp_path,
    )
