"""The report of what `fuse` finds: in a transformers config, in a function's model; and what it says where there is none."""

import json
import os
import subprocess
import sys

import pytest
from torch import nn

from epilogue.benchmarks import cli
from epilogue.benchmarks.offline import fuse_report

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 12, "num_attention_heads": 32, "vocab_size": 1000,
}  # fmt: skip
MINE = """
from torch import nn

def model():
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))

def number():
    return 3

def fails():
    raise KeyError("weights")

nothing = None
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory; the search path and the environment are as before afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine_to_report", raising=False)
    return tmp_path


@pytest.fixture
def mine(here):
    (here / "mine_to_report.py").write_text(MINE)


@pytest.fixture
def config(here):
    def write(**changes):
        (here / "config.json").write_text(json.dumps({**LLAMA, **changes}))

    return write


def test_a_transformers_config(config, capsys):
    pytest.importorskip("transformers")
    config()
    assert cli.main(["fuse-report", "config.json"]) == 0
    head, *report = capsys.readouterr().out.splitlines()
    assert head.startswith("LlamaForCausalLM, 2,9")  # a size that only the meta device builds at once
    assert head.endswith("M parameters, on the meta device")
    assert report[0] == "would fuse 12, 0 refused"
    assert report[2].split() == ["model.layers.0…11.mlp", "12", "gated", "silu"]


def test_without_architectures_the_base_model(config, capsys):
    pytest.importorskip("transformers")
    config(architectures=None)
    assert fuse_report.main("config.json") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("LlamaModel, ")
    assert "\nlayers.0…11.mlp" in printed


def test_quantised_layers_are_mentioned(config, capsys):
    pytest.importorskip("transformers")
    config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert fuse_report.main("config.json") == 0
    assert "asks for quantised layers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, r"config.json: transformers \S+ has no model_type 'lama'"),
        ({"model_type": None}, "has no model_type None"),
        ({"architectures": ["LamaForCausalLM"]}, r"transformers \S+ has no class LamaForCausalLM"),
        ({"num_attention_heads": 3}, "config.json cannot be built on the meta device: .*attention heads"),
    ],
)
def test_configs_without_a_model(changes, message, config):
    pytest.importorskip("transformers")
    config(**changes)
    with pytest.raises(SystemExit, match=f"(?s)epilogue fuse-report: .*{message}"):
        fuse_report.main("config.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is no JSON: Expecting property name"),
        ("[1]", "config.json is no transformers config: it holds a list"),
    ],
)
def test_files_without_a_config(text, message, here):
    (here / "config.json").write_text(text)
    with pytest.raises(SystemExit, match=message):
        fuse_report.main("config.json")


@pytest.mark.usefixtures("mine")
def test_a_function(capsys):
    assert cli.main(["fuse-report", "mine_to_report:model"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Sequential, 0.0 M parameters, on the meta device\nwould fuse 1, 0 refused\n")
    assert printed.rstrip().endswith("sequential  relu")


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mine_to_report:absent", "mine_to_report has no function absent"),
        ("mine_to_report:nothing", "mine_to_report has no function nothing"),
        ("not_there:model", "not_there cannot be imported: ModuleNotFoundError: No module named 'not_there'"),
        ("mine_to_report:number", "mine_to_report:number returns no torch.nn.Module, but int"),
        ("mine_to_report:fails", "mine_to_report:fails cannot be built on the meta device: KeyError: 'weights'"),
    ],
)
def test_functions_without_a_model(target, message):
    with pytest.raises(SystemExit, match=f"epilogue fuse-report: {message}"):
        fuse_report.main(target)


def test_the_model_is_built_without_memory_and_left_as_it_is(mine):
    model = fuse_report.from_callable("mine_to_report:model")
    assert type(model) is nn.Sequential
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.usefixtures("mine")
def test_the_current_directory_is_importable_in_safe_mode(here):
    command = [sys.executable, "-m", "epilogue", "fuse-report", "mine_to_report:model"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    result = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "would fuse 1" in result.stdout


def test_an_installed_module_comes_before_one_that_lies_here(here, monkeypatch):
    (here / "installed").mkdir()
    monkeypatch.syspath_prepend(here / "installed")
    (here / "installed" / "twice_to_report.py").write_text(MINE)
    (here / "twice_to_report.py").write_text("nothing = None")
    assert fuse_report.main("twice_to_report:model") == 0


def test_transformers_is_named_where_it_lacks(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r'fuse-report: transformers not installed; pip install "\.\[demo\]"'):
        cli.main(["fuse-report", "config.json"])
