"""How exact derivatives are: at every number of 16 bits, wherever z lies, and where z or y is not finite."""

import pytest
import torch
import torch.nn.functional as F

import checks
import epilogue
from checks import assert_accurate, cases, fused
from epilogue import ACTIVATIONS
from epilogue.applied import Applied, Needs
from epilogue.triton.pointwise import act_bwd, act_fwd

HALVES = (torch.float16, torch.bfloat16)
KEEPS_Y = [case for case in cases(1) if case.values[0].saves(case.values[1]) == "output"]
NAMES = {case.values[0].name for case in KEEPS_Y}


def leaves_of(args, dtype, device):
    return checks.each(lambda a: torch.tensor(a, dtype=dtype, device=device, requires_grad=True), args)


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
