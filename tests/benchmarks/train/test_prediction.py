"""The demo's prediction: the numbers are explain's, whatever the GPU, and where nothing is predicted that is said."""

import pytest
import torch

import epilogue
from epilogue.benchmarks.train import prediction


@pytest.mark.parametrize("model", prediction.LAYERS)
def test_the_numbers_are_those_of_explain(model):
    found = prediction.predict(model, "l40s")
    assert found.gpu == "NVIDIA L40S"
    op, k, n, activation = prediction.LAYERS[model][0]
    steps = epilogue.explain(op, prediction.ROWS, k, n, activation=activation, training=True, gpu="L40S").steps
    times = [candidate.microseconds for candidate in steps[0].candidates]
    assert min(found.products[0].fused, found.products[0].unfused) == min(times)
    assert found.products[0].unfused in times
    assert f"{found.products[0].fused:.0f} us" in prediction.summary(found)


def test_a_backend_without_fused_kernels():
    with epilogue.backend("eager"):
        found = prediction.predict("digits", "H100")
    assert (found.products, found.because) == ([], "eager was chosen")


def test_what_was_measured_is_called_so(monkeypatch):
    from epilogue.triton.plan import tuned

    monkeypatch.setattr(tuned, "lookup", lambda problem, chip: ("unfused", 5.0))
    found = prediction.predict("bert", "H100")
    assert found.how == "predicted, in part measured"
    assert found.products[0].unfused == 5.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_one_is_named():
    with pytest.raises(ValueError, match="there is no GPU here"):
        prediction.predict("digits", None)
