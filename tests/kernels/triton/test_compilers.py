"""The operators as torch.compile, torch.export and opcheck see them."""

import pytest
import torch

import epilogue
from epilogue.nn import FusedGLU, FusedLinear, FusedMLP
from epilogue.triton import autograd  # noqa: F401  registers the operators

NONE = (None,) * 3


def tensor(*shape, device, dtype=torch.float32):
    return torch.randn(shape, device=device).to(dtype).requires_grad_()


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("form", ["linear", "packed", "pair", "learned", "output"])
def test_opcheck_forward(form, save, device):
    x, weight, bias = tensor(2, 6, 8, device=device), tensor(12, 8, device=device), tensor(12, device=device)
    up = [tensor(12, 8, device=device), bias, tensor(12, device=device)]
    arguments = {
        "linear": (x, weight, None, bias, None, None, "gelu", [], -1, False),
        "output": (x, weight, None, bias, None, None, "leaky_relu", [0.1], -1, False),
        "packed": (x, weight, None, bias, None, None, "silu", [], -1, True),
        "pair": (x, weight, *up, None, "maxout", [], -1, True),
        "learned": (x, weight, *NONE, tensor(12, device=device), "prelu", [0.0], 0, False),
    }[form]
    torch.library.opcheck(torch.ops.epilogue.linear_fwd.default, (*arguments, save))


@pytest.mark.parametrize("needs", [[True, True, True], [True, False, False], [False, True, False]])
@pytest.mark.parametrize("gated", [False, True])
def test_opcheck_backward(gated, needs, device):
    dy, saved, beta = (
        t.detach() for t in (tensor(6, 8, device=device), tensor(6, 8 << gated, device=device), tensor(device=device))
    )
    torch.library.opcheck(torch.ops.epilogue.linear_bwd.default, (dy, saved, beta, "swish", [0.0], 0, gated, needs))


@pytest.mark.parametrize(
    "module",
    [
        FusedLinear(8, 16, activation="tanh"),
        FusedLinear(8, 16, activation=torch.nn.PReLU(16)),
        FusedGLU(8, 16),
        FusedMLP(8, 16, dropout=0.0),
    ],
    ids=lambda module: type(module).__name__,
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


def test_export(device):
    module = FusedGLU(8, 16).to(device)
    x = torch.randn(4, 8, device=device)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(module, (x,), dynamic_shapes={"x": {0: batch}})
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
