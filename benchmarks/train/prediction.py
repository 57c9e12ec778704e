"""The demo's third part: what `epilogue.explain` predicts for a GPU that need not be here."""

from typing import NamedTuple

from epilogue import explain
from epilogue.benchmarks.report import table
from epilogue.explanation import Step
from epilogue.triton.plan.configs import Config
from epilogue.typing import OpName

ROWS = 8192
CASE = f"{ROWS:,} rows, bfloat16, training"
LAYERS: dict[str, tuple[tuple[OpName, int, int, str], ...]] = {
    "digits": (("linear", 1024, 4096, "gelu"), ("mlp", 1024, 4096, "gelu"), ("gated_mlp", 1024, 2816, "silu")),
    "llama": (("gated_mlp", 4096, 14336, "silu"),),
    "bert": (("linear", 768, 3072, "gelu"),),
}
"""The demos' models -> their layers with the sizes of published models: operation, features in, features out or hidden, activation."""


class Product(NamedTuple):
    """One product of a layer in training: microseconds of cuBLAS with a pointwise kernel, and of the fused kernel."""

    layer: str
    name: str
    unfused: float
    fused: float


class Prediction(NamedTuple):
    """The layers' products on a GPU; because: why there are none, where the backend that was chosen has no fused kernels."""

    gpu: str
    products: list[Product]
    how: str
    because: str


def predict(model: str, gpu: str | None) -> Prediction:
    """Explain the demo model's layers on that GPU, by default this machine's; ValueError for an unknown one."""
    products, how = [], "predicted, not measured"
    for op, k, n, activation in LAYERS[model]:
        found = explain(op, ROWS, k, n, activation=activation, training=True, gpu=gpu)
        label = f"{op} {k} -> {n}, {activation}"
        products += [Product(label, step.name, _least(step, False), _least(step, True)) for step in found.steps]
        if any(candidate.measured for step in found.steps for candidate in step.candidates):
            how = "predicted, in part measured"
    return Prediction(found.gpu, products, how, found.because)


def _least(step: Step, fused: bool) -> float:
    return min(us for choice, us, _ in step.candidates if isinstance(choice, Config) == fused)


def summary(prediction: Prediction) -> str:
    """A table of the products."""
    rows = [("layer", "product", "cuBLAS + activation", "fused", "ratio")]
    for layer, name, unfused, fused in prediction.products:
        rows.append((layer, name, f"{unfused:.0f} us", f"{fused:.0f} us", f"{fused / unfused:.2f}"))
    return table(rows)
