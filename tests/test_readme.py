"""The README's Python runs as it stands."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
import epilogue
import walk
from epilogue.benchmarks.bench import report
from epilogue.benchmarks.bench.results import load
from epilogue.benchmarks.train import memory
from epilogue.triton.plan.chips import CHIPS
from epilogue.triton.plan.dispatch import choose
from measured import products

README = Path(__file__).parent.parent / "README.md"
RESULTS = README.parent / "benchmarks/results"
MEMORY = RESULTS / "memory.json"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_first_example():
    namespace: dict = {}
    exec(BLOCKS[0], namespace)
    assert namespace["y"].shape == (8, 1024)
    assert namespace["layer"].weight.grad.isfinite().all()


def test_the_times_of_products_are_the_results():
    """Each row of the table: the bare product, the way that the dispatcher takes, cuBLAS and a pointwise kernel."""
    found = {}
    for _, problem, bare, times in products():
        if not problem.backward:
            label = ("SwiGLU" if problem.gated else problem.activation) + ", keeps" * problem.keeps
            taken = times[choose(problem, CHIPS["H200"])]
            texts = [f"{us:,.0f}" if us >= 100 else f"{us:.1f}" for us in (bare, taken, times["unfused"])]
            found[problem.m, problem.k, problem.n, label] = texts
    cells = re.findall(
        r"^\| ([\d,]+) × ([\d,]+) → ([\d,]+) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", TEXT, re.MULTILINE
    )
    assert len(cells) == 15
    for *sizes, label, bare, taken, unfused in cells:
        m, k, n = (int(size.replace(",", "")) for size in sizes)
        assert found[m, k, n, label] == [bare, taken, unfused]


def test_signatures_are_the_functions():
    """The block of signatures names the functions' own parameters and defaults."""
    import inspect

    calls = re.findall(r"epilogue\.(\w+)\((.*?)\)\s*(?:#|$)", BLOCKS[1], re.DOTALL | re.MULTILINE)
    assert len(calls) == 4
    for name, text in calls:
        arguments = inspect.signature(getattr(epilogue, name)).parameters.values()
        plain = ", ".join(str(argument.replace(annotation=argument.empty)) for argument in arguments)
        assert " ".join(text.split()) == plain.replace("'", '"')


def test_existing_models(capsys):
    pytest.importorskip("transformers")
    namespace: dict = {}
    exec(BLOCKS[2], namespace)
    assert f"```\n{capsys.readouterr().out}```\n" in README.read_text(encoding="utf-8")
    assert namespace["unfuse"](namespace["bert"]) == []  # nothing is left fused
    assert namespace["bert"].pooler.dense.weight.grad.isfinite().all()


@pytest.mark.usefixtures("own_activations")
def test_own_activation(tmp_path, monkeypatch):
    # From a file, since Triton reads a formula's source.
    (tmp_path / "own_activation.py").write_text(BLOCKS[3], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import own_activation  # type: ignore[import-not-found]

    assert own_activation.scaled_silu is epilogue.ACTIVATIONS["scaled_silu"]
    x, w = torch.randn(5, 6), torch.randn(4, 6)
    expected = 2.0 * torch.nn.functional.silu(x @ w.T)
    torch.testing.assert_close(epilogue.linear(x, w, activation="scaled_silu", scale=2.0), expected)
    numpys = epilogue.linear(x.numpy(), w.numpy(), activation="scaled_silu", scale=2.0)
    np.testing.assert_allclose(numpys, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_the_memory_table_is_the_result():
    table = memory.readme(json.loads(MEMORY.read_text(encoding="utf-8")))
    assert f"<!-- memory -->\n{table}\n<!-- /memory -->" in README.read_text(encoding="utf-8")


def test_the_coverage_of_fuse_is_the_result():
    part = walk.readme(json.loads((RESULTS / "fuse_walk.json").read_text(encoding="utf-8")))
    assert f"<!-- coverage -->\n{part}\n<!-- /coverage -->" in README.read_text(encoding="utf-8")


def test_explanation():
    text = README.read_text(encoding="utf-8")
    call, answer = re.findall(r">>> print\((epilogue\.explain.*)\)\n(.*\n.*)\n", text)[0]
    assert str(eval(call)).startswith(answer)


def test_the_part_about_speed_is_the_results():
    found, _ = load(RESULTS)
    part = report.readme(found, RESULTS, README)
    assert f"<!-- speed -->\n{part}\n<!-- /speed -->" in README.read_text(encoding="utf-8")


def test_error_message():
    message = re.search(r"ValueError: (unknown activation .*?) Known", README.read_text(encoding="utf-8"))
    assert message
    with pytest.raises(ValueError, match=re.escape(message[1])):
        epilogue.linear(torch.ones(2, 2), torch.ones(2, 2), activation="gleu")
