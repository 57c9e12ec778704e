"""`epilogue.explain`: which kernels a call would run on a GPU, and why."""

from typing import TYPE_CHECKING, Any, NamedTuple

from . import backends
from .catalogue import Activation
from .lookup import resolve_call

if TYPE_CHECKING:
    import torch

    from .triton.chips import Machine
    from .triton.configs import Choice, Problem
    from .triton.dispatch import Candidate

OPS = ("linear", "glu", "mlp", "gated_mlp")
GATED = ("glu", "gated_mlp")
ONE_WAY = {"cupy": "cuBLAS and pointwise CuPy kernels, or cuBLASLt's own epilogues", "eager": "plain torch operations"}
"""What a call runs on the backends that choose nothing."""


class Step(NamedTuple):
    """One product of a call: the ways to compute it with its epilogue, the one that is taken first."""

    name: str
    problem: "Problem"
    candidates: "list[Candidate]"


class Explanation(NamedTuple):
    """What `explain` found; as text, a line per way to compute each product. The Triton backend alone has a choice, and so steps."""

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
    op: str, m: int, k: int, n: int, *, activation: Any = None, dtype: Any = "bfloat16", training: bool = False,
    dropout: bool = False, gpu: str | None = None, **params: Any,
) -> Explanation:  # fmt: skip
    """Which kernels `epilogue.linear`, `glu`, `mlp` or `gated_mlp` (op) run on a GPU for x [m, k], and how long each way would take.

    n: output features; of an MLP the hidden ones, its output has k. activation and its parameters: as the operation takes them.
    dtype: float16, bfloat16 or float32, a name or a torch.dtype; float32 products follow torch's TF32 setting. training: z is kept and,
    of an MLP, backward's product shown too; dropout: an MLP drops hidden units. gpu: "A100", "H100", "H200" or "B200" by their data
    sheets; by default the one that is here. Operands are taken to be aligned to 16 bytes where their sizes allow it.

    The products that are cuBLAS's in any case (dx, dW, down) are not shown. Times are microseconds, measured where `epilogue tune` was at
    work on this machine, else predicted by a model of the chip. Where such a call runs the CuPy kernels or plain torch operations, by
    `epilogue.backend`, EPILOGUE_BACKEND or for want of Triton or a newer GPU, there are no steps but the reason. ValueError for what no
    kernel serves, RuntimeError where the backend that the environment chose cannot run.

    >>> print(explain("linear", 8192, 4096, 14336, activation="gelu", gpu="H200"))
    """
    import torch

    from .operands import DTYPES
    from .triton import chips, dispatch

    if op not in OPS:
        raise ValueError(f"explain: op must be one of {', '.join(OPS)}; got {op!r}")
    if not all(isinstance(size, int) and size > 0 for size in (m, k, n)):
        raise ValueError(f"explain: m, k and n must be whole numbers of at least 1; got {m!r}, {k!r}, {n!r}")
    act, values = activation_of(op, activation, params)
    dtype = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if dtype not in DTYPES:
        served = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"explain: dtype must be one of {served}; got {dtype!r}, which runs plain torch operations")
    dropout = dropout and training and op.endswith("mlp")
    backend, because = _backend(gpu, dtype)
    sizes = f"{m} x {k} -> {n}" + f" -> {k}" * op.endswith("mlp")
    how = ("training" if training else "inference") + ", dropout" * dropout
    call = f"{op}, {sizes}, {act.name}, {str(dtype).removeprefix('torch.')}, {how}"
    if backend != "triton":
        name = chips.CHIPS[gpu].name if gpu else torch.cuda.get_device_name()
        return Explanation(call, name, [], backend, because)
    chip = chips.CHIPS[gpu] if gpu else chips.gpu(torch.cuda.current_device())
    found = problems(op, m, k, n, act, values, dtype, training, dropout, chip)
    steps = [Step(step, problem, dispatch.candidates(problem, chip)) for step, problem in found.items()]
    return Explanation(call, chip.name, steps, backend, because)


def activation_of(op: str, activation: Any, params: dict[str, Any]) -> tuple[Activation, tuple]:
    """The activation that a call of `op` means, None being the operation's own default, and its parameters' values."""
    gated = op in GATED
    return resolve_call(op, activation or ("silu" if gated else "gelu"), params, gated)


def problems(
    op: str, m: int, k: int, n: int, act: Activation, values: tuple, dtype: "torch.dtype", training: bool, dropout: bool,
    chip: "Machine",
) -> "dict[str, Problem]":  # fmt: skip
    """The products of a call that the dispatcher decides on: forward, and an MLP's backward. Sizes as in `explain`."""
    from .triton.chips import precision
    from .triton.configs import DACT, DROPPED, GLU, LINEAR, Problem

    gated, exact = op in GATED, precision(dtype)
    kept = act.saves(values) if op.endswith("mlp") else act.layer_saves(values)
    keeps_z = training and (gated or kept == "input")
    tma = chip.descriptors and exact != "ieee" and k * dtype.itemsize % 16 == 0 and n * dtype.itemsize % 16 == 0
    name = (act.gate or act).name
    layer = Problem(GLU if gated else LINEAR, m, n, k, dtype, exact, tma, name, gated, keeps_z)
    if not (training and op.endswith("mlp")):
        return {"forward": layer}
    # Whether h is emitted or was kept, by the same rule as z.
    return {"forward": layer, "backward": layer._replace(family=DROPPED if dropout else DACT)}


def describe(choice: "Choice") -> str:
    """The choice in words."""
    if choice == "unfused":
        return "cuBLAS and a pointwise kernel"
    if choice == "library":
        return "cuBLASLt's own epilogue"
    tile = f"{choice.BLOCK_M}x{choice.BLOCK_N}x{choice.BLOCK_K}"
    return f"fused, tiles {tile}" + (" by descriptors" if choice.tma else "")


def _backend(gpu: str | None, dtype: "torch.dtype") -> tuple[str, str]:
    """(the backend of tensors of that dtype, why that one). Of a GPU that is not here: what was chosen, or Triton."""
    import torch

    from .triton import chips

    if gpu is not None:
        if gpu not in chips.CHIPS:
            raise ValueError(f"explain: gpu must be one of {', '.join(chips.CHIPS)}, or None for this one; got {gpu!r}")
        return backends.chosen() or ("triton", "it comes first")
    if not torch.cuda.is_available():
        raise ValueError('explain: there is no GPU here; name one, such as gpu="H100"')
    x = torch.empty(1, 1, dtype=dtype, device="cuda")
    return backends.serving(x, x)
