"""`epilogue.explain`: which kernels a call would run on a GPU, and why."""

import inspect
import itertools
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from . import backends
from .catalogue import Activation, Keep
from .lookup import resolve_call
from .saving import emits_h, kept_by_layer, kept_by_mlp
from .typing import OpName

if TYPE_CHECKING:
    import torch

    from .triton.plan.chips import Machine
    from .triton.plan.configs import Choice
    from .triton.plan.dispatch import Candidate
    from .triton.plan.problem import Problem
    from .typing import ActivationLike

OPS: tuple[str, ...] = get_args(OpName)
GATED = ("glu", "gated_mlp")
ONE_WAY = {"cupy": "cuBLAS and pointwise CuPy kernels, or cuBLASLt's own epilogues", "eager": "plain torch operations"}
"""Backend without a choice of kernels -> what a call runs there."""


class Step(NamedTuple):
    """One product of a call, and the ways to compute it with its epilogue. The first one is taken."""

    name: str
    problem: "Problem"
    candidates: "list[Candidate]"


class Explanation(NamedTuple):
    """The result of `explain`; as text, one line per way to compute each product. Only the Triton backend has a choice, and so steps."""

    call: str
    gpu: str
    steps: list[Step]
    backend: str
    because: str

    def __str__(self) -> str:
        lines = [f"{self.call} on {self.gpu}"]
        if self.backend in ONE_WAY:
            lines.append(f"  {ONE_WAY[self.backend]}: {self.because}")
        for step in self.steps:
            best = step.candidates[0].microseconds
            for i, (choice, microseconds, measured) in enumerate(step.candidates):
                how = "measured by `epilogue tune`" if measured else "predicted"
                verdict = "taken" if i == 0 else f"{microseconds / best:.2f} times that"
                lines.append(f"  {step.name}: {describe(choice)}, {microseconds:.1f} us {how}, {verdict}")
        return "\n".join(lines)


def explain(
    op: OpName, m: int, k: int, n: int, *, activation: "ActivationLike" = None, dtype: "str | torch.dtype" = "bfloat16",
    training: bool = False, dropout: bool = False, frozen: Collection[str] = (), gpu: str | None = None,
    **params: "float | torch.Tensor",
) -> Explanation:  # fmt: skip
    """Explain which kernels a call of `linear`, `glu`, `mlp` or `gated_mlp` runs on a GPU, and how long each way takes.

    Products that always run on cuBLAS (dx, dW, down) are not shown. Operands are assumed to be aligned to 16 bytes where their sizes allow
    it, and a layer to have a bias.

    Args:
        op: "linear", "glu", "mlp" or "gated_mlp".
        m: the number of rows of x [m, k], such as tokens.
        k: the number of input features.
        n: the number of output features; for an MLP that of hidden features, and its output has k.
        activation: as the operation takes it; None is the operation's own default.
        dtype: float16, bfloat16 or float32, as a name or a torch.dtype. float32 products follow torch's TF32 setting.
        training: if True, forward keeps what backward needs and, for an MLP, backward's product is shown too.
        dropout: if True, an MLP in training drops hidden units.
        frozen: the names of the operation's arguments that need no gradient, such as `["x", "down_weight"]`.
        gpu: "A10", "A100", "A100 PCIe", "A100 40GB", "L4", "L40S", "RTX 3090", "RTX 4090", "RTX 5090", "H100", "H200", "B200" or "GB200"
            by their data sheets, in capitals or not; None is this machine's GPU.
        **params: the activation's parameters.

    Returns:
        An `Explanation`, which prints as one line per way to compute each product; the way that the call takes comes first. Times are in
        microseconds: measured where `epilogue tune` has run on this machine, else predicted by a model of the chip. A call may run the
        CuPy kernels or plain torch operations instead, chosen by `backend` or EPILOGUE_BACKEND or because Triton or a newer GPU is missing.
        Then there are no steps, only the reason.

    Raises:
        ValueError: no kernel serves the call, the GPU is unknown, or none is named and there is none here.
        RuntimeError: the backend that the environment chose cannot run.

    >>> print(explain("linear", 8192, 4096, 14336, activation="gelu", gpu="H200"))
    """
    import torch

    from .operands import DTYPES, activation_refusal
    from .triton.plan import chips, dispatch

    if op not in OPS:
        raise ValueError(f"explain: op must be one of {', '.join(OPS)}; got {op!r}")
    if not all(isinstance(size, int) and size > 0 for size in (m, k, n)):
        raise ValueError(f"explain: m, k and n must be whole numbers of at least 1; got {m!r}, {k!r}, {n!r}")
    act, values = activation_of(op, activation, params)
    dtype = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if dtype not in DTYPES:
        served = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"explain: dtype must be one of {served}; got {dtype!r}, which runs plain torch operations")
    frozen = (frozen,) if isinstance(frozen, str) else frozen
    differentiable = _differentiable(op, act, values)
    if unknown := [name for name in frozen if name not in differentiable]:
        names = ", ".join(differentiable)
        raise ValueError(f"explain: frozen names arguments that could get a gradient, {names}; got {unknown[0]!r}")
    dropout = dropout and training and op.endswith("mlp")
    chip, (backend, because) = _chip(gpu), _backend(gpu, dtype)
    if backend != "eager" and (refusal := activation_refusal(act, values, op in GATED)):
        backend, because = "eager", refusal
    sizes = f"{m} x {k} -> {n} -> {k}" if op.endswith("mlp") else f"{m} x {k} -> {n}"
    how = ("training" if training else "inference") + (", dropout" if dropout else "")
    call = f"{op}, {sizes}, {act.name}, {str(dtype).removeprefix('torch.')}, {how}"
    if backend != "triton":
        name = chip.name if chip else torch.cuda.get_device_name()
        return Explanation(call, name, [], backend, because)
    chip = chip or chips.gpu(torch.cuda.current_device())
    found = problems(op, m, k, n, act, values, dtype, chip, training, dropout, frozen)
    steps = [Step(step, problem, dispatch.candidates(problem, chip)) for step, problem in found.items()]
    return Explanation(call, chip.name, steps, backend, because)


def activation_of(op: str, activation: Any, params: dict[str, Any]) -> tuple[Activation, tuple]:
    """(the activation that a call of `op` uses, its parameters' values). None means the operation's own default."""
    gated = op in GATED
    return resolve_call(explain, activation or ("silu" if gated else "gelu"), params, gated)


def problems(
    op: str, m: int, k: int, n: int, act: Activation, values: tuple, dtype: "torch.dtype", chip: "Machine",
    training: bool = False, dropout: bool = False, frozen: Collection[str] = (),
) -> "dict[str, Problem]":  # fmt: skip
    """The products of a call that the dispatcher decides on: forward, and an MLP's backward. Arguments as for `explain`."""
    from .triton.plan.chips import precision
    from .triton.plan.problem import backward_problem, forward_problem

    wanted = {*_differentiable(op, act, values)} - {*frozen} if training else set()
    gated, dropout = op in GATED, dropout and training
    serve = chip.descriptors and precision(dtype) != "ieee" and k * dtype.itemsize % 16 == 0
    if not op.endswith("mlp"):
        keep: Keep = kept_by_layer(act, values, gated) if wanted else "nothing"
        return {"forward": forward_problem(m, n, k, dtype, act, gated, True, dropout, keep, serve)}
    hidden, down = bool(wanted - {"down_weight", "down_bias"}), "down_weight" in wanted
    keep = kept_by_mlp(act, values, gated, dropout, hidden, down)
    found = {"forward": forward_problem(m, n, k, dtype, act, gated, True, dropout, keep, serve)}
    if hidden:
        found["backward"] = backward_problem(m, n, k, dtype, act, gated, dropout, emits_h(keep, down), serve)
    return found


def _differentiable(op: str, act: Activation, values: tuple) -> list[str]:
    """The names of the arguments that may get a gradient: the arrays, also those among the activation's parameters."""
    from . import functional

    arrays = itertools.takewhile(
        lambda name: name != "activation", inspect.signature(getattr(functional, op)).parameters
    )
    return [*arrays, *(name for name, value in zip(act.params, values, strict=True) if not isinstance(value, float))]


def describe(choice: "Choice") -> str:
    """The choice in words."""
    if choice == "unfused":
        return "cuBLAS and a pointwise kernel"
    if choice == "library":
        return "cuBLASLt's own epilogue"
    tile = f"{choice.BLOCK_M}x{choice.BLOCK_N}x{choice.BLOCK_K}"
    return f"fused, tiles {tile}" + (" by descriptors" if choice.tma else "")


def _chip(gpu: str | None) -> "Machine | None":
    from .triton.plan import chips

    chip = chips.named(gpu) if isinstance(gpu, str) else None
    if gpu is not None and chip is None:
        raise ValueError(f"explain: gpu must be one of {', '.join(chips.CHIPS)}; got {gpu!r}")
    return chip


def _backend(gpu: str | None, dtype: "torch.dtype") -> tuple[str, str]:
    """(the backend of tensors of that dtype, the reason for it). For a GPU that is not here: the chosen backend, or Triton."""
    import torch

    if gpu is not None:
        return backends.chosen() or ("triton", "it comes first")
    if not torch.cuda.is_available():
        raise ValueError('explain: there is no GPU here; name one, such as gpu="H100"')
    x = torch.empty(1, 1, dtype=dtype, device="cuda")
    return backends.serving(x, x)
