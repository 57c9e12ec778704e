"""What backward makes of what forward kept: derivatives' precision, what changes in between, what is asked of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import checks
import epilogue
from checks import OPS, assert_accurate, cases, kept, keywords
from epilogue import ACTIVATIONS
from epilogue.applied import Applied, Needs
from epilogue.nn import FusedGatedMLP, FusedGLU, FusedLinear, FusedMLP
from epilogue.triton.pointwise import act_bwd, act_fwd

HALVES = (torch.float16, torch.bfloat16)
KEEPS_Y = [case for case in cases(1) if case.values[0].saves(case.values[1]) == "output"]
NAMES = {case.values[0].name for case in KEEPS_Y}


def fused(op, args, entry, values=(), **options):
    return getattr(epilogue, op.split()[0])(**args, activation=entry, **keywords(entry, values), **options)


def leaves_of(args, dtype, device):
    return checks.each(lambda a: torch.tensor(a, dtype=dtype, device=device, requires_grad=True), args)


# --- the derivative's precision


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("entry", "values"), [*KEEPS_Y, *(c for c in cases(1) if c.values[0].name in ("elu", "celu"))])
def test_the_derivative_is_as_exact_as_torchs_at_every_16_bit_input(entry, values, dtype, device):
    """Relative to the derivative itself, not to the largest of them, from what an MLP keeps. What is not normal may be 0 on a GPU."""
    z = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    info = torch.finfo(dtype)
    z = z[z.isfinite() & (z.abs() >= info.tiny)].to(device)
    z = F.pad(z, (0, -len(z) % 128), value=1.0).view(-1, 128)
    how = entry.saves(values)
    y = torch.empty_like(z)
    act_fwd(z, y, None, Applied(entry, values))
    saved = y if how == "output" else z
    actual = act_bwd(torch.ones_like(z), saved, how, Applied(entry, values), Needs())[0]
    leaf, exact_leaf = z.clone().requires_grad_(), z.double().requires_grad_()
    (torchs,) = torch.autograd.grad(entry.oracle(F, leaf, *values).sum(), leaf)
    (exact,) = torch.autograd.grad(entry.oracle(F, exact_leaf, *values).sum(), exact_leaf)
    regular = (exact.abs() <= info.max) & ((exact == 0) | (exact.abs() >= info.tiny))
    error, theirs = ((g.double() - exact).abs() / exact.abs().clamp(min=info.tiny) for g in (actual, torchs))
    wrong = regular & (error > 2 * theirs + info.eps)
    assert not wrong.any(), list(zip(z[wrong].tolist(), actual[wrong].tolist(), torchs[wrong].tolist(), strict=True))[
        :5
    ]


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
@pytest.mark.parametrize("mean", [-5.0, 0.0, 5.0])
@pytest.mark.parametrize("op", ["linear", "mlp"])
@pytest.mark.parametrize(("entry", "values"), [c for c in cases(1, False) if c.values[0].name in ("elu", *NAMES)])
def test_trains_wherever_z_lies(entry, values, op, mean, dtype, rng, device):
    """z ~ N(mean, 1): the rule of accuracy holds in an activation's tails too."""
    args = checks.arguments(op, rng, (33,), (16, 24, 8))
    bias = "bias" if op == "linear" else "up_bias"
    args[bias] = args[bias] + mean
    dy = torch.tensor(rng.standard_normal((33, 24 if op == "linear" else 8)), device=device)

    def train(function, dtype):
        given = leaves_of(args, dtype, device)
        given = checks.each(lambda t: t.detach().to(dtype).requires_grad_(), given)
        y = function(given)
        return [y, *torch.autograd.grad(y, checks.leaves(given), dy.to(dtype).to(y.dtype), allow_unused=True)]

    rounded = checks.each(lambda a: torch.tensor(a, dtype=dtype, device=device).double().cpu().numpy(), args)
    args, dy = rounded, dy.to(dtype).double()
    ours = train(lambda given: fused(op, given, entry, values), dtype)
    unfused = train(lambda given: checks.unfused(op, given, entry, values), dtype)
    exact = train(lambda given: checks.unfused(op, given, entry, values), torch.float64)
    for actual, own, truth in zip(ours, unfused, exact, strict=True):
        assert_accurate(actual, own, truth)


@pytest.mark.parametrize("kernel", ["fused", "unfused"])
@pytest.mark.parametrize("op", ["glu", "gated_mlp"])
def test_a_finite_y_of_float16_has_finite_gradients(op, kernel, device):
    """gate's pre-activation, 80000, is no float16, while its product with up, 0.0032, is."""
    x = torch.full((2, 16), 100.0, dtype=torch.float16, device=device, requires_grad=True)
    gate, up = (torch.full((24, 16), value, dtype=torch.float16, device=device) for value in (50.0, 2e-6))
    if kernel == "unfused":  # there z is rounded before the activation, as in torch's own layers
        gate = gate * 0.8
    options = {} if op == "glu" else {"down_weight": torch.full((3, 24), 1e-3, dtype=torch.float16, device=device)}
    call = {"weight": (gate, up)} if op == "glu" else {"gate_weight": gate, "up_weight": up}
    y = getattr(epilogue, op)(x, **call, **options)
    (dx,) = torch.autograd.grad(y.float().sum(), x)
    assert y.isfinite().all()
    assert dx.isfinite().all()
    assert (dx > 0).all()


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_an_infinite_z_counts_as_the_largest_number_in_float16_alone(dtype, device):
    z = torch.tensor([[torch.inf, -torch.inf, torch.nan, 1.0]], dtype=dtype, device=device)
    dz = act_bwd(torch.ones_like(z), z, "input", Applied(ACTIVATIONS["gelu"]), Needs())[0]
    saturated = [1.0, 0.0, torch.nan]
    expected = saturated if dtype == torch.float16 else [torch.nan] * 3
    torch.testing.assert_close(dz[0, :3].float().cpu(), torch.tensor(expected), rtol=0, atol=1e-6, equal_nan=True)


# --- what changes between forward and backward


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


# --- second derivatives of frozen layers


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


# --- what backward is asked for


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


# --- autocast


def copies(module, device):
    """Bytes of bfloat16 copies of the parameters that 12 calls in one region keep."""
    parameters = {tuple(p.shape) for p in module.parameters()}
    parameters |= {shape[::-1] for shape in parameters}
    storages = {}

    def pack(tensor):
        if tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in parameters:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast(device, torch.bfloat16):
        results = [module(torch.randn(2, 16, device=device)) for _ in range(12)]
    torch.stack(results).float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("kind", [FusedLinear, FusedGLU, FusedMLP, FusedGatedMLP])
def test_autocast_casts_a_weight_once_in_its_region(kind, device):
    module = kind(16, 48, bias=True, device=device)
    assert copies(module, device) == 2 * sum(
        p.numel() for p in module.parameters() if p.ndim == 2
    )  # biases are not kept


def test_autocasts_copies_are_its_own(device):
    """Fresh in the next region, shared with torch's own layers in one, with a gradient after a call without."""
    layer = FusedLinear(16, 24, device=device)
    x = torch.randn(3, 16, device=device)
    with torch.autocast(device, torch.bfloat16):
        before = layer(x)
    layer.weight.data.mul_(2.0)  # which no version counter sees
    with torch.autocast(device, torch.bfloat16):
        with torch.no_grad():
            layer(x)
        y = layer(x)
        expected = F.gelu(F.linear(x, layer.weight, layer.bias))
    assert not torch.equal(y, before)
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    y.sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
        torch.testing.assert_close(layer(x), y, rtol=2e-2, atol=2e-2)


def test_kept_counts_nothing_twice_under_autocast(device):
    layer = FusedLinear(16, 24, device=device)
    x = torch.randn(3, 16, device=device)
    with torch.autocast(device, torch.bfloat16):
        assert ("bfloat16", 3, 24) in kept(lambda: layer(x), *layer.parameters())


# --- what a review found


@pytest.mark.parametrize("wanted", ["bias", "both biases", "bias and slope"])
@pytest.mark.parametrize("op", ["glu", "glu packed"])
def test_gradients_of_vectors_alone(op, wanted, rng, device):
    """No gradient of a matrix is wanted, and so no dz."""
    args = checks.each(lambda a: torch.tensor(a, dtype=torch.float32, device=device), checks.arguments(op, rng))
    bias = args["bias"] if op == "glu" else (args["bias"],)
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


def test_autocast_where_hooks_are_forbidden(device):
    layer, x = FusedLinear(16, 24, device=device), torch.randn(5, 16, device=device)
    with torch.autograd.graph.disable_saved_tensors_hooks("none here"), torch.autocast(device, torch.bfloat16):
        layer(x).float().sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("kind", [FusedMLP, FusedGatedMLP])
def test_autocast_casts_once_under_a_default_device(kind, device):
    module = kind(16, 48, bias=True, device=device)
    with torch.device(device):
        assert copies(module, device) == 2 * sum(p.numel() for p in module.parameters() if p.ndim == 2)


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
