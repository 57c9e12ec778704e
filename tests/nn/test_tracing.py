"""The modules under tracers and on nested tensors, as torch's own layers are."""

import pickle

import pytest
import torch
from torch import nn

import epilogue
from epilogue.nn import FusedGatedMLP, FusedGLU, FusedLinear, FusedMLP

KINDS = (FusedLinear, FusedGLU, FusedMLP, FusedGatedMLP)


@pytest.fixture(params=KINDS)
def module(request, device):
    return request.param(8, 16, device=device).eval()


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch's own making
@pytest.mark.parametrize("strict", [False, True])
def test_export_names_the_input_as_torchs_layers_do(module, strict, device):
    shapes = {"input": {0: torch.export.Dim("rows")}}
    program = torch.export.export(module, (torch.randn(4, 8, device=device),), dynamic_shapes=shapes, strict=strict)
    another = torch.randn(7, 8, device=device)
    torch.testing.assert_close(program.module()(another), module(input=another))


def test_fx_records_a_call(module, device):
    graph = torch.fx.symbolic_trace(module)
    x = torch.randn(4, 8, device=device)
    torch.testing.assert_close(graph(x), module(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(graph))(x), module(x))


@pytest.mark.parametrize("activation", [nn.PReLU(), nn.LeakyReLU(0.2), "swiglu", epilogue.ACTIVATIONS["mish"]])
def test_fx_records_the_activation_and_its_parameters(activation, device):
    kind = FusedGLU if activation == "swiglu" else FusedLinear
    module = kind(8, 16, activation=activation, device=device)
    graph = torch.fx.symbolic_trace(module)
    operation = epilogue.glu if activation == "swiglu" else epilogue.linear
    assert [node.target for node in graph.graph.nodes if node.op == "call_function"] == [operation]
    x = torch.randn(4, 8, device=device)
    torch.testing.assert_close(graph(x), module(x))


def test_a_class_of_activations_is_traced(device):
    """nn.GELU in place of nn.GELU()."""
    x, weight = torch.randn(4, 8, device=device), torch.randn(8, 8, device=device)
    compiled = torch.compile(
        lambda x: epilogue.linear(x, weight, activation=nn.LeakyReLU), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(x), epilogue.linear(x, weight, activation="leaky_relu"))
    module = FusedMLP(8, 8, activation=nn.PReLU, device=device)
    assert isinstance(module.slope, nn.Parameter)
    assert torch.fx.symbolic_trace(module)(x).shape == x.shape


def test_fx_records_the_mlps_operations(device):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(8, 16))

        def forward(self, x):
            h = epilogue.mlp(x, self.up, self.down, activation="gelu", dropout_p=0.5, training=False)
            return epilogue.gated_mlp(h, self.up, self.up, self.down, activation=nn.SiLU())

    block = Block().to(device)
    graph = torch.fx.symbolic_trace(block)
    functions = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert functions == [epilogue.mlp, epilogue.gated_mlp]
    x = torch.randn(4, 8, device=device)
    torch.testing.assert_close(graph(x), block(x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize("kind", KINDS)
def test_nested_tensors(kind, layout, device):
    activation = "relu" if kind in (FusedLinear, FusedMLP) else "tanh"  # what nested tensors have in either layout
    module = kind(8, 16, activation=activation, device=device)
    rows = [torch.randn(n, 8, device=device) for n in (2, 5)]
    y = module(torch.nested.nested_tensor(rows, layout=layout))
    for actual, x in zip(y.unbind(), rows, strict=True):
        torch.testing.assert_close(actual, module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("kind", [FusedMLP, FusedGatedMLP])
def test_nested_tensors_have_nothing_to_recompute(kind, device):
    module = kind(8, 16, activation="relu", recompute=True, device=device)
    x = torch.nested.nested_tensor([torch.randn(n, 8, device=device) for n in (2, 5)])
    torch.nested.to_padded_tensor(module(x), 0.0).sum().backward()
    assert module.up.weight.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_nested_tensor_that_does_not_fit_is_refused(device):
    x = torch.nested.nested_tensor([torch.randn(2, 8, device=device), torch.randn(3, 8, device=device)])
    with pytest.raises(ValueError, match=r"x \[2, '\*', 8\] and weight \[16, 9\]"):
        epilogue.linear(x, torch.randn(16, 9, device=device))
