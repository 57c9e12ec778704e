"""The demo's second part: one step of training through the kernels themselves, beside torch.nn's and held against float64.

On a GPU the kernels are compiled. On a CPU they run in Triton's interpreter, in a process of its own: this one has imported epilogue
without Triton's switch.
"""

import copy
import functools
import gc
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from epilogue import triton
from epilogue.benchmarks import timing
from epilogue.benchmarks.report import table
from epilogue.benchmarks.train.memory import bytes_kept
from epilogue.benchmarks.train.side_by_side import Loss, backend

ALLOWED = 2.0
"""The largest error of the kernels' gradients, in units of torch's own."""


class StepCase(NamedTuple):
    """The two models with the same weights, without dropout, and what a step of them computes."""

    stock: nn.Module
    fused: nn.Module
    loss_of: Loss
    x: Tensor
    labels: Tensor


class Side(NamedTuple):
    """One model's step: bytes kept for backward and at the peak, the distance of its gradients from those in float64, relative."""

    kept: int
    peak: int
    error: float


class KernelStep(NamedTuple):
    """What was measured; ran: what ran the fused model's operations, batch: its shape."""

    ran: str
    batch: str
    stock: Side
    fused: Side

    @property
    def ratios(self) -> dict[str, float]:
        """Ours over torch.nn's; below 1 is less."""
        names = {"kept": "kept for backward", "peak": "peak of memory", "error": "error of the gradients"}
        return {text: getattr(self.fused, name) / getattr(self.stock, name) for name, text in names.items()}


def measured(case: StepCase) -> KernelStep | str:
    """Both models' steps; where no kernel serves the case, the reason."""
    ran, refusal = backend(case.fused)
    if refusal:
        return refusal
    exact = copy.deepcopy(case.stock).double()
    x = case.x.double() if case.x.is_floating_point() else case.x
    case.loss_of(exact, x, case.labels).backward()
    batch = f"batch {' x '.join(map(str, x.shape))}"
    return KernelStep(ran, batch, *(_side(case, model, _gradients(exact)) for model in (case.stock, case.fused)))


def _side(case: StepCase, model: nn.Module, exact: Tensor) -> Side:
    forward = functools.partial(case.loss_of, model, case.x, case.labels)

    def step() -> None:
        model.zero_grad()
        forward().backward()

    kept = bytes_kept(forward, model)
    peak = timing.peak_bytes(step, case.x.device.type)
    peak = peak_on_cpu(step) if peak is None else peak
    return Side(kept, peak, float((_gradients(model) - exact).norm() / exact.norm()))


def _gradients(model: nn.Module) -> Tensor:
    return torch.cat(
        [parameter.grad.double().flatten() for parameter in model.parameters() if parameter.grad is not None]
    )


class _Collected(TorchDispatchMode):
    """The arguments of an interpreted kernel are in a cycle of references, and would count until Python happens to collect it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "epilogue":
            gc.collect()
        return result


def peak_on_cpu(call: Callable[[], object]) -> int:
    """The most bytes that torch's CPU allocator has handed out at one time during the call, by its own record."""
    with _Collected(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def case_of(model: str, device: torch.device, interpret: bool) -> StepCase:
    """The step of a demo's model: "digits", or one of demo_models'. interpret: a tiny one."""
    if model == "digits":  # each kind needs packages of its own
        from epilogue.benchmarks.train import demo_digits

        return demo_digits.step_case(device, interpret)
    from epilogue.benchmarks.train import demo_models

    return demo_models.step_case(model, device, interpret)


def run(model: str, device: torch.device, interpret: bool) -> KernelStep | str:
    """Measure the model's step, or say why no kernel runs here. RuntimeError where the interpreter's process fails."""
    if device.type == "cuda" or triton.INTERPRET:
        return measured(case_of(model, device, interpret))
    refusal = triton.missing() or triton.interpreter_refusal()
    if refusal:
        return refusal
    environment = {**os.environ, "TRITON_INTERPRET": "1", "EPILOGUE_BACKEND": "triton", "PYTHONSAFEPATH": "1"}
    command = [
        sys.executable,
        "-c",
        f"from epilogue.benchmarks.train import kernel_step; kernel_step.show({model!r}, {interpret})",
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr.strip())
    found = json.loads(result.stdout.splitlines()[-1])
    if isinstance(found, str):
        return found
    ran, batch, *sides = found
    return KernelStep(ran, batch, *(Side(*side) for side in sides))


def show(model: str, interpret: bool) -> None:
    """Print what `run`'s other process measured, as JSON."""
    torch.set_num_threads(1)
    print(json.dumps(measured(case_of(model, torch.device("cpu"), interpret))))


def broken(step: KernelStep) -> list[str]:
    """A message where the kernels' gradients are worse than they may be beside torch's own."""
    ratio = step.fused.error / step.stock.error if step.stock.error else math.inf
    return [] if ratio <= ALLOWED else [f"the kernels' gradients are {ratio:.1f} times as far from float64 as torch's"]


def summary(step: KernelStep) -> str:
    """A table of both sides, and what it says."""
    kept, peak, error = step.ratios.values()
    rows: Sequence[Sequence[str]] = [
        ("", "torch.nn", "epilogue", "epilogue / torch.nn"),
        ("kept in memory for backward", *(f"{side.kept / 1024:,.0f} KiB" for side in step[2:]), f"{kept:.2f}"),
        ("peak of memory in the step", *(f"{side.peak / 1024:,.0f} KiB" for side in step[2:]), f"{peak:.2f}"),
        ("error of the gradients, relative", *(f"{side.error:.1e}" for side in step[2:]), f"{error:.2f}"),
    ]
    less = f"keeps {1 - kept:.0%} less for backward in the whole model" if kept < 1 else "keeps as much for backward"
    verdict = f"epilogue {less}, and its gradients are {error:.2f} times as far from float64 as torch's own."
    return f"{table(rows)}\n{verdict}"
