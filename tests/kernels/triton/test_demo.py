"""`epilogue demo --interpret` on the kernels themselves: each model trains as the stock one."""

import pytest

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("transformers")
from epilogue.benchmarks.train import demo
from epilogue.triton import INTERPRET


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.skipif(not INTERPRET, reason="the demo on a GPU is `epilogue demo`")
@pytest.mark.parametrize(
    ("model", "picture"),
    [("digits", "demo-interpret.png"), ("llama", "demo-llama-interpret.png"), ("bert", "demo-bert-interpret.png")],
)
def test_it_trains_through_the_kernels(model, picture, tmp_path, capsys):
    assert demo.main(model, interpret=True, steps=2, out=tmp_path, device=None) == 0
    assert "Triton, interpreted" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [picture]
