"""Dropout in an MLP's kernels: the mask, its share, the generator that governs it."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import checks
import epilogue
from checks import assert_accurate, philox
from epilogue.operands import Dropout, draw_seed
from epilogue.triton.dropout import dropout_mask
from mlps import DTYPES, SHAPES, output_gradient, tensors


def test_mask_is_philox(device):
    assert philox(0, 0, 0, 10) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # Random123's known answer
    seed, p, (m, n) = 0x123456789ABCDEF, 0.3, (3, 11)
    mask = dropout_mask(Dropout(p, torch.tensor([seed], device=device)), m, n).cpu()
    words = np.array([[philox(seed, col // 4, row, 7)[col % 4] for col in range(n)] for row in range(m)], np.uint32)
    kept = words.view(np.int32) >= round(p * 2**32) - 2**31
    np.testing.assert_array_equal(mask.numpy(), np.where(kept, np.float32(1 / (1 - p)), 0))


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.1, 0.5, 0.9, 1.0])
def test_share_and_scale(p, device):
    mask = dropout_mask(Dropout(p, draw_seed(torch.device(device))), 500, 499)
    count = mask.numel()
    assert abs((mask == 0).double().mean().item() - p) <= 4 * (p * (1 - p) / count) ** 0.5
    if p < 1:
        assert mask.unique().max().item() == pytest.approx(1 / (1 - p))
        if p:
            rows, cols = ((mask == 0).double().mean(axis) for axis in (1, 0))
            for share in (
                rows,
                cols,
            ):  # no row or column, and no pair of neighbours, sees more of it than chance allows
                assert (share - p).abs().max() <= 6 * (p * (1 - p) / 499) ** 0.5
            both = ((mask[:, 1:] == 0) & (mask[:, :-1] == 0)).double().mean().item()
            assert abs(both - p * p) <= 5 * (p * p / count) ** 0.5


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("activation", "dtype", "kernel"),
    checks.dealt(
        [pytest.param(name, id=name) for name in ("gelu", "relu", "leaky_relu", "tanh", "swiglu", "maxout")],
        DTYPES,
        SHAPES,
    ),
)
def test_dropout_is_one_mask(activation, dtype, kernel, recompute, rng, device, monkeypatch):
    """Forward and backward equal the unfused layer with the mask that the seed stands for."""
    op = "gated_mlp" if activation in ("swiglu", "maxout") else "mlp"
    entry = epilogue.resolve(activation)[0]
    entry, p = entry.gate or entry, 0.3
    args, dy = tensors(op, rng, kernel, dtype, device), output_gradient(kernel, dtype, device)
    m, (_, hidden, _) = SHAPES[kernel]
    torch.manual_seed(3)
    mask = dropout_mask(Dropout(p, draw_seed(torch.device(device))), m, hidden)
    monkeypatch.setattr(F, "dropout", lambda h, p: h * mask.to(h.dtype))

    def fused(args, values):
        torch.manual_seed(3)
        keywords = checks.keywords(entry, values)
        return getattr(epilogue, op)(
            **args, activation=entry, dropout_p=p, training=True, recompute=recompute, **keywords
        )

    values = tuple(entry.params.values())
    unfused = functools.partial(checks.unfused, op, entry=entry, dropout_p=p)
    own, exact = (
        checks.train(lambda args, values: unfused(args=args, values=values), a, dy, values)
        for a in (args, checks.each(lambda t: t.double(), args))
    )
    for actual, torchs, truth in zip(checks.train(fused, args, dy, values), own, exact, strict=True):
        assert_accurate(actual, torchs, truth)


def test_dropout_follows_the_generator(rng, device):
    args = tensors("mlp", rng, "descriptor", torch.float32, device)

    def draw(**options):
        return epilogue.mlp(**args, dropout_p=0.5, **options)

    torch.manual_seed(1)
    first, second = draw(training=True), draw(training=True)
    torch.manual_seed(1)
    assert torch.equal(draw(training=True), first)
    assert not torch.equal(first, second)
    assert torch.equal(draw(), epilogue.mlp(**args))
    state = torch.get_rng_state()
    draw()
    assert torch.equal(torch.get_rng_state(), state)
    everything = epilogue.mlp(**args, dropout_p=1.0, training=True)
    torch.testing.assert_close(everything, args["down_bias"].expand_as(everything))


def test_dropout_under_checkpointing(rng, device):
    from torch.utils.checkpoint import checkpoint

    args = {
        name: t.requires_grad_() for name, t in tensors("gated_mlp", rng, "descriptor", torch.float16, device).items()
    }
    function = functools.partial(epilogue.gated_mlp, dropout_p=0.4, training=True)
    results = []
    for wrapped in (function, functools.partial(checkpoint, function, use_reentrant=False)):
        torch.manual_seed(5)
        y = wrapped(*args.values())
        results.append([y, *torch.autograd.grad(y.float().square().sum(), args.values())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
