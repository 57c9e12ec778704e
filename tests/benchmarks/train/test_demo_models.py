"""The demo's transformers models: what they learn from, that the fused operations run, and what breaks a promise."""

import functools
import math

import pytest
import torch
from torch import nn

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
from epilogue.benchmarks.train import demo, kernel_step, side_by_side
from epilogue.benchmarks.train.language_models import Size
from epilogue.nn import fuse
from epilogue.nn.surgery import sites
from epilogue.nn.surgery.remade import is_remade

transformers = pytest.importorskip("transformers")
demo_models = pytest.importorskip("epilogue.benchmarks.train.demo_models")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

SMALL = demo_models.TransformersScale(Size(32, 48, 2, 2, 16), batch=4, steps=3, learning_rate=1e-2, tolerance=1e-5)
CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo_models, "FULL", SMALL)
    monkeypatch.setattr(kernel_step, "run", lambda model, device, interpret: "no kernel")


def test_the_llama_learns_each_next_byte():
    (x, labels), *_ = demo_models.next_bytes(SMALL, 2, "cpu")
    assert x.shape == (4, 16)
    model = demo_models.llama(SMALL.size)
    logits = model(input_ids=x).logits[:, :-1]
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
    torch.testing.assert_close(demo_models.loss_of(model, x, labels), expected)


def test_the_bert_learns_the_masked_bytes():
    wide = SMALL._replace(size=SMALL.size._replace(context=200))
    (x, labels), (other, _) = demo_models.masked_bytes(wide, 2, "cpu")
    (text, _), _ = demo_models.next_bytes(wide, 2, "cpu")
    masked = x == demo_models.MASK
    assert torch.equal(x[~masked], text[~masked])
    assert torch.equal(labels[masked], text[masked])
    assert (labels[~masked] == demo_models.IGNORED).all()
    assert masked.double().mean().item() == pytest.approx(demo_models.MASKED, abs=0.05)
    assert not torch.equal(masked, other == demo_models.MASK)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "operation", "calls"),
    [("llama", "gated_mlp", 2), ("bert", "linear", 3)],  # the BERT's head has one too
)
def test_both_train_alike_and_the_fused_one_runs_fused(name, operation, calls, monkeypatch, capsys, device):
    dtypes, original = [], getattr(sites, operation)
    monkeypatch.setattr(
        sites, operation, lambda x, *args, **kwargs: dtypes.append(x.dtype) or original(x, *args, **kwargs)
    )
    training = demo_models.run(name, torch.device(device), False, None)
    assert dtypes.count(torch.float32) == calls * SMALL.steps  # the trials are in float64
    assert training.broken == []
    assert training.stock.losses[0] == pytest.approx(math.log(256), rel=0.1)  # it knows nothing yet
    assert not any(is_remade(module) for module in training.stock.model.modules())
    printed = capsys.readouterr().out
    assert f"fuse(model): {calls} fused, 0 refused" in printed
    assert f"{SMALL.steps} steps of 4 x 16 bytes" in printed


@pytest.mark.usefixtures("small")
def test_a_wrong_operation_is_found(monkeypatch, tmp_path, capsys):
    original = sites.gated_mlp
    monkeypatch.setattr(demo_models, "fuse", functools.partial(fuse, verify=False))
    monkeypatch.setattr(sites, "gated_mlp", lambda *args, **kwargs: 1.01 * original(*args, **kwargs))
    assert demo.main("llama", interpret=False, steps=None, out=tmp_path, device="cpu") == 1
    assert "FAILED: the loss curves differ by" in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_a_model_in_which_nothing_is_fused_shows_nothing(monkeypatch):
    monkeypatch.setattr(demo_models, "fuse", functools.partial(fuse, exclude="*"))
    assert demo_models.run("llama", CPU, False, 1).broken == ["fuse found nothing in the model"]


def test_that_they_learn_is_promised_of_a_whole_training():
    run = side_by_side.begin("stock", nn.Linear(1, 1), 3, 1e-3)
    run.losses = [2.0, 1.5, 2.5]
    assert demo_models.unlearned(run, run, SMALL) == ["stock: the loss went from 2.0000 to 2.5000"] * 2
    run.losses = [2.0, 2.5]
    assert demo_models.unlearned(run, run, SMALL) == []


@pytest.mark.usefixtures("small")
def test_what_is_printed_and_drawn(tmp_path, capsys):
    assert demo.main("bert", interpret=False, steps=2, out=tmp_path, device=None) == 0
    printed = capsys.readouterr().out
    for row in (
        "BertForMaskedLM",
        "bert.encoder.layer.0…1.intermediate",
        "largest loss difference",
        "Not here: no kernel. On Linux",
        "linear 768 -> 3072, gelu",
    ):
        assert row in printed
    assert "held-out" not in printed
    assert (tmp_path / "demo-bert.png").read_bytes().startswith(b"\x89PNG")
