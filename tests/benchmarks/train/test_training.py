"""The training step: both sides learn alike, what breaks is found, and the numbers follow from the times."""

import functools
import json
import math

import pytest
import torch

pytest.importorskip("tqdm")
from epilogue.benchmarks.bench.results import load
from epilogue.benchmarks.timing import Timing
from epilogue.benchmarks.train import training
from epilogue.benchmarks.train.language_models import Size
from epilogue.benchmarks.train.layers import STOCK, Layers
from epilogue.benchmarks.train.stock import MLP

SMALL = training.TINY._replace(
    sizes=dict.fromkeys(training.TINY.sizes, Size(16, 32, 1, 2, 8)), steps=4, learning_rate=2e-2
)


def made_up(layers, compiled, us=None, peak=None, loss=(5.0, 4.0)):
    return training.TrainingRow("llama", layers, compiled, 1000, 2_000_000, us, peak, loss)


@pytest.fixture(scope="module")
def trained(device):
    """Model -> its runs, trained once for all tests."""
    return functools.cache(functools.partial(lambda train, name: [*train(name, SMALL, device)], training.runs))


@pytest.fixture
def small(trained, monkeypatch):
    """Whatever is to be trained is small, and trained already."""
    monkeypatch.setattr(training, "runs", lambda name, scale, device: iter(trained(name)))


@pytest.mark.parametrize("name", training.MODELS)
def test_all_runs_learn_alike(name, trained):
    rows = [row for row, _ in trained(name)]
    assert [(row.layers, row.compiled) for row in rows] == [
        ("stock", False), ("stock", True), ("epilogue", False), ("epilogue", True),
    ]  # fmt: skip
    assert {len(row.loss) for row in rows} == {4}
    assert {row.tokens for row in rows} == {4 * 8}
    assert len({row.parameters for row in rows}) == 1
    assert training.training_faults(rows, 1e-3) == []
    assert rows[0].loss[0] == pytest.approx(math.log(256), rel=0.05)  # it knows nothing yet


class NoBiasGradient(MLP):
    """A layer with an error that shows only in training."""

    def forward(self, x):
        with torch.no_grad():
            offset = self.up.bias.clone()
        return self.down(self.activation(torch.nn.functional.linear(x, self.up.weight, offset)))


def test_a_wrong_gradient_is_found(monkeypatch):
    monkeypatch.setitem(training.LAYERS, "epilogue", Layers(STOCK.linear, NoBiasGradient, STOCK.gated_mlp))
    rows = [row for row, _ in training.runs("gpt2", training.TINY, "cpu")]
    broken = training.training_faults(rows, training.TINY.tolerance)
    assert [message.split(":")[0] for message in broken] == ["gpt2, epilogue, eager", "gpt2, epilogue, torch.compile"]
    assert "from stock eager's losses, allowed 1e-04" in broken[0]


def test_promises():
    stock = made_up("stock", False)
    assert training.training_faults([stock, made_up("epilogue", False, loss=(5.0, 4.01))], 0.02) == []
    assert training.gap(made_up("epilogue", False, loss=(4.5, 4.25)), stock) == 0.5
    (apart,) = training.training_faults([stock, made_up("epilogue", False, loss=(5.0, 4.03))], 0.02)
    assert apart.startswith("llama, epilogue, eager: 3.0e-02 from stock eager's")
    assert len(training.training_faults([stock, made_up("epilogue", False, loss=(5.0, math.nan))], 0.02)) == 2
    stuck = made_up("stock", False, loss=(5.0, 5.0))
    assert training.training_faults([stuck], 0.02) == ["llama, stock, eager: the loss went from 5.0000 to 5.0000"]


def test_a_step_leaves_no_gradients_and_goes_on(trained):
    ((row, call), *_) = trained("gpt2")
    model = call.args[0]
    assert all(parameter.grad is None for parameter in model.parameters())
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert call().item() < row.loss[0]
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_the_cells_are_arithmetic():
    rows = [
        made_up("stock", False, Timing(19_000.0, 20_000.0, 22_000.0), 200 << 20),
        made_up("stock", True, Timing(9_000.0, 10_000.0, 11_000.0), None),
        made_up("epilogue", False, Timing(14_000.0, 15_000.0, 16_000.0), 150 << 20),
        made_up("epilogue", True, Timing(7_000.0, 8_000.0, 9_000.0), None),
    ]
    heading, stock, _, eager, compiled = training.cells(rows)
    assert stock == (
        "llama",
        "2 M",
        "1000",
        "stock, eager",
        "20.00",
        "19.00 - 22.00",
        "50,000",
        "200",
        "1.000",
        "1.000",
    )
    assert dict(zip(heading, eager, strict=True)) == {
        "model": "llama", "parameters": "2 M", "tokens": "1000", "run": "epilogue, eager", "ms per step": "15.00",
        "quartiles": "14.00 - 16.00", "tokens/s": "66,667", "peak MiB": "150", "time / stock": "0.750", "peak / stock": "0.750",
    }  # fmt: skip
    assert compiled[-4:] == ("125,000", "", "0.800", "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.usefixtures("small")
def test_without_a_gpu_nothing_is_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training.timing, "measure", None)
    assert training.main(None) == 0
    printed = capsys.readouterr().out
    assert "plain torch operations. It is not timed." in printed
    assert printed.count("epilogue, torch.compile") == 2
    assert "tokens/s" not in printed
    with pytest.raises(SystemExit, match="nothing is timed"):
        training.main(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small")
def test_the_result_is_written_and_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "machine", lambda: {"date": "2001-01-01", "gpu": "NVIDIA Test 100", "versions": {}})
    assert training.compare(SMALL, "cpu", 0.01, tmp_path / "new") == 0
    assert capsys.readouterr().out.count("tokens/s") == 1
    (results,), left_out = load(tmp_path / "new")
    assert (results.gpu, left_out) == ("NVIDIA Test 100", [])
    assert [(row.model, row.run) for row in results.steps[3:5]] == [
        ("llama", "epilogue, torch.compile"), ("gpt2", "stock, eager"),
    ]  # fmt: skip
    assert all(0 < row.us[0] <= row.us[1] <= row.us[2] for row in results.steps)
    written = json.loads((tmp_path / "new" / "training-nvidia-test-100.json").read_text())
    assert len(written["rows"]) == 8
    assert written["rows"][0]["loss"] == results.steps[0].loss


@pytest.mark.usefixtures("small")
def test_no_number_before_the_losses_agree(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training.timing, "measure", None)
    assert training.compare(SMALL._replace(tolerance=-1.0), "cpu", 0.01, tmp_path) == 1
    printed = capsys.readouterr().out
    assert "FAILED: llama, stock, eager" in printed
    assert "tokens/s" not in printed
    assert list(tmp_path.iterdir()) == []
