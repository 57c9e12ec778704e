"""The providers that `epilogue bench` compares: how each computes a case, or why it does not.

All of them get the same operands in the same memory.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import epilogue
from epilogue.benchmarks.bench.cases import BOTH, INFERENCE, TRAINING, Case, Operands
from epilogue.benchmarks.timing import Call
from epilogue.catalogue import ACTIVATIONS

Forward = Callable[..., Tensor]


class Provider(NamedTuple):
    refusal: Callable[[Case], str | None]
    """The reason why it does not compute the case, or None."""
    call: Callable[[Case, Operands], Call]
    """The case as one call -> y, or for forward+backward (y, the gradient of each of the operands' leaves in their order)."""


def differentiated(
    case: Case, forward: Callable[[], Tensor], leaves: Sequence[Tensor], dy: Tensor
) -> Callable[[], Any]:
    """The case's mode of a forward function: without gradients, with them kept, or with those of the leaves computed."""
    if case.mode == INFERENCE:
        return torch.no_grad()(forward)
    if case.mode == TRAINING:
        return forward

    def call() -> tuple[Tensor, ...]:
        y = forward()
        return (y, *torch.autograd.grad(y, leaves, dy))

    return call


def stock(case: Case) -> Forward:
    """The case as people write it in torch, a function of `Operands.arguments`."""
    act = ACTIVATIONS[case.activation]
    values = tuple(act.params.values())

    def forward(x, gate, up, down, gate_bias, up_bias, down_bias):
        h = F.linear(x, up, up_bias)
        if gate is None:
            h = act.oracle(F, h, *values)
        elif act.arity == 2:
            h = act.oracle(F, F.linear(x, gate, gate_bias), h, *values)
        else:
            h = act.oracle(F, F.linear(x, gate, gate_bias), *values) * h
        return h if down is None else F.linear(h, down, down_bias)

    return forward


def eager(case: Case, operands: Operands, compiler: Callable[[Forward], Forward] = lambda forward: forward) -> Call:
    forward = compiler(stock(case))
    return differentiated(case, lambda: forward(*operands.arguments), [*operands.leaves.values()], operands.dy)


def compiled(mode: str) -> Callable[[Case, Operands], Call]:
    """A provider's call by torch.compile of the eager function, for this very shape."""

    def call(case: Case, operands: Operands) -> Call:
        return eager(case, operands, lambda forward: torch.compile(forward, fullgraph=True, dynamic=False, mode=mode))

    return call


def ours(case: Case, operands: Operands) -> Call:
    x, gate, up, down, gate_bias, up_bias, down_bias = operands.arguments
    biases = (gate_bias, up_bias) if case.bias else None
    forward: dict[str, Callable[[], Tensor]] = {
        "linear": lambda: epilogue.linear(x, up, up_bias, case.activation),
        "glu": lambda: epilogue.glu(x, (gate, up), biases, case.activation),
        "mlp": lambda: epilogue.mlp(x, up, down, up_bias, down_bias, case.activation),
        "gated_mlp": lambda: epilogue.gated_mlp(x, gate, up, down, gate_bias, up_bias, down_bias, case.activation),
    }
    return differentiated(case, forward[case.op], [*operands.leaves.values()], operands.dy)


def cublas(case: Case, operands: Operands) -> Call:
    """The bare products, without bias, activation and derivative: no result to compare, but the roof of the case."""
    first = operands.up if operands.packed is None else operands.packed
    x, first, dy = operands.x.detach(), first.detach(), operands.dy
    down = None if operands.down is None else operands.down.detach()

    def products() -> tuple[Tensor, ...]:
        z = x @ first.t()
        h = z[:, : case.hidden]
        y = h if down is None else h @ down.t()
        if case.mode != BOTH:
            return (y,)
        gradients = () if down is None else (dy @ down, dy.t() @ h)
        return (y, *gradients, z @ first, z.t() @ x)  # z stands for its gradient, which is as large

    return products


CUBLASLT = {"relu": False, "gelu_tanh": True}
"""Activation -> use_gelu, which on a GPU is the tanh form."""


def addmm_refusal(case: Case) -> str | None:
    if case.mode != INFERENCE:
        return "inference only"
    if case.gated or case.activation not in CUBLASLT:
        return f"has {' and '.join(CUBLASLT)} alone"
    return None if case.bias else "needs a bias"


def addmm_activation(case: Case, operands: Operands) -> Call:
    x, _, up, down, _, up_bias, down_bias = operands.arguments

    def forward() -> Tensor:
        h = torch._addmm_activation(up_bias, x, up.t(), use_gelu=CUBLASLT[case.activation])
        return h if down is None else F.linear(h, down, down_bias)

    return differentiated(case, forward, (), operands.dy)


LIGER = {"silu": "LigerSiLUMulFunction", "gelu_tanh": "LigerGELUMulFunction"}
"""Activation -> what LigerSwiGLUMLP and LigerGEGLUMLP call between the products."""


def liger_refusal(case: Case) -> str | None:
    if importlib.util.find_spec("liger_kernel") is None:
        return "not installed"
    if not case.gated or case.activation not in LIGER:
        return f"has gated {' and '.join(LIGER)} alone"
    return "has no bias" if case.bias else None


def liger(case: Case, operands: Operands) -> Call:
    """LigerMLP, one kernel for both products and silu, where this release has it; else LigerSwiGLUMLP or LigerGEGLUMLP."""
    ops = importlib.import_module("liger_kernel.ops")
    x, gate, up, down, *_ = operands.arguments
    whole = getattr(ops, "LigerMLPFunction", None) if case.block and case.activation == "silu" else None
    between = getattr(ops, LIGER[case.activation])

    def forward() -> Tensor:
        if whole:
            return whole.apply(x[None], gate, up, down)[0]
        h = between.apply(F.linear(x, gate), F.linear(x, up))
        return h if down is None else F.linear(h, down)

    return differentiated(case, forward, [*operands.leaves.values()], operands.dy)


QUACK = {"relu": "relu", "relu_squared": "relu_sq", "gelu_tanh": "gelu_tanh_approx", "silu": "silu", "tanh": "tanh"}
QUACK_GATED = {"relu": "reglu", "gelu_tanh": "geglu", "silu": "swiglu", "sigmoid": "glu"}


def quack_refusal(case: Case) -> str | None:
    if importlib.util.find_spec("quack") is None:
        return "not installed"
    known = QUACK_GATED if case.gated else QUACK
    if case.activation not in known:
        return f"has {', '.join(known)} alone"
    if case.dtype == "float32":
        return "16 bits alone"
    if case.mode != INFERENCE and not case.block:
        return "no gradient through a single layer's activation"
    return "no bias in training" if case.mode != INFERENCE and case.bias else None


def quack(case: Case, operands: Operands) -> Call:
    """quack's MLP or layer; gate and up are one weight, one half after the other, which quack calls its concat layout."""
    x, _, up, down, gate_bias, up_bias, down_bias = operands.arguments
    name = (QUACK_GATED if case.gated else QUACK)[case.activation]
    first = up if operands.packed is None else operands.packed
    bias = up_bias if gate_bias is None else torch.cat([gate_bias, up_bias])
    concat = {"concat_layout": True} if case.gated else {}

    if down is None:
        linear = importlib.import_module("quack.linear")
        layer = linear.linear_gated_func if case.gated else linear.linear_act_func
        options = {"bias": bias, "store_preact": False, **concat}
        return differentiated(case, lambda: layer(x, first, name, **options)[1], (), operands.dy)

    mlp = importlib.import_module("quack.mlp").mlp_func
    call = differentiated(
        case, lambda: mlp(x, first, down, name, bias1=bias, bias2=down_bias, **concat), (x, first, down), operands.dy
    )
    if case.mode != BOTH or not case.gated:
        return call

    def unpacked() -> tuple[Tensor, ...]:
        y, dx, dfirst, ddown = call()
        return y, dx, *dfirst.chunk(2), ddown

    return unpacked


def always(case: Case) -> None:
    return None


TUNED = "torch.compile max-autotune"
PROVIDERS = {
    "eager": Provider(always, eager),
    "epilogue": Provider(always, ours),
    "torch.compile": Provider(always, compiled("default")),
    TUNED: Provider(always, compiled("max-autotune-no-cudagraphs")),
    "addmm_activation": Provider(addmm_refusal, addmm_activation),
    "liger": Provider(liger_refusal, liger),
    "quack": Provider(quack_refusal, quack),
    "cublas": Provider(always, cublas),
}
"""By the names that results have. max-autotune is without its own CUDA graphs, which would copy the weights at each call, for they are
no module's parameters here: short calls of every provider are timed as CUDA graphs alike."""


def versions() -> dict[str, str]:
    """Package -> version, of the packages that are compared; `provenance.versions` has the others."""
    found = {}
    for name in ("liger_kernel", "quack-kernels"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
