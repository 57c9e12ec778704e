"""The operators as torch.compile, torch.export and opcheck see them."""

import threading

import pytest
import torch

import epilogue
from epilogue import autograd  # noqa: F401  registers the operators
from epilogue.applied import Needs
from epilogue.nn import FusedGatedMLP, FusedGLU, FusedLinear, FusedMLP

NONE = (None,) * 3


def tensor(*shape, device, dtype=torch.float32):
    return torch.randn(shape, device=device).to(dtype).requires_grad_()


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("form", ["linear", "packed", "pair", "learned", "two learned", "output"])
def test_opcheck_linear(form, save, device):
    x, weight, bias = tensor(2, 6, 8, device=device), tensor(12, 8, device=device), tensor(12, device=device)
    up = [tensor(12, 8, device=device), bias, tensor(12, device=device)]
    arguments = {
        "linear": (x, weight, None, bias, *NONE[:3], "gelu", [], [], False),
        "output": (x, weight, None, bias, *NONE[:3], "leaky_relu", [0.1], [], False),
        "packed": (x, weight, None, bias, *NONE[:3], "silu", [], [], True),
        "pair": (x, weight, *up, *NONE[:2], "maxout", [], [], True),
        "learned": (x, weight, *NONE, tensor(12, device=device), None, "prelu", [0.0], [0], False),
        "two learned": (
            x,
            weight,
            *NONE,
            tensor(2, 12, device=device),
            None,
            "xielu",
            [0.0, 0.0, 0.5, -1e-6],
            [0, 1],
            False,
        ),
    }[form]
    keep = ("output" if form == "output" else "input") if save else "nothing"
    torch.library.opcheck(torch.ops.epilogue.linear_fwd.default, (*arguments, 0.0, keep, "triton"))


@pytest.mark.parametrize("needs", [Needs(True, True, True, True), Needs(), Needs(dz=False, dbias=True)])
@pytest.mark.parametrize("gated", [False, True])
def test_opcheck_linear_backward(gated, needs, device):
    dy, saved, beta = (
        t.detach() for t in (tensor(6, 8, device=device), tensor(6, 8 << gated, device=device), tensor(device=device))
    )
    torch.library.opcheck(
        torch.ops.epilogue.linear_bwd.default,
        (dy, saved, beta, "swish", [0.0], [0], gated, 0.0, "input", "triton", *needs),
    )


@pytest.mark.parametrize("keep", ["nothing", "input", "output", "sign"])
@pytest.mark.parametrize("form", ["plain", "pair", "packed"])
def test_opcheck_mlp(form, keep, device):
    def draw(*shape):
        return tensor(*shape, device=device)

    x, seed = draw(2, 6, 8), torch.tensor([5], device=device)
    layer = {
        "plain": (draw(12, 8), None, draw(12), None, None),
        "pair": (draw(12, 8), draw(12, 8), draw(12), draw(12), None),
        "packed": (draw(24, 8), None, None, None, draw()),
    }[form]
    call = {
        "plain": ("leaky_relu", [0.1], [], False),
        "pair": ("silu", [], [], True),
        "packed": ("swish", [0.0], [0], True),
    }
    down = (draw(4, 12).requires_grad_(keep != "sign"), draw(4))
    kept = keep if form == "plain" or keep in ("nothing", "input") else "input"
    arguments = (x, *layer, *down, seed, *call[form], 0.25, kept, "triton")
    torch.library.opcheck(torch.ops.epilogue.mlp_fwd.default, arguments)


@pytest.mark.parametrize("needs", [Needs(True, True, True, True), Needs(), Needs(h=True, dparam=True)])
@pytest.mark.parametrize("gated", [False, True])
def test_opcheck_dact(gated, needs, device):
    shapes = (6, 4), (4, 8), (6, 8 << gated), ()
    dy, down, saved, beta = (tensor(*shape, device=device).detach() for shape in shapes)
    seed = torch.tensor([5], device=device)
    arguments = (dy, down, saved, beta, seed, "swish", [0.0], [0], gated, 0.25, "input", "triton", *needs)
    torch.library.opcheck(torch.ops.epilogue.linear_dact.default, arguments)


@pytest.mark.parametrize(
    "module",
    [
        FusedLinear(8, 16, activation="tanh"),
        FusedLinear(8, 16, activation=torch.nn.PReLU(16)),
        FusedGLU(8, 16),
        FusedMLP(8, 16),
        FusedMLP(8, 16, activation="relu"),
        FusedMLP(8, 16, activation=torch.nn.PReLU(16), recompute=True),
        FusedGatedMLP(8, 16),
        FusedMLP(
            8, 16, activation="xielu", **{name: torch.nn.Parameter(torch.ones(16)) for name in ("alpha_p", "alpha_n")}
        ),
        FusedGatedMLP(8, 16, bias=True, recompute=True),
    ],
    ids=repr,
)
def test_compile_fullgraph_with_dynamic_batch(module, device):
    module = module.to(device)
    torch._dynamo.reset()
    graphs, first = [], None

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for rows in (3, 5, 9):
        x = tensor(rows, 8, device=device)
        results = []
        for function in (module, compiled):
            y = function(x)
            results.append([y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])])
        for actual, expected in zip(*results[::-1], strict=True):
            torch.testing.assert_close(actual, expected)
        first = first or len(graphs)  # Dynamo may restart its analysis within the first call
    assert len(graphs) == first, "one graph serves every batch size"
    assert any("epilogue" in str(node.target) for node in graphs[-1].graph.nodes)


def test_a_choice_of_the_backend_is_guarded_on(device):
    """Each choice is compiled once and found again, in every thread; within the compiled function too."""
    torch._dynamo.reset()
    graphs, ran, x, weight = [], [], tensor(4, 8, device=device), tensor(16, 8, device=device)

    def backend(graph, inputs):
        fused = any("epilogue" in str(node.target) for node in graph.graph.nodes)
        graphs.append(fused)
        return lambda *args: ran.append(fused) or graph(*args)

    layer = torch.compile(lambda x: epilogue.linear(x, weight), fullgraph=True, backend=backend)

    def choosing(x):
        with epilogue.backend("eager"):
            y = epilogue.linear(x, weight)
        return y + epilogue.linear(x, weight)

    for _ in range(2):
        layer(x)
        with epilogue.backend("eager"):
            layer(x)
            thread = threading.Thread(target=layer, args=(x,))  # which begins without a choice
            thread.start()
            thread.join()
            with epilogue.backend("triton"):
                layer(x)
        layer(x)
    assert ran == [True, False, True, True, True] * 2
    assert graphs == [True, False, True]
    found = torch.compile(choosing, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, choosing(x))
    assert epilogue.backends.chosen() is None


@pytest.mark.parametrize("kind", [FusedMLP, FusedGatedMLP])
def test_compiled_dropout(kind, device):
    """A compiled step draws anew at each call, and its backward draws what its forward drew: h is linear in what it keeps."""
    torch._dynamo.reset()
    module = kind(8, 64, activation="silu", bias=False, dropout=0.5).to(device)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = tensor(16, 8, device=device)
    y = compiled(x)
    (ddown,) = torch.autograd.grad(y, module.down.weight, y.detach(), retain_graph=True)
    # Σ y ⊙ (h W₂ᵀ) = Σ W₂ ⊙ (yᵀ h), with forward's h on the left and backward's on the right
    torch.testing.assert_close((y * y).sum(), (ddown * module.down.weight).sum(), rtol=1e-4, atol=1e-4)
    assert not torch.equal(compiled(x), y)
    torch.testing.assert_close(compiled.eval()(x), module.eval()(x))


@pytest.mark.parametrize("kind", [FusedGLU, FusedMLP])
def test_export(kind, device):
    module = kind(8, 16).to(device)
    x = torch.randn(4, 8, device=device)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(module, (x,), dynamic_shapes={"input": {0: batch}})
    assert any("epilogue" in str(node.target) for node in program.graph.nodes)
    larger = torch.randn(7, 8, device=device)
    torch.testing.assert_close(program.module()(larger), module(larger))


def test_autocast_compiles(device):
    torch._dynamo.reset()
    weight, x = tensor(16, 8, device=device), tensor(4, 8, device=device)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(x, weight):
        with torch.autocast(x.device.type, torch.bfloat16):
            return epilogue.linear(x, weight, None, "gelu")

    y = function(x, weight)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert weight.grad.dtype == torch.float32
