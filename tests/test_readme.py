"""The README's Python runs as it stands, and its tables are what the code and the results say."""

import importlib
import inspect
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
import epilogue
import readme_tables
import walk
from epilogue.benchmarks.bench import report
from epilogue.benchmarks.bench.results import load
from epilogue.benchmarks.cli import COMMANDS
from epilogue.benchmarks.train import memory
from epilogue.triton.plan.chips import CHIPS
from epilogue.triton.plan.dispatch import choose
from epilogue.vocabulary import PRIMITIVES
from measured import products

README = Path(__file__).parent.parent / "README.md"
RESULTS = README.parent / "benchmarks/results"
TEXT = README.read_text(encoding="utf-8")
EXAMPLES = {
    name: (code, output)
    for name, code, output in re.findall(
        r"^<!-- example: ([^\n]+) -->\n```python\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?", TEXT, re.DOTALL | re.MULTILINE
    )
}
"""Name of an example -> its code, and what it prints."""
NEEDS = {"an existing model": ["transformers"], "LoRA": ["transformers", "peft"]}


def part(name):
    """What stands between the README's lines `<!-- name -->` and `<!-- /name -->`."""
    return re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", TEXT, re.DOTALL)[1]


@pytest.fixture
def run(tmp_path, monkeypatch, own_activations):
    """Run an example and return its names. It is a file, since `fuse` and Triton read sources."""
    monkeypatch.syspath_prepend(tmp_path)

    def run(name):
        for package in NEEDS.get(name, ()):
            pytest.importorskip(package)
        (tmp_path / "readme_example.py").write_text(EXAMPLES[name][0], encoding="utf-8")
        try:
            return vars(importlib.import_module("readme_example"))
        finally:
            sys.modules.pop("readme_example", None)

    return run


def test_each_block_of_python_is_run_or_a_list_of_signatures():
    assert TEXT.count("```python\n") == len(EXAMPLES) + TEXT.count("<!-- signatures -->\n```python\n")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # which peft calls
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_says(run, capsys, name):
    run(name)
    assert capsys.readouterr().out == EXAMPLES[name][1]


def test_layers(run):
    names = run("layers")
    assert names["y"].shape == (8, 1024)
    assert names["layer"].weight.grad.isfinite().all()


def test_an_existing_model(run):
    names = run("an existing model")
    assert names["unfuse"](names["bert"]) == []  # nothing is left fused
    assert names["bert"].pooler.dense.weight.grad.isfinite().all()


def test_own_activation(run):
    layer = run("own activation")["layer"]
    x = torch.randn(5, 64)
    z = torch.nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), z + z.sin().square())
    arrays = [tensor.detach().numpy() for tensor in (x, layer.weight, layer.bias)]
    numpys = epilogue.linear(*arrays, activation="snake", alpha=2.0)
    np.testing.assert_allclose(numpys, (z + (2.0 * z).sin().square() / 2.0).detach(), rtol=1e-5, atol=1e-6)


def test_the_vocabulary_of_formulas():
    named = re.search(r"the functions of `epilogue.vocabulary`: (.*?)\. ", TEXT, re.DOTALL)[1]
    assert sorted(re.findall(r"`(\w+)`", named)) == sorted(PRIMITIVES)


def test_signatures_are_the_functions():
    """The block of signatures names the functions' own parameters and defaults."""
    block = re.search(r"<!-- signatures -->\n```python\n(.*?)```", TEXT, re.DOTALL)[1]
    calls = re.findall(r"epilogue\.(\w+)\((.*?)\)\s*(?:#|$)", block, re.DOTALL | re.MULTILINE)
    assert len(calls) == 4
    for name, text in calls:
        signature = inspect.signature(getattr(epilogue, name))
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        plain = str(signature.replace(parameters=bare, return_annotation=signature.empty))
        assert " ".join(text.split()) == plain[1:-1].replace("'", '"')


def test_the_first_table_is_what_was_counted_and_what_explain_says():
    assert part("benefit") == readme_tables.benefit()


def test_the_table_of_activations_is_the_catalogue():
    """`python tests/readme_tables.py` makes it again."""
    assert part("activations") == readme_tables.catalogue()


def test_the_aliases_of_the_table_are_names():
    for name, *_, aliases, _, _ in re.findall(
        r"^\| `(\w+)` " + r"\| (.*?) " * 5 + r"\|$", part("activations"), re.MULTILINE
    ):
        for alias in re.findall(r"`(\w+)`", aliases):
            assert epilogue.resolve(alias) == (epilogue.ACTIVATIONS[name], {})


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


def test_the_memory_table_is_the_result():
    assert part("memory") == memory.readme(json.loads((RESULTS / "memory.json").read_text(encoding="utf-8")))


def test_the_coverage_of_fuse_is_the_result():
    assert part("coverage") == walk.readme(json.loads((RESULTS / "fuse_walk.json").read_text(encoding="utf-8")))


def test_the_part_about_speed_is_the_results():
    found, _ = load(RESULTS)
    assert part("speed") == report.readme(found, RESULTS, README)


def test_explanation():
    call, answer = re.findall(r">>> print\((epilogue\.explain.*)\)\n(.*\n.*)\n", TEXT)[0]
    assert str(eval(call)).startswith(answer)


def test_each_command_is_named():
    table = re.search(r"### Commands\n(.*?)\n#", TEXT, re.DOTALL)[1]
    named = re.findall(r"`(?:epilogue )?([a-z-]+)[^`]*`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    assert sorted(named) == sorted(COMMANDS)


def test_the_gpus_that_explain_knows():
    named = re.search(r"GPUs from their data sheets: (.*?)\.", TEXT, re.DOTALL)[1]
    assert sorted(re.split(r",\s+", named)) == sorted(CHIPS)


def test_error_message():
    message = re.search(r"ValueError: (unknown activation .*?) Known", TEXT)
    assert message
    with pytest.raises(ValueError, match=re.escape(message[1])):
        epilogue.linear(torch.ones(2, 2), torch.ones(2, 2), activation="gleu")
    assert "did you mean dropout_p?" in TEXT
    with pytest.raises(TypeError, match=re.escape("did you mean dropout_p?")):
        epilogue.mlp(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2), dropout=0.1)


def test_no_picture_is_relative():
    """PyPI shows the README too, without this repository's files."""
    assert not re.search(r"!\[[^]]*\]\((?!https?://)", TEXT)
