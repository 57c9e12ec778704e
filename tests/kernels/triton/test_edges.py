"""Shapes, strides, configs and values at the edges of what the kernels serve."""

import pytest
import torch

import checks
import epilogue
from checks import assert_accurate
from epilogue.applied import Applied, Needs
from epilogue.operands import Dropout, Layer
from epilogue.triton import linear
from epilogue.triton.dact import linear_dact
from epilogue.triton.dropout import dropout_mask
from epilogue.triton.linear import linear_fwd
from epilogue.triton.plan.chips import machine
from epilogue.triton.plan.configs import DACT, GLU, TABLE
from epilogue.triton.pointwise import act_bwd
from epilogue.vocabulary import absolute, log, sqrt, where

GELU, SILU, RELU = (epilogue.ACTIVATIONS[name] for name in ("gelu", "silu", "relu"))


def draw(*shape, dtype=torch.float32, device="cpu", scale=1.0):
    return (torch.randn(shape, dtype=torch.float64) * scale).to(device, dtype)


def check_linear(x, weight, bias, dy=None):
    def run(function, *tensors):
        tensors = [t.detach().requires_grad_() for t in tensors]
        y = function(*tensors)
        return [y, *torch.autograd.grad(y, tensors, (torch.ones_like(y) if dy is None else dy).to(y.dtype))]

    def plain(x, weight, bias):
        return torch.nn.functional.gelu(torch.nn.functional.linear(x, weight, bias))

    results = run(epilogue.linear, x, weight, bias), run(plain, x, weight, bias)
    exact = run(plain, *(t.double() for t in (x, weight, bias)))
    for fused, own, truth in zip(*results, exact, strict=True):
        assert_accurate(fused, own, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 13, 7), (131, 257, 67), (2, 520, 72), (300, 8, 16), (64, 72, 136)])
def test_shapes(shape, dtype, device):
    m, n, k = shape
    x, weight, bias = draw(m, k, dtype=dtype), draw(n, k, dtype=dtype, scale=k**-0.5), draw(n, dtype=dtype)
    check_linear(x.to(device), weight.to(device), bias.to(device), draw(m, n, dtype=dtype, device=device))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)])
def test_leading_axes(lead, device):
    check_linear(draw(*lead, 16, device=device), draw(24, 16, device=device), draw(24, device=device))


@pytest.mark.parametrize(("m", "n", "k"), [(0, 5, 4), (3, 0, 4), (3, 5, 0), (0, 0, 0)])
@pytest.mark.parametrize("kernel", ["fused", "unfused"])
@pytest.mark.parametrize("op", ["linear", "glu", "glu packed"])
def test_empty(op, kernel, m, n, k, rng, device):
    args = checks.each(
        lambda a: torch.as_tensor(a).float().to(device).requires_grad_(), checks.arguments(op, rng, (2, m), (k, n, 1))
    )
    y = (epilogue.linear if op == "linear" else epilogue.glu)(**args, activation="silu")
    assert y.shape == (2, m, n)
    y.sum().backward()
    z = checks.each(lambda t: t.detach().double().requires_grad_(), args)
    checks.unfused(op, z, SILU).sum().backward()
    for actual, expected in zip(checks.leaves(args), checks.leaves(z), strict=True):
        torch.testing.assert_close(actual.grad.double(), expected.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0), (0, 2), (0, 0)])
def test_a_gated_layers_weights_lie_anywhere(first, second, device):
    """By one descriptor whichever comes first in memory; not where one tensor is both."""
    weights = draw(3, 72, 40, dtype=torch.float16, device=device, scale=40**-0.5)
    x, gate, up = draw(50, 40, dtype=torch.float16, device=device), weights[first], weights[second]
    problem = linear._problem(Layer(x, gate, up), Applied(SILU, (), True), "nothing")
    assert problem.tma == (first != second and machine(x).descriptors)
    exact = checks.unfused("glu", {"x": x.double(), "weight": (gate.double(), up.double()), "bias": None}, SILU)
    plain = checks.unfused("glu", {"x": x, "weight": (gate, up), "bias": None}, SILU)
    assert_accurate(epilogue.glu(x, (gate, up), activation="silu"), plain, exact)


LAYOUTS = {
    "transposed x": lambda x, w, b: (x.t().contiguous().t(), w, b),
    "strided x": lambda x, w, b: (x.repeat_interleave(2, 1)[:, ::2], w, b),
    "every other row": lambda x, w, b: (x.repeat_interleave(2, 0)[::2], w, b),
    "expanded x": lambda x, w, b: (x[:1].expand(x.shape[0], -1), w, b),
    "weight stored [in, out]": lambda x, w, b: (x, w.t().contiguous().t(), b),
    "unaligned": lambda x, w, b: (torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x), w, b),
    "swapped leading axes": lambda x, w, b: (x.view(4, 10, -1).transpose(0, 1), w, b),
    "strided bias": lambda x, w, b: (x, w, b.repeat_interleave(2)[::2]),
    "expanded bias": lambda x, w, b: (x, w, b[:1].expand(w.shape[0])),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, device):
    arrays = draw(40, 32, device=device), draw(48, 32, device=device), draw(48, device=device)
    check_linear(*LAYOUTS[layout](*arrays))


def test_stride_0_gradient(device):
    x, weight = draw(9, 16, device=device), draw(8, 16, device=device)
    grads = []
    for dtype in (torch.float32, torch.float64):
        w = weight.to(dtype, copy=True).requires_grad_()
        epilogue.linear(x.to(dtype), w).sum().backward()
        grads.append(w.grad.double())
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)


CONFIGS = {
    "-".join(["tma" if tma else "pointer", name, str(itemsize), str(i)]): (family, config, itemsize)
    for (family, tma, itemsize), configs in TABLE.items()
    if not family.dropout  # which takes some of the same
    for name in ["glu" if family is GLU else family.name]
    for i, config in enumerate(configs)
}


def two_tiles(config):
    """Sizes of which each takes two tiles, the second in part."""
    return config.BLOCK_M + 9, config.BLOCK_N + 16, config.BLOCK_K + 8


def runs_here(config, device) -> bool:
    return device == "cpu" or not config.tma or torch.cuda.get_device_capability() >= (9, 0)


@pytest.mark.parametrize("case", [case for case, (family, *_) in CONFIGS.items() if family is not DACT])
def test_every_forward_config(case, device):
    family, config, itemsize = CONFIGS[case]
    if not runs_here(config, device):
        return
    gated, dtype = family is GLU, torch.float32 if itemsize == 4 else torch.float16
    m, n, k = two_tiles(config)
    x, weight = (
        draw(m, k, dtype=dtype, device=device),
        draw((1 + gated) * n, k, dtype=dtype, device=device, scale=k**-0.5),
    )
    bias = draw((1 + gated) * n, dtype=dtype, device=device)
    y, z = linear_fwd(Layer(x, weight, bias=bias), Applied(SILU, (), gated), "input", config)
    truth = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    unfused = torch.nn.functional.linear(x, weight, bias)
    assert_accurate(z, unfused, truth)
    act = torch.nn.functional.silu
    if gated:
        unfused, truth = (act(t[:, :n]) * t[:, n:] for t in (unfused, truth))
    else:
        unfused, truth = act(unfused), act(truth)
    assert_accurate(y, unfused, truth)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("case", [case for case, (family, *_) in CONFIGS.items() if family is DACT])
def test_every_backward_config(case, gated, device):
    """dz, h and the bias's sums, without dropout; with it the mask that another tile shape draws too."""
    _, config, itemsize = CONFIGS[case]
    if not runs_here(config, device):
        return
    dtype = torch.float32 if itemsize == 4 else torch.float16
    m, n, k = two_tiles(config)
    dy, down = draw(m, k, dtype=dtype, device=device), draw(k, n, dtype=dtype, device=device, scale=k**-0.5)
    z = draw(m, (1 + gated) * n, dtype=dtype, device=device)

    def unfused(dy, down, z):
        dh, z = dy @ down, z.detach().requires_grad_()
        h = torch.nn.functional.silu(z[:, :n]) * (z[:, n:] if gated else 1.0)
        (dz,) = torch.autograd.grad(h, z, dh)
        return dz, h, dz.sum(0).float()

    applied = Applied(SILU, (), gated)
    results = linear_dact(dy, down, z, "input", applied, Needs(h=True, dbias=True), config)
    own, exact = unfused(dy, down, z), unfused(dy.double(), down.double(), z.double())
    for actual, torchs, truth in zip(results, own, exact, strict=False):
        assert_accurate(actual, torchs, truth)
    dropout = Dropout(0.4, torch.tensor([7], device=device))
    mask = dropout_mask(dropout, m, n)
    dz, h, *_ = linear_dact(dy, down, z, "input", applied._replace(dropout=dropout), Needs(h=True), config)
    torch.testing.assert_close(h, (results[1].float() * mask).to(dtype), rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(dz, (results[0].float() * mask.repeat(1, 1 + gated)).to(dtype), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("case", [case for case, (family, *_) in CONFIGS.items() if family is not GLU])
def test_signs_are_a_bit_each(case, device):
    """What forward packs is what backward reads, whatever the tiles, and in columns that fill no byte."""
    family, config, itemsize = CONFIGS[case]
    if not runs_here(config, device):
        return
    dtype = torch.float32 if itemsize == 4 else torch.float16
    m, n, k = 70, 44 if not config.tma else 136, 24
    x, weight, down = (draw(*shape, dtype=dtype, device=device) for shape in ((m, k), (n, k), (k, n)))
    forward, backward = (None, config) if family is DACT else (config, None)
    y, signs = linear_fwd(Layer(x, weight), Applied(RELU), "sign", forward)
    assert signs.shape == (m, -(-n // 8))
    bits = torch.stack([signs >> i & 1 for i in range(8)], -1).view(m, -1)[:, :n]
    assert torch.equal(bits == 1, y > 0)
    dz, *_ = linear_dact(x, down, signs, "sign", Applied(RELU), Needs(dbias=True), backward)
    expected, *_ = linear_dact(x, down, y, "output", Applied(RELU), Needs(dbias=True), backward)
    assert torch.equal(dz, expected)


def test_non_finite_stays_where_it_is(device):
    x, weight, bias = draw(40, 32, device=device), draw(48, 32, device=device), draw(48, device=device)
    clean = epilogue.linear(x, weight, bias, "relu")
    x[3], x[7, 5], weight[11, 2] = float("nan"), float("inf"), float("-inf")
    y = epilogue.linear(x, weight, bias, "relu")
    rows = [r for r in range(40) if r not in (3, 7)]
    cols = [c for c in range(48) if c != 11]
    assert torch.equal(y[rows][:, cols], clean[rows][:, cols])
    assert y[3].isnan().all()
    odd = epilogue.linear(x[:, :19], weight[:29, :19], bias[:29], "relu")  # the pointer kernel, every axis overrun
    assert odd[[r for r in rows if r < 40]][:, [c for c in cols if c < 29]].isfinite().all()


@pytest.mark.usefixtures("own_activations")
@pytest.mark.parametrize("gated", [False, True])
def test_backward_masks_what_overruns(gated, device):
    """Where act'(0) is not finite, the lanes beyond the matrix must not reach the column sums."""

    @epilogue.activation(oracle=lambda F, x: x.log())
    def logarithm(x):
        return log(x)

    @epilogue.derivative_of(logarithm)
    def logarithm_grad(x):
        return 1.0 / x

    z = 1.0 + torch.rand(5, 14 if gated else 7, device=device)
    dy = torch.ones(5, 7, device=device)
    dz, _, dbias, _ = act_bwd(dy, z, "input", Applied(logarithm, (), gated), Needs(dbias=True))
    assert dbias.isfinite().all()
    torch.testing.assert_close(dbias, dz.sum(0))


@pytest.mark.parametrize("m", [1, 16, 17, 1000])
def test_bias_gradient_of_many_rows(m, device):
    dy, z = draw(m, 200, device=device), draw(m, 200, device=device)
    dz, _, dbias, _ = act_bwd(dy, z, "output", Applied(RELU), Needs(dbias=True))
    torch.testing.assert_close(dz, torch.where(z > 0, dy, 0))
    torch.testing.assert_close(dbias, dz.double().sum(0).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("act", "keep"), [(RELU, "sign"), (GELU, "input"), (SILU, "input")], ids=["relu", "gelu", "silu"]
)
def test_unfused_over_many_blocks(act, keep, device):
    """What the pointwise kernels compute, drop and pack beyond their first block, beside cuBLAS's products."""
    m, n, k, gated = 20, 300, 16, act is SILU
    x, weight, down = (draw(*shape, device=device) for shape in ((m, k), ((1 + gated) * n, k), (k, n)))
    layer, applied = Layer(x.view(4, 5, k), weight), Applied(act, (), gated)
    dropout = Dropout(0.4, torch.tensor([7], device=device))
    mask = dropout_mask(dropout, m, n)
    y, kept = linear_fwd(layer, applied, keep, "unfused")
    assert y.shape == (4, 5, n)
    y = y.view(m, n)
    z = torch.nn.functional.linear(x, weight)
    expected = checks.unfused("glu packed" if gated else "linear", {"x": x, "weight": weight, "bias": None}, act)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    if keep == "input":
        assert torch.equal(kept, z)
    else:
        bits = torch.stack([kept >> i & 1 for i in range(8)], -1).view(m, -1)[:, :n]
        assert torch.equal(bits == 1, y > 0)
    with_dropout, again = linear_fwd(layer, applied._replace(dropout=dropout), keep, "unfused")
    assert torch.equal(again, kept)
    torch.testing.assert_close(with_dropout.view(m, n), y * mask)
    needs = Needs(h=keep == "input", dbias=True)
    dz, h, dbias, _ = linear_dact(x, down, kept, keep, applied, needs, "unfused")
    leaf = z.detach().requires_grad_()
    gate, *up = leaf.chunk(1 + gated, -1)
    whole = act.oracle(torch.nn.functional, gate) * (up[0] if gated else 1.0)
    torch.testing.assert_close(dz, torch.autograd.grad(whole, leaf, x @ down)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dbias, dz.sum(0), rtol=1e-4, atol=1e-4)
    dropped = applied._replace(dropout=dropout)
    dz_dropped, h_dropped, *_ = linear_dact(x, down, kept, keep, dropped, needs, "unfused")
    torch.testing.assert_close(dz_dropped, dz * mask.repeat(1, 1 + gated))
    if keep == "input":
        torch.testing.assert_close(h, y, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(h_dropped, h * mask)


@pytest.mark.usefixtures("own_activations")
@pytest.mark.parametrize("kernel", ["fused", "unfused"])
@pytest.mark.parametrize("sizes", [(16, 32), (9, 13)], ids=["descriptor", "pointer"])
def test_rows_past_the_last_add_nothing(sizes, kernel, device):
    """The kernels read zeros there, where this derivative is infinite: 0 · inf in a column's sum would be NaN."""

    @epilogue.activation(oracle=lambda F, x: x.abs().sqrt())
    def root(x):
        return sqrt(absolute(x))

    @epilogue.derivative_of(root)
    def root_grad(x):
        return where(x > 0.0, 0.5, -0.5) / sqrt(absolute(x))

    (k, n), m = sizes, 5
    x, dy = draw(m, k, dtype=torch.float16, device=device), draw(m, k, dtype=torch.float16, device=device)
    up, bias, down = (draw(*shape, dtype=torch.float16, device=device) for shape in ((n, k), (n,), (k, n)))
    bias.requires_grad_()
    (dbias,) = torch.autograd.grad(epilogue.mlp(x, up, down, bias, activation=root), bias, dy)
    assert dbias.isfinite().all()
