"""`epilogue.explain`: what it says and what it refuses."""

import re

import pytest
import torch

import epilogue
from epilogue import backends
from epilogue.cupy import tensors
from epilogue.triton.plan.chips import CHIPS
from epilogue.triton.plan.configs import Config, shared_bytes
from epilogue.triton.plan.problem import DACT, DROPPED, GLU, LINEAR


@pytest.mark.parametrize("gpu", CHIPS)
def test_a_gpu_by_its_name(gpu):
    """In capitals or not, spaces left out or not."""
    spellings = gpu, gpu.lower(), gpu.replace(" ", ""), gpu.replace(" ", "-").upper()
    first, *others = [epilogue.explain("mlp", 512, 256, 1024, training=True, gpu=spelled) for spelled in spellings]
    assert first.gpu == CHIPS[gpu].name
    for step in first.steps:  # the chips with the least shared memory have tiles too
        fused = [candidate.choice for candidate in step.candidates if isinstance(candidate.choice, Config)]
        assert fused
        assert all(shared_bytes(c, step.problem.family, 2) <= CHIPS[gpu].shared_bytes for c in fused)
    assert others == [first] * 3


@pytest.mark.parametrize("gpu", ["TPU", "", "RTX", 4090])
def test_an_unknown_gpu_lists_the_known(gpu):
    with pytest.raises(ValueError, match=f"gpu must be one of {', '.join(CHIPS)}; got {gpu!r}"):
        epilogue.explain("linear", 8, 64, 64, gpu=gpu)


def test_the_gpus_that_the_docstring_names_are_the_known_ones():
    named = re.search(r"gpu: (.*?) by their data sheets", epilogue.explain.__doc__, re.DOTALL)
    assert re.findall(r'"(.+?)"', named[1]) == list(CHIPS)


def test_a_line_for_each_way():
    found = epilogue.explain("linear", 8192, 4096, 14336, gpu="H200")
    lines = str(found).splitlines()
    assert lines[0] == "linear, 8192 x 4096 -> 14336, gelu, bfloat16, inference on NVIDIA H200"
    assert lines[1].startswith("  forward: fused, tiles 128x128x64 by descriptors, ")
    assert lines[1].endswith(" us predicted, taken")
    assert any("cuBLAS and a pointwise kernel" in line and line.endswith("times that") for line in lines[2:])
    (step,) = found.steps
    times = [candidate.microseconds for candidate in step.candidates]
    assert times == sorted(times)
    assert len(lines) == 1 + len(times)


def test_the_products_of_each_operation():
    def families(op, **options):
        steps = epilogue.explain(op, 512, 256, 1024, gpu="A100", **options).steps
        return [(step.name, step.problem.family, step.problem.keeps) for step in steps]

    assert families("linear") == [("forward", LINEAR, False)]
    assert families("linear", training=True) == [("forward", LINEAR, True)]
    assert families("linear", training=True, activation="relu") == [("forward", LINEAR, False)]  # y is enough
    assert families("glu", training=True) == [("forward", GLU, True)]
    assert families("mlp", training=True) == [("forward", LINEAR, True), ("backward", DACT, True)]
    assert families("gated_mlp") == [("forward", GLU, False)]
    training = families("gated_mlp", training=True, dropout=True, activation="geglu")
    assert training == [("forward", GLU, True), ("backward", DROPPED, True)]


def test_sizes_and_alignment():
    step = epilogue.explain("gated_mlp", 7, 24, 40, gpu="H100").steps[0]
    problem = step.problem
    assert (problem.m, problem.k, problem.n, problem.tma, problem.activation) == (7, 24, 40, True, "silu")
    assert not epilogue.explain("linear", 7, 25, 40, gpu="H100").steps[0].problem.tma
    assert not epilogue.explain("linear", 7, 24, 40, gpu="A100").steps[0].problem.tma
    assert not epilogue.explain("linear", 7, 24, 40, gpu="H100", dtype=torch.float32).steps[0].problem.tma
    assert "gated_mlp, 7 x 24 -> 40 -> 24" in str(epilogue.explain("gated_mlp", 7, 24, 40, gpu="H100"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"op": "conv"}, "op must be one of linear, glu, mlp, gated_mlp; got 'conv'"),
        ({"m": 0}, "whole numbers of at least 1; got 0, 64, 64"),
        ({"n": 2.5}, "whole numbers"),
        ({"activation": "gleu"}, "Did you mean"),
        ({"dtype": "float64"}, "float64, which runs plain torch operations"),
        ({"dtype": "floaty"}, "dtype must be one of float16, bfloat16, float32; got 'floaty'"),
        ({"activation": "threshold"}, "threshold"),
        ({"slope": 1.0}, "slope"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        epilogue.explain(**{"op": "linear", "m": 64, "k": 64, "n": 64, "gpu": "H100", **call})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_one_is_named():
    with pytest.raises(ValueError, match='there is no GPU here; name one, such as gpu="H100"'):
        epilogue.explain("linear", 64, 64, 64)


@pytest.mark.parametrize(
    ("backend", "line"),
    [
        ("cupy", "  cuBLAS and pointwise CuPy kernels, or cuBLASLt's own epilogues: cupy was chosen"),
        ("eager", "  plain torch operations: eager was chosen"),
    ],
)
def test_the_backend_that_was_chosen(backend, line, monkeypatch):
    monkeypatch.setattr(tensors, "missing", lambda: None)
    triton = epilogue.explain("mlp", 8, 64, 128, training=True, gpu="H100")
    with epilogue.backend(backend):
        found = epilogue.explain("mlp", 8, 64, 128, training=True, gpu="H100")
    head, said = str(found).splitlines()
    assert head == "mlp, 8 x 64 -> 128 -> 64, gelu, bfloat16, training on NVIDIA H100 80GB HBM3"
    assert said == line
    assert found.steps == []
    with epilogue.backend("triton"):
        assert epilogue.explain("mlp", 8, 64, 128, training=True, gpu="H100").steps == triton.steps != []


def test_what_serves_the_gpu_that_is_here(monkeypatch):
    """The same answer as a call gets: an old GPU, or no Triton."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr(torch, "empty", lambda *size, dtype, device: (dtype, device))
    reason = "the GPU is older than compute capability 8.0"
    monkeypatch.setattr(backends, "serving", lambda x, weight: asked.append(x) or ("cupy", reason))
    found = epilogue.explain("linear", 8, 64, 128, dtype="float16")
    assert str(found) == (
        "linear, 8 x 64 -> 128, gelu, float16, inference on Tesla V100\n"
        "  cuBLAS and pointwise CuPy kernels, or cuBLASLt's own epilogues: the GPU is older than compute capability 8.0"
    )
    assert asked == [(torch.float16, "cuda")]
