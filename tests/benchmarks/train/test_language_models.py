"""The two language models: causal, their positions right, the same from stock layers and from epilogue's."""

import pytest
import torch

from epilogue.benchmarks.train.language_models import MODELS, Size, batches, gpt2, llama, rotary, rotated, text
from epilogue.benchmarks.train.layers import FUSED, STOCK
from epilogue.nn import FusedGatedMLP, FusedMLP

SIZE = Size(d=32, hidden=48, blocks=2, heads=4, context=10)


@pytest.fixture(params=MODELS)
def make(request):
    return MODELS[request.param]


def tokens(count=3):
    return torch.randint(256, (count, SIZE.context))


def test_no_position_sees_what_follows(make):
    model, before = make(STOCK, SIZE), tokens()
    after = before.clone()
    after[:, 6:] = (after[:, 6:] + 1) % 256
    logits, changed = model.logits(before), model.logits(after)
    torch.testing.assert_close(changed[:, :6], logits[:, :6])
    assert not torch.allclose(changed[:, 6:], logits[:, 6:])


def test_order_matters(make):
    """Without positions, attention to the same bytes in another order would give the last one the same logits."""
    model, straight = make(STOCK, SIZE), tokens(1)
    swapped = straight.clone()
    swapped[:, [0, 1]] = straight[:, [1, 0]]
    swapped[:, 0] = (straight[:, 0] + 1) % 256 if straight[0, 0] == straight[0, 1] else swapped[:, 0]
    assert not torch.allclose(model.logits(swapped)[:, -1], model.logits(straight)[:, -1], atol=1e-6)


def test_rotated_products_depend_on_the_distance_alone():
    q, k = torch.randn(2, SIZE.d // SIZE.heads)
    rotation = rotary(SIZE)
    products = rotated(q.expand(SIZE.context, -1), rotation) @ rotated(k.expand(SIZE.context, -1), rotation).T
    for distance in range(SIZE.context):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(products[0, 0], q @ k)
    assert products[0].std() > 0.01


def test_the_loss_is_that_of_the_following_bytes(make):
    model, x = make(STOCK, SIZE), tokens()
    following = tokens()
    chosen = model.logits(x).log_softmax(-1).gather(-1, following[..., None])
    torch.testing.assert_close(model(x, following), -chosen.mean())


def test_both_kinds_of_layers_are_one_model(make):
    stock, fused = make(STOCK, SIZE), make(FUSED, SIZE)
    fused.load_state_dict(stock.state_dict(), strict=True)
    x = tokens()
    torch.testing.assert_close(fused.logits(x), stock.logits(x))


def test_the_blocks_are_what_they_say():
    assert all(
        isinstance(block.mlp, FusedGatedMLP) and block.mlp.up.bias is None for block in llama(FUSED, SIZE).blocks
    )
    for block in gpt2(FUSED, SIZE).blocks:
        assert isinstance(block.mlp, FusedMLP)
        assert block.mlp.activation.name == "gelu_tanh"
        assert block.mlp.up.bias is not None


def test_the_batches_are_the_text_and_what_follows():
    size = Size(16, 32, 1, 2, context=8)
    first, again = (batches(size, 4, 2, "cpu") for _ in range(2))
    assert len(first) == 2
    for (x, following), (same, _) in zip(first, again, strict=True):
        assert x.shape == following.shape == (4, 8)
        assert torch.equal(x, same)
        assert torch.equal(x[:, 1:], following[:, :-1])
        for stretch in x:
            assert bytes(stretch.tolist()) in bytes(text().tolist())
