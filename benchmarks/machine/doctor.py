"""`epilogue doctor`: which backend each kind of array takes on this machine, and whether a kernel computes rightly."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from epilogue import cupy, explain, linear, linear_backward, operands, triton
from epilogue.backends import chosen, serving
from epilogue.benchmarks.accuracy import accurate
from epilogue.benchmarks.provenance import driver
from epilogue.benchmarks.report import table
from epilogue.cupy import cublaslt, epilogues
from epilogue.explanation import ONE_WAY, describe
from epilogue.triton.plan import tuned
from epilogue.triton.plan.chips import CHIPS, Machine
from epilogue.triton.plan.chips import gpu as gpu_here
from epilogue.typing import OpName

KERNELS, INTERPRETED, EAGER = "Triton kernels", "Triton kernels, interpreted", "plain torch operations"
CUPY = "CuPy kernels"
ABSENT = "not here: no GPU"
RUN = {"triton": KERNELS, "cupy": CUPY, "eager": EAGER}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in operands.DTYPES}


def main() -> int:
    """Print everything; 1 where the check of a kernel fails."""
    print(f"GPU: {gpus()}\n")
    print(table([("array", "runs on", "because"), *backends()]), end="\n\n")
    print(choices(), end="\n\n")
    return check()


def gpus() -> str:
    """The GPUs that torch reaches, or why there is none."""
    if torch.version.cuda is None:
        return f"none, torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"none, torch is built for CUDA {torch.version.cuda} but finds no GPU or no driver"
    names = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        names.append(f"{torch.cuda.get_device_name(index)} (compute capability {major}.{minor})")
    return f"{', '.join(names)}; CUDA runtime {torch.version.cuda}, driver {driver()}"


def backends() -> list[tuple[str, str, str]]:
    """Rows of (kind of array, what its operations run on here, why that and not another)."""
    missing, without = triton.missing(), cupy.missing()
    served, uninterpreted = f"the kernels take {', '.join(DTYPES)}", missing or triton.interpreter_refusal()
    cuda = {**DTYPES, "float64": torch.float64}
    return [
        *((f"torch.Tensor, CUDA, {name}", *_cuda_backend(dtype, served)) for name, dtype in cuda.items()),
        ("torch.Tensor, CPU, float32", *_backend(torch.empty(1, 1))),
        (
            "torch.Tensor, CPU, TRITON_INTERPRET=1",
            *((EAGER, uninterpreted) if uninterpreted else (INTERPRETED, served)),
        ),
        ("numpy.ndarray", "NumPy reference", "the kernels and torch's operations take tensors"),
        ("cupy.ndarray", *(("nothing", without) if without else (f"{CUPY} and cuBLAS", "CuPy finds a GPU"))),
        *(() if without else _epilogues()),
    ]


def _epilogues() -> Iterator[tuple[str, str, str]]:
    """Rows that say which of cuBLASLt's epilogues the CuPy backend takes, found by a trial of each."""
    for dtype in cublaslt.DTYPES:
        refusals = {
            (f"{name}, {'backward' if backward else 'forward'}"): epilogues.refusal(name, dtype, 0, backward)
            for name in epilogues.STEMS
            for backward in (False, True)
        }
        for reason in dict.fromkeys(refusals.values()):
            names = "; ".join(name for name, found in refusals.items() if found == reason)
            backend = CUPY if reason else "cuBLASLt's epilogues"
            yield f"on CuPy, {dtype}: {names}", backend, reason or "they compute what the reference does"


def _backend(x: Tensor) -> tuple[str, str]:
    try:
        name, reason = serving(x, x)
    except RuntimeError as error:  # what the environment chose is not there
        return "nothing", str(error)
    if name == "triton" and x.is_cpu:
        return INTERPRETED, "TRITON_INTERPRET is set"
    return RUN[name], reason


def _cuda_backend(dtype: torch.dtype, served: str) -> tuple[str, str]:
    if torch.cuda.is_available():
        return _backend(torch.empty(1, 1, device="cuda", dtype=dtype))
    if dtype not in operands.DTYPES:
        return EAGER, f"{served}; {ABSENT}"
    choice, missing = chosen(), triton.missing()
    if choice:
        return RUN[choice[0]], f"{choice[1]}; {ABSENT}"
    if missing:
        return EAGER, f"{missing}, {cupy.missing()}"
    return KERNELS, ABSENT


EXAMPLES: tuple[tuple[OpName, int, int, int, dict[str, Any]], ...] = (
    ("linear", 8192, 1024, 4096, {}),
    ("linear", 8192, 1024, 4096, {"dtype": "float32"}),
    ("gated_mlp", 16, 4096, 14336, {}),
    ("gated_mlp", 8192, 4096, 14336, {"training": True}),
)


def choices() -> str:
    """Text: where the choice between the fused kernels and cuBLAS comes from, and a few such choices."""
    gpu = None if torch.cuda.is_available() else "H200"
    try:
        found = [explain(op, m, k, n, gpu=gpu, **options) for op, m, k, n, options in EXAMPLES]
    except (ImportError, RuntimeError) as error:  # Triton, or the backend that the environment chose, is not there
        return f"Which kernels a call would run cannot be told: {error}"
    backend, because = found[0].backend, found[0].because
    if backend in ONE_WAY:
        return f"Every call runs {ONE_WAY[backend]}: {because}."
    rows = [("call, for example", "product", "taken", "microseconds")]
    for explanation in found:
        call = explanation.call
        for step in explanation.steps:
            choice, microseconds, measured = step.candidates[0]
            how = "measured" if measured else "predicted"
            rows.append((call, step.name, describe(choice), f"{microseconds:.0f} {how}"))
            call = ""
    chip = CHIPS["H200"] if gpu else gpu_here(torch.cuda.current_device())
    return f"{basis(chip, here=gpu is None)}\n{table(rows)}"


def basis(chip: Machine, here: bool) -> str:
    """Text: what the choices on this chip rest on, and how to measure more."""
    known = len(tuned.load(chip))
    place = f"this {chip.name}" if here else f"an {chip.name} (there is none here)"
    text = f"Fused or not, on {place}: {known} products measured, the others predicted by a model of the chip."
    if known or not here:
        return text
    path = tuned.user_path(chip)
    where = f"into {path}" if path else "once platformdirs is installed"
    return f"{text} `epilogue tune` measures them, {where}."


def check() -> int:
    """Hold `linear`, forward and backward, against the reference, in a process of its own: a crash there is a finding here."""
    missing, environment = triton.missing() or triton.interpreter_refusal(), dict(os.environ)
    if torch.cuda.is_available():
        print("Check: epilogue.linear with gelu, compiled for this GPU, against the NumPy reference")
        device, environment["TRITON_INTERPRET"] = "cuda", "0"
    elif missing:
        print(f"Check: no kernel can run without a GPU here: {missing}.")
        return 0
    else:
        print("Check: no GPU to run a compiled kernel; epilogue.linear with gelu in Triton's interpreter instead,")
        print("against the NumPy reference")
        device = "cpu"
        environment |= {"TRITON_INTERPRET": "1", "EPILOGUE_BACKEND": "triton"}
    command = [sys.executable, "-c", f"from epilogue.benchmarks.machine import doctor; doctor.measure({device!r})"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        print(f"FAILED:\n{result.stderr.strip()}")
        return 1
    return verdict(json.loads(result.stdout.splitlines()[-1]))


def verdict(measured: dict[str, Any]) -> int:
    """Print the errors that `measure` found; 1 where the kernels' is not accurate beside torch's."""
    rows = [("dtype", "largest error", "torch's own", "verdict")]
    for name, found in measured.items():
        if found["refusal"]:
            rows.append((name, "", "", f"not run: {found['refusal']}"))
            continue
        good = accurate(found["epilogue"], found["torch"], DTYPES[name])
        rows.append((name, f"{found['epilogue']:.1e}", f"{found['torch']:.1e}", "ok" if good else "FAILED"))
    print(table(rows))
    print(
        "Errors of y, dx, dw and db, relative to each one's largest value; allowed: twice torch's own and one rounding."
    )
    return int(any(row[-1] == "FAILED" for row in rows))


def measure(device: str) -> None:
    """Print, as JSON, for each dtype the errors of epilogue's and torch's gelu(x Wᵀ + b), or why the kernels refuse."""
    found: dict[str, dict[str, Any]] = {}
    sizes = ((70, 96), (50, 96), (50,), (70, 50))  # x, weight, bias, dy; no multiple of a tile
    for name, dtype in DTYPES.items():
        torch.manual_seed(0)
        operands = [torch.randn(size).to(device, dtype).requires_grad_() for size in sizes]
        served, reason = serving(operands[0], operands[1])
        found[name] = {"refusal": reason if served == "eager" else None}
        if not found[name]["refusal"]:
            found[name]["epilogue"] = _error(linear, *operands)
            found[name]["torch"] = _error(lambda x, weight, bias: F.gelu(F.linear(x, weight, bias)), *operands)
    print(json.dumps(found))


def _error(operation: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> float:
    """The largest error among y, dx, dw and db, each relative to its largest value; NaN where one is."""
    y = operation(x, weight, bias)
    results = [_exactly(result) for result in (y, *torch.autograd.grad(y, (x, weight, bias), dy))]
    layer: Any = [_exactly(operand) for operand in (x, weight, bias)]
    expected = (linear(*layer), *linear_backward(_exactly(dy), *layer)[:3])
    errors = [np.abs(got - exact).max() / np.abs(exact).max() for got, exact in zip(results, expected, strict=True)]
    return float(np.max(errors))


def _exactly(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
