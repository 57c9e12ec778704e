"""`fuse` over every model type of transformers: an hour, so only on request (`pytest -m slow tests/nn/test_walk.py`)."""

import pytest

pytest.importorskip("transformers")
import walk


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_model_type(capsys):
    results = walk.walk()
    with capsys.disabled():
        print(walk.table(results))
    assert not [name for name, result in results.items() if result.get("wrong") or "failed" in result]
    assert walk.coverage(results) >= 0.95
