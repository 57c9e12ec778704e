"""The pictures: which there are, and that their dots are the cases. All data is made up."""

import pytest

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
from epilogue.benchmarks.bench import plots
from epilogue.benchmarks.bench.results import GPUResults, Roof, row_of
from made_up import GPU, provider, row


def results_of(*rows):
    read = [row_of(row, Roof(800.0, 4000.0)) for row in rows]
    return GPUResults(GPU, rows={row.case: row for row in read})


FAST, EAGER = {"epilogue": provider(50.0)}, {"eager": provider(100.0)}


def test_only_what_was_measured_is_drawn(tmp_path):
    assert plots.draw(results_of(row(providers=FAST), row(dtype="float16", providers=FAST | EAGER)), tmp_path) == []
    paths = plots.draw(results_of(row(providers=FAST | EAGER)), tmp_path)
    assert [path.name for path in paths] == ["speed-nvidia-test-100.png"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")


def test_a_dot_is_a_case(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(plots.Figure, "savefig", lambda figure, path, dpi: figures.append(figure))
    slow = {"epilogue": provider(150.0)}
    plots.draw(
        results_of(
            row(tokens=1, providers=slow | EAGER),
            row(tokens=8, providers=FAST | EAGER),
            row(tokens=8, model="Other", providers=FAST | EAGER),
            row(tokens=8, op="mlp", providers=FAST | EAGER),
        ),
        tmp_path,
    )
    (figure,) = figures
    linear, mlp = figure.axes
    assert [axes.get_title(loc="left") for axes in (linear, mlp)] == ["linear, inference", "mlp, inference"]
    assert [label.get_text() for label in linear.get_yticklabels()] == ["Testnet", "Other"]
    one, eight = linear.collections
    assert one.get_offsets().tolist() == [[1.5, 0.0]]
    assert eight.get_offsets().tolist() == [[0.5, 0.0], [0.5, 1.0]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1", "8"]
