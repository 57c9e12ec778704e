"""The kernels under torch's dispatch modes, function modes, function transforms and exporters."""

import functools
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

import epilogue
from checks import cases, keywords
from epilogue import ACTIVATIONS
from epilogue.nn import FusedGatedMLP, FusedGLU, FusedLinear, FusedMLP

KINDS = (FusedLinear, FusedGLU, FusedMLP, FusedGatedMLP)
OPERATORS = [torch.ops.epilogue.linear_fwd.default, torch.ops.epilogue.mlp_fwd.default]
PRODUCTS = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]


class Unfused(nn.Module):
    """A fused module's block as people write it, over its parameters."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.act = lambda F, z: module.activation.oracle(F, z, *module.activation_params().values())

    def forward(self, x):
        m = self.module
        if isinstance(m, FusedLinear):
            return self.act(F, F.linear(x, m.weight, m.bias))
        if isinstance(m, FusedGLU):
            gate, up = F.linear(x, m.weight, m.bias).chunk(2, -1)
            return self.act(F, gate) * up
        if isinstance(m, FusedMLP):
            return m.down(self.act(F, m.up(x)))
        return m.down(self.act(F, m.gate(x)) * m.up(x))


@pytest.fixture(params=KINDS)
def blocks(request, device):
    """(the fused module, the same unfused, its input)."""
    module = request.param(16, 24, device=device)
    return module, Unfused(module), torch.randn(12, 16, device=device)


def gradients(y, module, x):
    return torch.autograd.grad(y.square().sum(), [x, *module.parameters()])


def assert_close(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["fused", "unfused"])
@pytest.mark.parametrize("saved", [OPERATORS, PRODUCTS], ids=["ours", "torch's"])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu", "gelu"])
@pytest.mark.parametrize("kind", KINDS)
def test_selective_checkpointing(kind, activation, saved, kernel, device):
    """What it saved of a product is what the product returned; and it can save ours."""
    module = kind(16, 24, activation=activation, device=device)
    x = torch.randn(12, 16, device=device, requires_grad=True)
    contexts = functools.partial(create_selective_checkpoint_contexts, saved)
    y = checkpoint(module, x, use_reentrant=False, context_fn=contexts)
    assert_close(gradients(y, module, x), gradients(Unfused(module)(x), module, x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_product_is_not_repeated(kind, device):
    module, calls = kind(16, 24, device=device), []
    x = torch.randn(12, 16, device=device, requires_grad=True)

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    contexts = functools.partial(create_selective_checkpoint_contexts, OPERATORS)
    y = checkpoint(module, x, use_reentrant=False, context_fn=contexts)
    with Counting():
        y.sum().backward()
    assert not set(calls) & set(OPERATORS)
    assert torch.ops.epilogue.linear_bwd.default in calls or torch.ops.epilogue.linear_dact.default in calls


@pytest.mark.parametrize("mode", ["dispatch", "function"])
@pytest.mark.parametrize("kernel", ["fused", "unfused"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "identity"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_a_mode_holds_is_written_to(kind, activation, kernel, mode, device):
    held = []

    def hold(func, args, kwargs):
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple) else (result,):
            if isinstance(t, torch.Tensor):
                held.append((func, t, t.detach().clone()))
        return result

    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return hold(func, args, kwargs)

    class Function(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return hold(func, args, kwargs)

    module = kind(16, 24, activation=activation, device=device)
    with Dispatch() if mode == "dispatch" else Function():
        module(torch.randn(12, 16, device=device, requires_grad=True)).square().sum().backward()
    fresh = ("empty", "new_empty", "grad", "detach", "requires_grad", "__get__", "view", "reshape", "t.")
    for func, tensor, before in held:
        if not any(word in str(func) for word in fresh):
            assert torch.equal(tensor, before) or tensor.isnan().any(), func


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_of_the_unfused_block(kind, device):
    module = kind(16, 24, device=device)
    for block in (module, Unfused(module)):
        x = torch.randn(12, 16, device=device, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            block(x).sum().backward()
        if block is module:
            counted = counter.get_total_flops()
    assert counted == counter.get_total_flops() > 0


@pytest.mark.parametrize("how", ["inference", "backward"])
def test_make_fx_records_the_kernels(blocks, how):
    module, unfused, x = blocks

    def call(x):
        x = x.detach().requires_grad_()
        y = module(x)
        return y if how == "inference" else torch.autograd.grad(y.square().sum(), [x, *module.parameters()])

    graph = make_fx(call)(x)
    assert "epilogue" in graph.code
    another = torch.randn(12, 16, device=x.device, requires_grad=True)
    y = unfused(another)
    expected = [y] if how == "inference" else gradients(y, module, another)
    results = graph(another)
    assert_close([results] if how == "inference" else results, expected)


@pytest.mark.parametrize("kind", [FusedMLP, FusedGatedMLP])
def test_make_fx_records_a_dropouts_mask(kind, device):
    """Of second derivatives, whose plain operations take it from a kernel."""
    module = kind(16, 24, dropout=0.4, device=device)

    def penalty(x):
        x = x.detach().requires_grad_()
        torch.manual_seed(1)
        (first,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    x = torch.randn(12, 16, device=device)
    graph = make_fx(penalty)(x)
    assert "dropout_mask" in graph.code
    torch.manual_seed(1)
    assert_close([graph(x)], [penalty(x)])


TRANSFORMS = {
    "grad": lambda f, x, t: torch.func.grad(lambda x: f(x).square().sum())(x),
    "vjp": lambda f, x, t: torch.func.vjp(f, x)[1](torch.ones_like(f(x)))[0],
    "jvp": lambda f, x, t: torch.func.jvp(f, (x,), (t,))[1],
    "jacfwd": lambda f, x, t: torch.func.jacfwd(lambda x: f(x).sum(0))(x),
    "jacrev": lambda f, x, t: torch.func.jacrev(lambda x: f(x).sum(0))(x),
    "vmap": lambda f, x, t: torch.func.vmap(f)(x[:, None]),
    "per sample": lambda f, x, t: torch.func.vmap(torch.func.grad(lambda x: f(x[None]).sum()))(x),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_function_transforms(blocks, transform, compiled):
    module, unfused, x = blocks
    tangent = torch.randn_like(x)
    torch._dynamo.reset()
    call = functools.partial(TRANSFORMS[transform], module)
    call = torch.compile(call, fullgraph=True, backend="eager") if compiled else call
    assert_close([call(x, tangent)], [TRANSFORMS[transform](unfused, x, tangent)])
    torch._dynamo.reset()


@pytest.mark.parametrize("compiled", [False, True])
def test_forward_mode(blocks, compiled):
    module, unfused, x = blocks
    tangent = torch.randn_like(x)

    def derivative(f, x, tangent):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(x, tangent))).tangent

    torch._dynamo.reset()
    call = torch.compile(derivative, backend="aot_eager") if compiled else derivative
    assert_close([call(module, x, tangent)], [derivative(unfused, x, tangent)])
    torch._dynamo.reset()


def test_vmap_over_backward(blocks):
    module, unfused, x = blocks
    x = x.requires_grad_()
    inputs = [x, *module.parameters()]
    results = []
    for block in (module, unfused):
        y = block(x)
        dys = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(1)).to(x.device)
        results.append(torch.func.vmap(lambda dy, y=y: torch.autograd.grad(y, inputs, dy, retain_graph=True))(dys))
    assert_close(*results)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mode_sees_second_derivatives(kind, activation, device):
    module = kind(16, 24, activation=activation, device=device)
    x = torch.randn(5, 16, device=device, requires_grad=True)

    class Passing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Passing():
        (first,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
    (expected,) = torch.autograd.grad(Unfused(module)(x).square().sum(), x, create_graph=True)
    assert_close([first, second], [expected, torch.autograd.grad(expected.square().sum(), x)[0]])


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # torch asks itself
def test_compiled_autograd(blocks):
    module, unfused, x = blocks
    torch._dynamo.reset()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        module(x).square().sum().backward()
    found = [p.grad.clone() for p in module.parameters()]
    assert_close(found, torch.autograd.grad(unfused(x).square().sum(), list(module.parameters())))
    torch._dynamo.reset()


@pytest.mark.parametrize(("entry", "values"), cases(1, every=False))
def test_every_activation_is_traced(entry, values, device):
    torch._dynamo.reset()
    x, weight = torch.randn(5, 8, device=device, requires_grad=True), torch.randn(6, 8, device=device)
    params = keywords(entry, values)
    compiled = torch.compile(
        lambda x: epilogue.linear(x, weight, activation=entry, **params), fullgraph=True, backend="eager"
    )
    y, expected = compiled(x), entry.oracle(F, F.linear(x, weight), *values)
    assert_close([y, *torch.autograd.grad(y.sum(), x)], [expected, *torch.autograd.grad(expected.sum(), x)])
    torch._dynamo.reset()


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="torch's ONNX exporter needs onnxscript")
@pytest.mark.filterwarnings("ignore")
def test_exports_to_onnx(device):
    """By torch's own operations, of which alone ONNX knows translations."""
    block = nn.Sequential(*(kind(16, 16) for kind in KINDS), FusedLinear(16, 16, activation="leaky_relu")).to(device)
    program = torch.onnx.export(block.eval(), (torch.randn(3, 16, device=device),), dynamo=True, verbose=False)
    assert {node.domain for node in program.model.graph} == {""}


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch's own making
@pytest.mark.parametrize("activation", ["gelu", "relu", "leaky_relu"])
def test_an_exported_program_decomposes_to_torchs_operations(blocks, activation):
    module, unfused, x = blocks
    module.activation = ACTIVATIONS[activation]
    module._numbers = dict(ACTIVATIONS[activation].params)
    unfused.act = lambda F, z: ACTIVATIONS[activation].oracle(F, z, *module._numbers.values())
    program = torch.export.export(module, (x,))
    assert "epilogue" in program.graph_module.code
    plain = program.run_decompositions(torch._decomp.decomposition_table)
    assert "epilogue" not in plain.graph_module.code
    assert_close([plain.module()(x)], [unfused(x)])


def test_registered_operators_pass_torchs_own_checks(device):
    """Schema, fake kernel, autograd registration and AOT dispatch, by torch.library.opcheck."""
    x, w, b, d = (torch.randn(size, device=device) for size in ((6, 16), (24, 16), (24,), (8, 24)))
    for keep in ("input", "output", "sign", "nothing"):
        call = (x, w, None, b, None, None, None, "relu", [], [], False, 0.0, keep, "triton")
        torch.library.opcheck(OPERATORS[0], call, test_utils=("test_schema", "test_faketensor"))
        call = (x, w, None, b, None, None, d, None, None, "relu", [], [], False, 0.0, keep, "triton")
        torch.library.opcheck(OPERATORS[1], call, test_utils=("test_schema", "test_faketensor"))


def test_a_trace_with_fake_tensors(blocks):
    module, unfused, x = blocks
    parameters = dict(module.named_parameters())
    graph = make_fx(lambda parameters, x: torch.func.functional_call(module, parameters, (x,)), tracing_mode="fake")(
        parameters, x
    )
    assert_close([graph(parameters, x)], [unfused(x)])
    assert epilogue.linear(torch.empty(2, 3, device="meta"), torch.empty(4, 3, device="meta")).shape == (2, 4)
