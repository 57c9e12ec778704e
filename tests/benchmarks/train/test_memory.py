"""Bytes kept for backward: the counts against arithmetic, on blocks small enough to count by hand, and what is made of them."""

import functools
import json
import shutil

import pytest
import torch
from torch import nn

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
from epilogue.benchmarks import cli, report
from epilogue.benchmarks.shapes import SHAPES, Shape
from epilogue.benchmarks.train import memory
from epilogue.catalogue import ACTIVATIONS

D, F = 64, 256
GATED = Shape("gated", D, F, "silu", gated=True, bias=False)
PLAIN = Shape("plain", D, F, "gelu", gated=False, bias=True)

measured = functools.cache(memory.measure)


def test_each_storage_counts_once_and_no_parameter():
    def kept(*layers):
        module = nn.Sequential(*layers)
        return memory.bytes_kept(functools.partial(module, torch.randn(2, 4)), module)

    assert kept(nn.Linear(4, 10)) == 4 * 2 * 4
    with_output = kept(nn.Linear(4, 10), nn.Sigmoid())
    assert with_output == 4 * 2 * (4 + 10)
    assert kept(nn.Linear(4, 10), nn.Sigmoid(), nn.Flatten(), nn.Linear(10, 3)) == with_output  # as an input once more


@pytest.mark.parametrize(
    ("shape", "elements"),
    [
        (GATED, D + 4 * F),  # x, gate, up, silu(gate), the product
        (PLAIN, D + 2 * F),  # x, z, gelu(z)
        (PLAIN._replace(activation="relu"), D + F),  # x, relu(z)
        (GATED._replace(dropout=0.1), D + 4.5 * F),  # and a mask of bytes; the dropped product stands for the product
    ],
)
def test_eager_keeps_what_arithmetic_says(shape, elements, device):
    assert measured(shape, device)["eager"] == pytest.approx(2 * elements, abs=0)


def test_epilogue_keeps_no_more_than_eager(device):
    for shape in (GATED, PLAIN):
        kept = measured(shape, device)
        assert set(kept) == {"eager", "torch.compile", *memory.OURS}
        assert 2 * D < kept["epilogue"] <= kept["eager"]


def test_twice_the_tokens_are_twice_the_bytes(device):
    for shape in (GATED, PLAIN):
        assert measured(shape, device) == memory.measure(shape, device, tokens=2 * memory.TOKENS)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_the_compilers_bytes_are_inductors():
    torch.compiler.reset()
    block, x = memory.blocks(GATED, "cpu")["eager"], torch.randn(16, D, dtype=memory.DTYPE, requires_grad=True)
    inductor = torch.compile(block, fullgraph=True, dynamic=False)
    assert memory.bytes_kept(functools.partial(inductor, x), block) / 16 == measured(GATED, "cpu")["torch.compile"]


def test_all_columns_share_their_weights():
    blocks = memory.blocks(PLAIN, "cpu")
    for block in blocks.values():
        assert [p.data_ptr() for p in block.parameters()] == [p.data_ptr() for p in blocks["eager"].parameters()]


def test_the_shapes_are_of_known_activations():
    assert {shape.activation for shape in SHAPES} <= ACTIVATIONS.keys()
    assert len({shape.model for shape in SHAPES}) == len(SHAPES)


@pytest.fixture
def written(tmp_path, monkeypatch, device):
    """The command's result for two small shapes: its file."""
    monkeypatch.setattr(memory, "SHAPES", (GATED._replace(dropout=0.1), PLAIN))
    monkeypatch.setattr(memory.triton, "refusal", lambda x, weight: None)
    monkeypatch.setattr(memory, "measure", measured)
    path = tmp_path / "new" / "memory.json"
    assert memory.main(None, path, None, None) == 0
    return path


def test_the_command_writes_everything(written, tmp_path, capsys):
    document, plot = tmp_path / "README.md", tmp_path / "plots" / "memory.png"
    document.write_text("before\n<!-- memory -->\nold\n<!-- /memory -->\nafter\n")
    command = ["memory", "--from", str(written), "--plot", str(plot), "--readme", str(document)]
    for _ in range(2):
        assert cli.main(command) == 0
    result = json.loads(written.read_text())
    assert {"date", "gpu", "versions", "case", "rows"} <= result.keys()
    assert result["case"]["dtype"] == "bfloat16"
    assert [row["model"] for row in result["rows"]] == ["gated", "plain"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert document.read_text() == f"before\n<!-- memory -->\n{memory.readme(result)}\n<!-- /memory -->\nafter\n"
    assert "| gated | swiglu | 64 | 256 | 0.1 | 2.4 |" in document.read_text()
    assert "swiglu" in capsys.readouterr().out


def test_a_missing_result_is_said(tmp_path):
    with pytest.raises(SystemExit, match=r"no file .*kept\.json; --json writes one"):
        cli.main(["memory", "--from", str(tmp_path / "kept.json")])


def test_a_readme_without_its_place_is_said(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("nothing here\n")
    with pytest.raises(SystemExit, match="no lines <!-- memory --> and"):
        report.fill(path, "memory", "text")
    assert path.read_text() == "nothing here\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_kernel_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(memory.triton, "refusal", lambda x, weight: "Triton is missing")
    with pytest.raises(SystemExit, match="no Triton kernel runs here, Triton is missing"):
        memory.run()
