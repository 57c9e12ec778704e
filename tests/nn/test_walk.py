"""`fuse` over every model type of transformers: an hour, so only on request (`pytest -m slow tests/nn/test_walk.py`)."""

import pytest

pytest.importorskip("transformers")
import walk


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_model_type(capsys):
    found = walk.summary(walk.walk())
    with capsys.disabled():
        print(walk.readme(found))
    assert not found["wrong"]
    assert not found["failed"]
    assert found["coverage"] >= 0.98


def test_one_model_type():
    found = walk.summary(walk.walk(["gpt2", "bitnet"]))
    assert found["fused"] == {
        "glu": {"modules": 2, "classes": 1, "types": 1},
        "plain": {"modules": 2, "classes": 1, "types": 1},
    }
    assert found["refused"] == {}
    assert (found["types"], found["made"], found["fused somewhere"]) == (2, 2, 2)
    assert "It fuses 100.0% of the modules" in walk.readme(found)
