"""`epilogue demo`: a model built twice, stock and with epilogue: its training, a step through the kernels, and what a GPU would gain."""

from pathlib import Path

import torch

from epilogue.benchmarks.train import kernel_step, prediction
from epilogue.benchmarks.train.kernel_step import KernelStep
from epilogue.benchmarks.train.picture import draw
from epilogue.benchmarks.train.side_by_side import Training, backend, summary


def main(model: str, interpret: bool, steps: int | None, out: Path, device: str | None, gpu: str | None = None) -> int:
    """Train, print, draw; 1 where a promise is broken. model: "digits", or one of demo_models'; gpu: the one to predict for."""
    here = torch.cuda.is_available()
    if device == "cuda" and not here:
        raise SystemExit("epilogue demo: torch finds no GPU here (`epilogue doctor` says why); leave out --device")
    try:
        predicted = prediction.predict(model, gpu or (None if here else "H100"))
    except (ValueError, RuntimeError) as error:  # no such GPU; the backend that the environment chose cannot run
        raise SystemExit(f"epilogue demo: {str(error).removeprefix('explain: ')}") from error
    place = torch.device(device or ("cuda" if here and not interpret else "cpu"))
    torch.set_num_threads(1)  # with matrices this small threads only wait for one another, on a busy machine for long

    print("1. The same training twice, from the same weights on the same batches")
    training = _train(model, place, interpret, steps)
    ran, refusal = backend(training.fused.model)
    print(summary(training, ran))
    if refusal and place.type == "cpu":
        print("On a CPU epilogue's layers are plain torch operations too, so nothing differs yet.")

    print("\n2. One step through the GPU kernels, held against the same step in float64", flush=True)
    broken = training.broken
    step: KernelStep | str
    try:
        step = kernel_step.run(model, place, interpret)
    except RuntimeError as error:
        step = f"it failed: {str(error).splitlines()[-1]}"
        broken.append(f"the step through the kernels:\n{error}")
    if isinstance(step, str):
        print(f"Not here: {step}. On Linux Triton's interpreter runs it, and on any system an NVIDIA GPU.")
    else:
        print(f"{step.ran}; {step.batch}, float32")
        print(kernel_step.summary(step))
        broken += kernel_step.broken(step)
    if interpret and refusal:
        broken.append(f"no kernel ran: {refusal}")

    print(f"\n3. What a GPU gains, {predicted.how}: {predicted.gpu}, {prediction.CASE}")
    if predicted.products:
        print(prediction.summary(predicted))
        print("epilogue takes the faster way of each product; `epilogue tune` measures them on a GPU that is here.")
    else:
        print(f"There is no fused kernel: {predicted.because}.")
    path = out / f"demo{'' if model == 'digits' else f'-{model}'}{'-interpret' if interpret else ''}.png"
    draw(training, ran, step, predicted, path)
    print(f"\nall three as a picture: {path}")
    for promise in broken:
        print(f"FAILED: {promise}")
    return 1 if broken else 0


def _train(model: str, device: torch.device, interpret: bool, steps: int | None) -> Training:
    if model == "digits":  # each kind needs packages of its own
        from epilogue.benchmarks.train import demo_digits

        return demo_digits.run(device, interpret, steps)
    from epilogue.benchmarks.train import demo_models

    return demo_models.run(model, device, interpret, steps)
