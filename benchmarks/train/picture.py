"""The demo's picture: the training, the step through the kernels, the prediction; a panel each."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epilogue.benchmarks.train.kernel_step import KernelStep
from epilogue.benchmarks.train.prediction import CASE, Prediction
from epilogue.benchmarks.train.side_by_side import Training, gaps

STOCK, OURS = "tab:gray", "tab:blue"


def draw(training: Training, ran: str, step: KernelStep | str, prediction: Prediction, path: Path) -> None:
    """Draw the three panels; step: what was measured, or why nothing was."""
    figure = Figure(figsize=(15, 5), layout="constrained")
    panels = figure.subplots(1, 3)
    _training(panels[0], training, ran)
    if isinstance(step, str):
        _nothing(panels[1], "One step through the kernels", f"not run here:\n{step}")
    else:
        _step(panels[1], step)
    if prediction.products:
        _prediction(panels[2], prediction)
    else:
        _nothing(panels[2], prediction.gpu, f"no fused kernel:\n{prediction.because}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _training(panel: Axes, training: Training, ran: str) -> None:
    for run, color, width, note in ((training.stock, STOCK, 4, ""), (training.fused, OURS, 1, f" ({ran})")):
        accuracy = "" if run.accuracy is None else f", {run.accuracy:.1%} of held-out digits"
        panel.plot(run.losses, linewidth=width, color=color, label=f"{run.name}{accuracy}{note}")
    largest = max(gaps(training.stock, training.fused))
    panel.set_title(f"Training: {training.title}\nlargest distance of the two losses: {largest:.1g}", fontsize=10)
    panel.set(xlabel="step", ylabel="training loss")
    panel.legend(fontsize=8)


def _step(panel: Axes, step: KernelStep) -> None:
    ratios, (stock, fused) = step.ratios, (step.stock, step.fused)
    details = (
        f"{fused.kept / 1024:,.0f} KiB\nof {stock.kept / 1024:,.0f}",
        f"{fused.peak / 1024:,.0f} KiB\nof {stock.peak / 1024:,.0f}",
        f"{fused.error:.1e}\nof {stock.error:.1e}",
    )
    names = [name.replace(" of ", "\nof ").replace(" for ", "\nfor ") for name in ratios]
    bars = panel.bar(names, list(ratios.values()), 0.6, color=OURS)
    labels = [f"{ratio:.2f}\n{detail}" for ratio, detail in zip(ratios.values(), details, strict=True)]
    panel.bar_label(bars, labels, label_type="center", color="white", fontsize=8)
    panel.axhline(1, color=STOCK, linewidth=3, label="torch.nn")
    panel.set_title(f"One step, {step.batch}: {step.ran}\nepilogue relative to torch.nn, lower is better", fontsize=10)
    panel.legend(fontsize=8, loc="upper left")
    panel.set_ylim(0, 1.2 * max(1, *ratios.values()))


def _prediction(panel: Axes, prediction: Prediction) -> None:
    products = prediction.products
    for shift, color, label, times in (
        (-0.2, STOCK, "cuBLAS, then a kernel for the activation", [product.unfused for product in products]),
        (0.2, OURS, "fused", [product.fused for product in products]),
    ):
        bars = panel.barh([i + shift for i in range(len(products))], times, 0.4, color=color, label=label)
        panel.bar_label(bars, [f"{us:.0f}" for us in times], padding=2, fontsize=8)
    panel.set_yticks(range(len(products)), [f"{product.layer}\n{product.name}" for product in products], fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.12)
    panel.set_title(f"{prediction.gpu}, {prediction.how}\n{CASE}", fontsize=10)
    panel.set(xlabel="microseconds; shorter is better")
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False, fontsize=8)


def _nothing(panel: Axes, title: str, text: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.axis("off")
    panel.text(0.5, 0.5, text, ha="center", va="center", wrap=True)
