"""What backward makes of what forward kept: what changes in between, and what is asked of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import checks
import epilogue
from checks import OPS, fused
from epilogue import ACTIVATIONS
from epilogue.nn import FusedGatedMLP, FusedGLU, FusedLinear, FusedMLP


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_result_may_be_written_to_as_torchs_own(activation, device):
    entry = ACTIVATIONS[activation]
    if entry.arity == 2 or activation == "identity":
        return
    params = {"threshold": 0.5, "value": -2.0} if activation == "threshold" else {}
    layer = FusedLinear(16, 24, activation=activation, device=device, **params)
    x = torch.randn(5, 16, device=device)
    values = tuple(layer.activation_params().values())

    def gradient(call):
        h = call(x)
        h += 1.0
        h *= 2.0
        return torch.autograd.grad(h.sum(), layer.weight)[0]

    def stock(x):
        return entry.oracle(F, F.linear(x, layer.weight, layer.bias), *values)

    if activation in ("relu", "sigmoid", "tanh"):  # torch's own keeps y
        for call in (layer, stock):
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                gradient(call)
    else:
        expected = torch.autograd.grad((2.0 * (stock(x) + 1.0)).sum(), layer.weight)[0]
        torch.testing.assert_close(gradient(layer), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_backward_uses_the_parameters_that_forward_saw(activation, recompute, device):
    """`param.data` is exchanged between the two; one weight stands in both places."""
    entry = ACTIVATIONS[activation]

    def gradients(call):
        weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).to(device))
        x = torch.ones(3, 8, device=device, requires_grad=True)
        y = call(x, weight)
        weight.data = torch.full((8, 8), 5.0, device=device)
        return torch.autograd.grad(y.sum(), [x, weight])

    calls = {
        "linear": lambda x, w: epilogue.linear(x, w, None, activation),
        "glu": lambda x, w: epilogue.glu(x, (w, w), None, activation),
        "mlp": lambda x, w: epilogue.mlp(x, w, w, activation=activation, recompute=recompute),
        "gated_mlp": lambda x, w: epilogue.gated_mlp(x, w, w, w, activation=activation, recompute=recompute),
    }
    stock = {
        "linear": lambda x, w: entry.oracle(F, F.linear(x, w)),
        "glu": lambda x, w: entry.oracle(F, F.linear(x, w)) * F.linear(x, w),
        "mlp": lambda x, w: F.linear(entry.oracle(F, F.linear(x, w)), w),
        "gated_mlp": lambda x, w: F.linear(entry.oracle(F, F.linear(x, w)) * F.linear(x, w), w),
    }
    for op, call in calls.items():
        for actual, expected in zip(gradients(call), gradients(stock[op]), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, msg=op)


@pytest.mark.parametrize("kind", [FusedLinear, FusedGLU, FusedMLP, FusedGatedMLP])
def test_backward_after_a_module_changed_its_dtype(kind, device):
    module = kind(16, 16, device=device)
    x = torch.randn(5, 16, device=device, requires_grad=True)
    expected = torch.autograd.grad(module(x).sum(), x)
    y = module(x)
    module.to(torch.float16)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x), expected)


def test_a_parameter_that_an_engine_gathers_is_not_held(device):
    """DeepSpeed's ZeRO-3 puts an empty tensor in a parameter's place after the call, and the whole back before backward."""
    weight = nn.Parameter(torch.randn(24, 16, device=device))
    weight.ds_id = 7
    x = torch.randn(5, 16, device=device, requires_grad=True)
    whole = weight.data
    (expected,) = torch.autograd.grad(F.gelu(F.linear(x, weight)).sum(), x)
    y = epilogue.linear(x, weight)
    held = [t for t in y.grad_fn.saved_tensors if t is not None and t.untyped_storage().data_ptr() == whole.data_ptr()]
    assert all(t is weight for t in held)
    weight.data = torch.empty(0, device=device)
    weight.data = whole.clone()
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["gelu", "relu", "tanh", "leaky_relu", "prelu", "softplus"])
@pytest.mark.parametrize("dropout", [False, True])
def test_a_frozen_layer_is_differentiated_twice(op, name, dropout, rng, device):
    """Its x is not kept; jvp, a first derivative, is made of two backward passes."""
    if dropout and "mlp" not in op:
        return
    entry = ACTIVATIONS[name]
    values = tuple(entry.params.values())
    options = {"dropout_p": 0.4, "training": True} if dropout else {}
    arrays = checks.arguments(op, rng, (5,), (16, 24, 8))

    def derivatives(dtype):
        args = checks.each(lambda a: torch.tensor(a, dtype=dtype, device=device), arrays)
        x, tangent = args.pop("x"), torch.linspace(-1, 1, 80, dtype=dtype, device=device).view(5, 16)

        def call(x):
            torch.manual_seed(3)
            if dtype == torch.float64 and dropout:
                return masked(op, {"x": x, **args}, entry, values, mask)
            return fused(op, {"x": x, **args}, entry, values, **options)

        jvp = torch.autograd.functional.jvp(call, x, tangent)[1]
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(call(leaf).square().sum(), leaf, create_graph=True)
        return jvp, first, torch.autograd.grad(first.square().sum(), leaf)[0]

    mask = None
    if dropout:
        from epilogue.operands import Dropout, draw_seed
        from epilogue.triton.dropout import dropout_mask

        torch.manual_seed(3)
        mask = dropout_mask(Dropout(0.4, draw_seed(torch.device(device))), 5, 24).double()
    for actual, expected in zip(derivatives(torch.float32), derivatives(torch.float64), strict=True):
        torch.testing.assert_close(actual.double(), expected.double(), rtol=2e-4, atol=2e-4)


def masked(op, args, entry, values, mask):
    """An MLP with the dropout of these factors, in plain torch."""
    x, *rest = args.values()
    if op == "mlp":
        up, down, up_bias, down_bias = rest
        h = checks.unfused("linear", {"x": x, "weight": up, "bias": up_bias}, entry, values)
    else:
        gate, up, down, gate_bias, up_bias, down_bias = rest
        weight, bias = (gate, gate_bias) if up is None else ((gate, up), (gate_bias, up_bias))
        h = checks.unfused("glu", {"x": x, "weight": weight, "bias": bias}, entry, values)
    return F.linear(h * mask, down, down_bias)


def products(module, x, inputs):
    y = module(x)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(y.sum(), inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("kind", "hidden"), [(FusedLinear, ()), (FusedGLU, ()), (FusedMLP, (16,)), (FusedGatedMLP, (16,))]
)
def test_no_gradient_is_computed_that_is_not_wanted(kind, hidden, recompute, device):
    """Every weight is 16 x 16 (GLU's 32 x 16), every product 2·5·16·16 operations."""
    if recompute and not hidden:
        return
    module = kind(16, 16, bias=True, device=device, **({"recompute": True} if recompute else {}))
    x = torch.randn(5, 16, device=device, requires_grad=True)
    product = 2 * 5 * 16 * 16
    wide = {FusedGLU: 2, FusedGatedMLP: 2}.get(kind, 1)
    again = wide if recompute else 0
    x_alone = (wide + bool(hidden) + again) * product
    assert products(module, x, [x]) == x_alone
    if hidden:
        assert products(module, x, [module.down.weight]) == (1 + again) * product
        assert products(module, x, [module.down.bias]) == 0
        assert products(module, x, [module.up.weight]) == (1 + 1 + again) * product
    else:
        assert products(module, x, [module.weight]) == wide * product
        assert products(module, x, [module.bias]) == 0
    assert products(module, x, [x, *module.parameters()]) == x_alone + (wide + bool(hidden)) * product


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("kind", [FusedMLP, FusedGatedMLP])
def test_recompute_of_a_frozen_layer_is_one_product_and_exact(kind, dropout, device):
    """h is computed as forward did, neither by way of a derivative nor from a rounded z."""
    module = kind(16, 24, recompute=True, dropout=dropout, dtype=torch.bfloat16, device=device)
    plain = kind(16, 24, dropout=dropout, dtype=torch.bfloat16, device=device)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(5, 16, dtype=torch.bfloat16, device=device)
    gradients = []
    for m in (module, plain):
        m.requires_grad_(False)
        m.down.requires_grad_(True)
        torch.manual_seed(1)
        y = m(x)
        with FlopCounterMode(display=False) as counter:
            gradients.append(torch.autograd.grad(y.sum(), m.down.weight)[0])
        wide = 2 if kind is FusedGatedMLP else 1
        assert counter.get_total_flops() == 2 * 5 * 16 * 24 * (1 + (wide if m is module else 0))
    assert torch.equal(*gradients)


@pytest.mark.parametrize("wanted", ["bias", "last bias", "both biases", "bias and slope"])
@pytest.mark.parametrize("op", ["glu", "glu packed", "gated_mlp"])
def test_gradients_of_vectors_alone(op, wanted, rng, device):
    """No gradient of a matrix is wanted, and so no dz."""
    args = checks.each(lambda a: torch.tensor(a, dtype=torch.float32, device=device), checks.arguments(op, rng))
    bias = args["bias"] if op == "glu" else (args["bias"],) if "bias" in args else (args["gate_bias"], args["up_bias"])
    bias = bias[-1:] if "last" in wanted else bias
    slope = torch.tensor(0.3, device=device)
    leaves = [*(bias if "both" in wanted else bias[:1]), *([slope] if "slope" in wanted else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    entry = ACTIVATIONS["prelu"]
    actual = torch.autograd.grad(fused(op, args, entry, (slope,)).sum(), leaves)
    expected = torch.autograd.grad(checks.unfused(op, args, entry, (slope,)).sum(), leaves)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["create_graph", "down alone", "both"])
@pytest.mark.parametrize("activation", ["silu", "gelu", "softsign", "identity"])
def test_float16s_kept_z_is_saturated_on_every_way(activation, how, device):
    x = torch.full((2, 16), 100.0, dtype=torch.float16, device=device, requires_grad=True)
    gate, up = (torch.full((24, 16), value, dtype=torch.float16, device=device) for value in (50.0, 2e-6))
    down = torch.full((3, 24), 1e-3, dtype=torch.float16, device=device, requires_grad=True)
    wanted = {"create_graph": [x], "down alone": [down], "both": [x, down]}[how]
    y = epilogue.gated_mlp(x, gate, up, down, activation=activation)
    found = torch.autograd.grad(y.sum(), wanted, create_graph=how == "create_graph")
    assert y.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in found)


def test_a_bias_may_change_between_forward_and_backward(device):
    """As a step of an optimizer between two backward passes does; stock keeps no bias."""
    for kind in (FusedLinear, FusedGLU, FusedMLP, FusedGatedMLP):
        module = kind(16, 24, bias=True, device=device)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_("bias" in name)
        y = module(torch.randn(5, 16, device=device))
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.add_(1.0)
        y.sum().backward()


@pytest.mark.parametrize("kernel", ["fused", "unfused"])
def test_lazily_negated_vectors(kernel, device):
    x, weight = torch.randn(4, 16, device=device), torch.randn(16, 16, device=device)
    vector = torch._neg_view(torch.rand(16, device=device))
    calls = {
        "bias": ({"bias": vector}, lambda v: torch.tanh(F.linear(x, weight, v)), "tanh"),
        "slope": ({"slope": vector}, lambda v: F.prelu(F.linear(x, weight), v), "prelu"),
    }
    for arguments, stock, activation in calls.values():
        actual = epilogue.linear(x, weight, activation=activation, **arguments)
        torch.testing.assert_close(actual, stock(vector.resolve_neg()), rtol=1e-4, atol=1e-5)
    mlp = epilogue.mlp(x, weight, weight, vector, vector, "tanh")
    expected = F.linear(torch.tanh(F.linear(x, weight, vector)), weight, vector)
    torch.testing.assert_close(mlp, expected, rtol=1e-4, atol=1e-4)


def test_parameters_made_in_inference_mode_learn_as_torchs_do(device):
    """The bias does; of the weight autograd takes no view."""
    with torch.inference_mode():
        layer = FusedLinear(16, 24, device=device)
    x = torch.randn(5, 16, device=device)
    (actual,) = torch.autograd.grad(layer(x).sum(), layer.bias)
    (expected,) = torch.autograd.grad(F.gelu(F.linear(x, layer.weight, layer.bias)).sum(), layer.bias)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_dropout_rounds_once_whatever_is_asked(device):
    """The gradient of the down weight alone is that beside all others."""
    module = FusedMLP(64, 256, dropout=0.3, dtype=torch.bfloat16, device=device)
    x = torch.randn(32, 64, dtype=torch.bfloat16, device=device, requires_grad=True)
    y = module(x)
    dy = torch.randn_like(y)
    everything = [module.down.weight, x, *module.up.parameters()]
    whole = torch.autograd.grad(y, everything, dy, retain_graph=True)[0].double()
    alone = torch.autograd.grad(y, module.down.weight, dy)[0].double()
    assert (alone - whole).norm() <= 2e-3 * whole.norm()
