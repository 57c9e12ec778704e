"""`epilogue demo`: a model trained twice from the same weights, stock and with epilogue, side by side."""

from pathlib import Path

import torch

from epilogue.benchmarks.train.side_by_side import backend, draw, summary


def main(model: str, interpret: bool, steps: int | None, out: Path, device: str | None) -> int:
    """Train, print, draw; 1 where a promise is broken. model: "digits", or one of demo_models'."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("epilogue demo: torch finds no GPU here (`epilogue doctor` says why); leave out --device")
    if device is None:
        device = "cuda" if torch.cuda.is_available() and not interpret else "cpu"
    torch.set_num_threads(1)  # with matrices this small threads only wait for one another, on a busy machine for long
    if model == "digits":  # each kind needs packages of its own
        from epilogue.benchmarks.train import demo_digits

        training = demo_digits.run(torch.device(device), interpret, steps)
    else:
        from epilogue.benchmarks.train import demo_models

        training = demo_models.run(model, torch.device(device), interpret, steps)
    ran, refusal = backend(training.fused.model)
    print(summary(training, ran))
    broken = training.broken
    if refusal and interpret:
        broken.append(f"no kernel ran: {refusal}")
    elif refusal:
        print(f"No kernel ran: {refusal}. Plain torch operations keep for backward what the stock layers keep.")
        print("An NVIDIA GPU runs the kernels, and so does `epilogue demo --interpret` on any Linux machine.")
    path = out / f"demo{'' if model == 'digits' else f'-{model}'}{'-interpret' if interpret else ''}.png"
    draw(training, ran, path)
    print(f"loss curves: {path}")
    for promise in broken:
        print(f"FAILED: {promise}")
    return 1 if broken else 0
