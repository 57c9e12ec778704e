"""`epilogue tune`: measure the ways to compute a product with its epilogue on this GPU, so that later calls take the fastest.

After every product the results go into a file in the user's cache (epilogue.triton.plan.tuned). Rows are rounded up to a power of two, for
which the choice then stands. Products are measured in the order in which the model is least sure of them, fused or not.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from epilogue import eager
from epilogue.applied import Applied, Needs
from epilogue.benchmarks.accuracy import accurate
from epilogue.benchmarks.progress import progress
from epilogue.benchmarks.timing import Timing, measure
from epilogue.catalogue import ACTIVATIONS, CUBLASLT, Keep
from epilogue.explanation import GATED, activation_of, describe, problems
from epilogue.operands import Dropout, Layer, activation_refusal
from epilogue.saving import library_serves
from epilogue.triton.dact import linear_dact
from epilogue.triton.dropout import dropout_mask
from epilogue.triton.linear import linear_fwd
from epilogue.triton.plan import tuned
from epilogue.triton.plan.chips import CHIPS, Machine, gpu
from epilogue.triton.plan.configs import Choice, Config
from epilogue.triton.plan.dispatch import candidates, choose
from epilogue.triton.plan.problem import Problem

TOKENS = (1, 16, 256, 1024, 4096, 8192, 16384)
"""Rows of x that --model-dims measures."""
GROUPS = (1, 4, 16)
"""GROUP_M of the fastest tiles, tried beside the shipped 8."""
CHECKED = 64
"""The number of rows that are compared with float64 before anything is timed."""

Shape = tuple[str, int, int, int]


def to_measure(shapes: Iterable[Shape], activation: Any, dtype: torch.dtype, chip: Machine) -> list[Problem]:
    """The products of these calls, in inference and training, each once. First come those whose predicted times of
    fused and unfused are closest, last those that were measured before."""
    found: dict[Problem, None] = {}
    for op, m, k, n in shapes:
        act, values = activation_of(op, activation, {})
        if refusal := activation_refusal(act, values, op in GATED):
            raise ValueError(f"{act.name}: {refusal}")
        for training, dropout in ((False, False), (True, False), (True, True)):
            for problem in problems(op, m, k, n, act, values, dtype, chip, training, dropout).values():
                found[tuned.key_of(problem)] = None
    return sorted(found, key=lambda problem: doubt(problem, chip))


def doubt(problem: Problem, chip: Machine) -> float:
    """The logarithm of the ratio of the predicted times, fused and unfused; infinite where the problem was measured before."""
    best: dict[bool, float] = {}
    for choice, microseconds, measured in candidates(problem, chip):
        if measured:
            return math.inf
        best.setdefault(isinstance(choice, Config), microseconds)
    return abs(math.log(best[True] / best[False]))


def run(problems: Sequence[Problem], chip: Machine, path: Path, device: str, seconds: float) -> list[str]:
    """Measure until the time is up, and save after each problem. Yields a line of text for each problem, measured or not."""
    known = previous(path, chip)
    end = time.monotonic() + seconds
    lines = []
    for problem in progress(problems, "tuning", len(problems), "product", title):
        if time.monotonic() > end:
            lines.append(f"{title(problem)}: not measured, the time was up")
            continue
        timings = fastest(problem, chip, device)
        choice, best = min(timings.items(), key=lambda item: item[1].median)
        known[problem] = choice, best.median
        tuned.save(known, chip, path)
        predicted = candidates(problem, chip)[0].choice
        others = ", ".join(f"{describe(c)} {t.median:.1f}" for c, t in timings.items() if c != choice)
        verdict = "as predicted" if predicted == choice else f"predicted was {describe(predicted)}"
        lines.append(f"{title(problem)}: {describe(choice)} {best.median:.1f} us ({verdict}); {others}")
    tuned.load.cache_clear()
    choose.cache_clear()
    return lines


def previous(path: Path, chip: Machine) -> tuned.Table:
    """The entries that the file holds already, if it was measured on this machine."""
    try:
        return tuned.read(path, tuned.head(chip))
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def fastest(problem: Problem, chip: Machine, device: str) -> dict[Choice, Timing]:
    """The time of every choice. The fastest tiles are also timed in other orders."""
    runner, check = runners(problem, device)
    choices: list[Choice] = [candidate.choice for candidate in candidates(problem, chip)]
    timings = _measured(runner, check, dict.fromkeys([*choices, "unfused", "library"]), device)
    fused = [choice for choice in timings if isinstance(choice, Config)]
    if fused:
        best = min(fused, key=lambda choice: timings[choice].median)
        timings |= _measured(runner, check, [replace(best, GROUP_M=group) for group in GROUPS], device)
    return timings


def _measured(runner: Callable, check: Callable, choices: Iterable[Choice], device: str) -> dict[Choice, Timing]:
    """The times of the choices that run and are right, measured in turns."""
    calls = {}
    for choice in choices:
        call = runner(choice)
        if call is None:
            continue
        try:
            check(choice, call())
        except Exception as error:  # out of resources, say; the others may run
            tqdm.write(f"{describe(choice)} does not run: {error}", file=sys.stderr)
            continue
        calls[choice] = call
    return measure(calls, device) if calls else {}  # type: ignore[return-value, arg-type]


def runners(problem: Problem, device: str) -> tuple[Callable, Callable]:
    """(choice -> a call of no arguments that runs the problem that way, or None where it cannot; choice, results -> a check of them)."""
    return (_backward if problem.backward else _forward)(problem, device)


def _forward(problem: Problem, device: str) -> tuple[Callable, Callable]:
    m, n, k, gated = problem.m, problem.n, problem.k, problem.gated
    act, values = _activation(problem)
    x, weight = _draw(m, k, problem, device), _draw((1 + gated) * n, k, problem, device, k**-0.5)
    bias = None if gated else _draw(1, n, problem, device)[0]
    layer, applied = Layer(x, weight, bias=bias), Applied(act, values, gated)
    keep: Keep = "input" if problem.keeps else "nothing"

    def runner(choice: Choice):
        if choice == "library":
            if not library_serves(act, keep, gated, bias is not None, dropout=False):
                return None
            if CUBLASLT[act.name] == "GELU" and not x.is_cuda:  # on the CPU torch's is the exact one
                return None
            # Torch's own activations keep NaN. Of all rows, since for one torch takes another way than cuBLASLt.
            lost = layer._replace(x=torch.full_like(x, torch.nan))
            if not linear_fwd(lost, applied, keep, "library")[0].isnan().all():
                return None
        return lambda: linear_fwd(layer, applied, keep, choice)

    rows = _some_rows(m, device)

    def unfused(x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
        z = F.linear(x, weight, bias)
        y = eager.apply(act.gated, values, *z.chunk(2, -1)) if gated else eager.apply(act, values, z)
        return [y, z][: 1 + problem.keeps]

    own = unfused(x[rows], weight, bias)
    exact = unfused(x[rows].double(), weight.double(), None if bias is None else bias.double())
    return runner, lambda choice, results: _check(
        problem, choice, [r[rows] for r in results if r is not None], own, exact
    )


def _backward(problem: Problem, device: str) -> tuple[Callable, Callable]:
    m, n, k, gated = problem.m, problem.n, problem.k, problem.gated
    act, values = _activation(problem)
    dy, weight = _draw(m, k, problem, device), _draw(k, n, problem, device, k**-0.5)
    z = _draw(m, (1 + gated) * n, problem, device)
    keep: Keep = "input" if problem.keeps else "output"
    saved = z if problem.keeps else eager.apply(act, values, z)
    dropout = Dropout(0.1, torch.tensor([1], device=device)) if problem.family.dropout else None
    applied, needs = Applied(act, values, gated, dropout), Needs(h=problem.keeps, dbias=not gated)

    def runner(choice: Choice):
        if choice == "library":
            return None
        return lambda: linear_dact(dy, weight, saved, keep, applied, needs, choice)

    rows = _some_rows(m, device)
    mask = 1.0 if dropout is None else dropout_mask(dropout, m, n)[rows]

    def unfused(dy: Tensor, weight: Tensor, z: Tensor) -> list[Tensor]:
        z = z.detach().requires_grad_()
        h = eager.apply(act.gated, values, *z.chunk(2, -1)) if gated else eager.apply(act, values, z)
        h = (h * mask).to(z.dtype)
        (dz,) = torch.autograd.grad(h, z, dy @ weight)
        return [dz, h.detach()][: 1 + problem.keeps]

    own, exact = unfused(dy[rows], weight, z[rows]), unfused(dy[rows].double(), weight.double(), z[rows].double())
    return runner, lambda choice, results: _check(
        problem, choice, [r[rows] for r in results[: 1 + problem.keeps]], own, exact
    )


def _activation(problem: Problem) -> tuple:
    act = ACTIVATIONS[problem.activation]
    return act, tuple(act.params.values())


def _draw(rows: int, columns: int, problem: Problem, device: str, scale: float = 1.0) -> Tensor:
    return (torch.randn(rows, columns, device=device) * scale).to(problem.dtype)


def _some_rows(m: int, device: str) -> Tensor:
    return torch.linspace(0, m - 1, min(m, CHECKED), device=device).long()


def _check(problem: Problem, choice: Choice, results: list[Tensor], own: list[Tensor], exact: list[Tensor]) -> None:
    """Stop where a result is not accurate beside torch's own, on some rows."""
    for actual, stock, truth in zip(results, own, exact, strict=True):
        error, torchs = (float((t.double() - truth).abs().max()) for t in (actual, stock))
        if not accurate(error, torchs, problem.dtype, float(truth.abs().max())):
            raise SystemExit(
                f"epilogue tune: {title(problem)}: {describe(choice)} is wrong, error {error:.1e}; please report it"
            )


def title(problem: Problem) -> str:
    name = "backward of an MLP" if problem.backward else "gated forward" if problem.gated else "forward"
    kept = ", " + ("emits h" if problem.backward else "keeps z") if problem.keeps else ""
    kept += ", dropout" if problem.family.dropout else ""
    dtype = str(problem.dtype).removeprefix("torch.")
    return f"{name}, {problem.m} x {problem.k} -> {problem.n}, {problem.activation}, {dtype}{kept}"


def main(shapes: Sequence[Shape], activation: Any, dtype: str, minutes: float, path: Path | None) -> int:
    """Measure on this GPU and save; without one, print what would be measured."""
    here = torch.cuda.is_available()
    chip = gpu(torch.cuda.current_device()) if here else CHIPS["H200"]
    found = to_measure(shapes, activation, getattr(torch, dtype), chip)
    path = path or tuned.user_path(chip)
    assert path is not None  # the command asks for platformdirs
    if not here:
        print(f"no GPU here; on one, {len(found)} products would be measured, in this order if it is an {chip.name}:")
        print("\n".join(f"  {title(problem)}: predicted {_predicted(problem, chip)}" for problem in found))
        return 0
    print("\n".join(run(found, chip, path, "cuda", 60 * minutes)))
    print(f"written: {path}")
    return 0


def _predicted(problem: Problem, chip: Machine) -> str:
    first, second, *_ = candidates(problem, chip)
    return f"{describe(first.choice)}, {first.microseconds:.0f} us; then {describe(second.choice)}, {second.microseconds:.0f}"
