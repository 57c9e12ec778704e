"""The operations under autocast, checkpointing, torch.compile, torch.export and torch.func."""

import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import epilogue
from checks import OPS, arguments, assert_accurate, each, fused, leaves, op_cases, unfused
from epilogue import ACTIVATIONS

NAMES = {
    "linear": "gelu", "glu": "silu", "glu packed": "mish", "mlp": "relu", "gated_mlp": "gelu_tanh", "gated_mlp packed": "silu",
}  # fmt: skip


def tensors(args, device, dtype=torch.float32):
    return each(lambda array: torch.tensor(array, dtype=dtype, device=device, requires_grad=True), args)


def gradients(y, args):
    return torch.autograd.grad(y.float().square().sum(), leaves(args))


@pytest.mark.parametrize(("op", "entry", "values"), op_cases(every=False))
def test_autocast_gives_what_nn_linear_gives(op, entry, values, device, rng):
    args = tensors(arguments(op, rng, (9,), (16, 24, 8)), device)
    if entry.learnable:
        values = (torch.full((24,), values[0], device=device, requires_grad=True), *values[1:])
    with torch.autocast(device, torch.bfloat16):
        y, expected = fused(op, args, entry, values), unfused(op, args, entry, values)
        assert y.dtype == nn.functional.linear(args["x"], leaves(args)[1]).dtype == torch.bfloat16
    exact, learned = each(lambda tensor: tensor.detach().double(), (args, values[: bool(entry.learnable)]))
    assert_accurate(y, expected.bfloat16(), unfused(op, exact, entry, (*learned, *values[len(learned) :])))
    assert [gradient.dtype for gradient in gradients(y, args)] == [torch.float32] * len(leaves(args))


@pytest.mark.parametrize("op", OPS)
def test_autocast_takes_mixed_dtypes(op, device, rng):
    args = tensors(arguments(op, rng), device)
    with torch.autocast(device, torch.bfloat16):
        y = fused(op, {**args, "x": args["x"].bfloat16()}, ACTIVATIONS["softplus"], (1.0, 20.0))
        torch.testing.assert_close(y, fused(op, args, ACTIVATIONS["softplus"], (1.0, 20.0)))
    with torch.autocast(device, torch.bfloat16), torch.autocast(device, enabled=False):
        assert fused(op, args, ACTIVATIONS["silu"]).dtype == torch.float32


@pytest.mark.parametrize("op", OPS)
def test_checkpointing_changes_nothing(op, device, rng):
    args, entry = tensors(arguments(op, rng), device), ACTIVATIONS["silu"]
    dropout = {"dropout_p": 0.5, "training": True} if "mlp" in op else {}

    def run(call):
        torch.manual_seed(1)
        y = call(lambda x: fused(op, {**args, "x": x}, entry, **dropout))
        return y, *gradients(y, args)

    plain = run(lambda layer: layer(args["x"]))
    again = run(lambda layer: checkpoint(layer, args["x"], use_reentrant=False))
    for actual, expected in zip(again, plain, strict=True):
        assert torch.equal(actual, expected)


def check_compiled(op, device, rng, backend):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    entry = ACTIVATIONS[NAMES[op]]
    compiled = torch.compile(lambda args: fused(op, args, entry), fullgraph=True, dynamic=True, backend=backend)
    for rows in (4, 7, 12):
        args = tensors(arguments(op, rng, (rows,)), device)
        y, expected = compiled(args), fused(op, args, entry)
        torch.testing.assert_close(y, expected)
        for actual, of in zip(gradients(y, args), gradients(expected, args), strict=True):
            torch.testing.assert_close(actual, of)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("op", OPS)
def test_compiles_in_one_graph_for_any_batch(op, device, rng):
    check_compiled(op, device, rng, "aot_eager")


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_compiles_with_inductor(device, rng):
    check_compiled("linear", device, rng, "inductor")


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_inductors_softshrink_drops_nan():
    """As the table of activations.py says: a compiled layer on the CPU is what torch makes of it."""
    torch._dynamo.reset()
    x, identity = torch.full((3, 3), torch.nan), torch.eye(3)
    compiled = torch.compile(lambda x: epilogue.linear(x, identity, activation="softshrink"), fullgraph=True)
    assert not compiled(x).any()
    assert epilogue.linear(x, identity, activation="softshrink").isnan().all()
    torch._dynamo.reset()


def test_compiles_with_a_learnable_parameter(device, rng):
    torch._dynamo.reset()
    args = tensors({**arguments("linear", rng), "slope": rng.standard_normal(6)}, device)
    compiled = torch.compile(
        lambda args: epilogue.linear(**args, activation="prelu"), fullgraph=True, backend="aot_eager"
    )
    for actual, expected in zip(
        gradients(compiled(args), args), gradients(epilogue.linear(**args, activation="prelu"), args), strict=True
    ):
        torch.testing.assert_close(actual, expected)
    torch._dynamo.reset()


class Layer(nn.Module):
    def __init__(self, op, args):
        super().__init__()
        self.op, self.args = op, args

    def forward(self, x):
        return fused(self.op, {**self.args, "x": x}, ACTIVATIONS[NAMES[self.op]])


@pytest.mark.parametrize("op", OPS)
def test_exports_for_any_batch(op, device, rng):
    args = each(torch.Tensor.detach, tensors(arguments(op, rng), device))
    layer = Layer(op, args)
    program = torch.export.export(layer, (args["x"],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for rows in (3, 11):
        x = torch.randn(rows, 5, device=device)
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("op", OPS)
def test_per_sample_gradients_by_torch_func(op, device, rng):
    args = each(torch.Tensor.detach, tensors(arguments(op, rng), device, torch.float64))
    entry = ACTIVATIONS[NAMES[op]]

    def loss(layer, x):
        return layer(op, {**args, "x": x}, entry).square().sum()

    def weight_loss(layer, weights, x):
        return layer(op, {**args, **weights, "x": x}, entry).square().sum()

    weights = {name: value for name, value in args.items() if "weight" in name and value is not None}
    for function, inputs, dims in (
        (loss, (args["x"],), (None, 0)),
        (weight_loss, (weights, args["x"]), (None, None, 0)),
    ):
        actual, expected = (
            torch.func.vmap(torch.func.grad(function, argnums=1), in_dims=dims)(layer, *inputs)
            for layer in (fused, unfused)
        )
        for one, of in zip(leaves(actual), leaves(expected), strict=True):
            assert one.shape[0] == 7
            torch.testing.assert_close(one, of)


@pytest.mark.parametrize("op", ["mlp", "gated_mlp"])
def test_recompute_steps_aside_for_torch_func(op, device, rng):
    args = each(torch.Tensor.detach, tensors(arguments(op, rng), device))
    entry = ACTIVATIONS["silu"]
    gradients = [
        torch.func.grad(lambda x, r=recompute: fused(op, {**args, "x": x}, entry, recompute=r).sum())(args["x"])
        for recompute in (False, True)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("op", OPS)
def test_ensembles_and_forward_mode_by_torch_func(op, device, rng):
    args = each(torch.Tensor.detach, tensors(arguments(op, rng), device, torch.float64))
    entry = ACTIVATIONS[NAMES[op]]
    given = {name: value for name, value in args.items() if value is not None}
    ensemble = each(lambda t: torch.stack([t, 2 * t, -t]), given)
    y = torch.func.vmap(lambda given: fused(op, {**args, **given}, entry))(ensemble)
    for i, scale in enumerate((1, 2, -1)):
        torch.testing.assert_close(y[i], unfused(op, each(lambda t, scale=scale: scale * t, args), entry))
    x, tangent = args["x"], torch.randn_like(args["x"])
    actual, expected = (
        torch.func.jvp(lambda x, layer=layer: layer(op, {**args, "x": x}, entry), (x,), (tangent,))
        for layer in (fused, unfused)
    )
    torch.testing.assert_close(actual, expected)


FIRST_CALLS = {
    "gated module": "compiled(epilogue.nn.FusedGLU(8, 6))(x)",
    "gated name": "compiled(lambda x: epilogue.glu(x, w, None, 'swiglu'))(x)",
    "function": "compiled(lambda x: epilogue.linear(x, w, None, F.silu))(x)",
    "partial": "compiled(lambda x: epilogue.linear(x, w, None, partial(F.gelu, approximate='tanh')))(x)",
}


@pytest.mark.parametrize("call", FIRST_CALLS)
def test_compiles_as_the_first_thing_in_a_process(call):
    """Nothing is warm: what a first call would have set up must not be needed by the trace."""
    code = f"""
import torch, torch.nn.functional as F, epilogue
from functools import partial
x, w, graphs = torch.randn(4, 8), torch.randn(6, 8), []
backend = lambda graph, inputs: graphs.append(graph) or graph.forward
compiled = lambda f: torch.compile(f, fullgraph=True, backend=backend)
{FIRST_CALLS[call]}
assert len(graphs) == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
