"""What the tests share: the rule of accuracy, the activations with parameters worth testing, and the unfused layers."""

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import epilogue
from epilogue import ACTIVATIONS, Activation, activations
from epilogue.lookup import bind_params
from epilogue.triton import interpreter_refusal
from epilogue.vocabulary import (
    absolute,
    cos,
    erf,
    exp,
    expm1,
    log,
    log1p,
    maximum,
    minimum,
    normal_cdf,
    reciprocal,
    rsqrt,
    sigmoid,
    sin,
    softplus,
    sqrt,
    tanh,
    where,
)

interpreted = pytest.mark.skipif(interpreter_refusal() is not None, reason=str(interpreter_refusal()))
"""Of a test that starts a process with Triton's interpreter."""

PARAMS: dict[str, list[dict[str, float]]] = {
    "leaky_relu": [{}, {"negative_slope": 0.3}, {"negative_slope": -0.2}, {"negative_slope": 0.0}],
    "prelu": [{}, {"slope": -0.3}, {"slope": 0.0}],
    "elu": [{}, {"alpha": 0.5}, {"alpha": -0.5}],
    "celu": [{}, {"alpha": 0.5}, {"alpha": 2.0}, {"alpha": -1.0}],
    "hardtanh": [{}, {"min_val": -2.0, "max_val": 0.5}, {"min_val": 1.0, "max_val": 3.0}],
    "softplus": [{}, {"beta": 2.0, "threshold": 5.0}, {"beta": 0.5}, {"beta": -1.0}],
    "softshrink": [{}, {"lambd": 0.0}, {"lambd": 2.0}],
    "hardshrink": [{}, {"lambd": 0.0}, {"lambd": 2.0}],
    "threshold": [{"threshold": 0.5, "value": -2.0}, {"threshold": -1.0, "value": 3.0}],
    "swish": [{}, {"beta": 1.7}, {"beta": -0.5}, {"beta": 0.0}],
    "laplace": [{}, {"mu": 0.0, "sigma": 1.0}, {"mu": -1.0, "sigma": 3.0}],
    "xielu": [{}, {"alpha_p": -2.0, "alpha_n": 1.0, "beta": 0.25}, {"alpha_p": 0.5, "alpha_n": -3.0, "eps": -0.5}],
}


def cases(arity: int | None = None, every: bool = True) -> list[Any]:
    """(entry, parameter values) of all activations, as pytest parameters; every=False: one choice of values each."""
    return [
        pytest.param(
            entry,
            bind_params(entry, params)[1],
            id="-".join([name, *(f"{key}={value:g}" for key, value in params.items())]),
        )
        for name, entry in ACTIVATIONS.items()
        for params in PARAMS.get(name, [{}])[: None if every else 1]
        if arity in (None, entry.arity)
    ]


def dealt(cases: Sequence[Any], dtypes: Collection[torch.dtype], kernels: Collection[str]) -> list[Any]:
    """Every case in every dtype and on every kernel, each once: as many dtypes as kernels, and all pairs of the three.

    All triples where the kernels are compiled and not interpreted, which is quick.
    """
    assert len(dtypes) == len(kernels)
    return [
        pytest.param(*case.values, dtype, kernel, id=f"{case.id}-{dtype}-{kernel}")
        for i, case in enumerate(cases)
        for j, dtype in enumerate(dtypes)
        for k, kernel in enumerate(kernels)
        if torch.cuda.is_available() or (i + j + k) % len(kernels) == 0
    ]


def keywords(entry: Activation, values: tuple) -> dict[str, Any]:
    return dict(zip(entry.params, values, strict=True))


class Inaccurate(AssertionError):
    """A result too far off. found: dtype, shape, index of the worst element, actual and exact there, measure, error, torch's, ratio."""

    def __init__(self, **found: Any) -> None:
        super().__init__(", ".join(f"{name} {value}" for name, value in found.items()))
        self.found = found


def assert_accurate(actual, unfused, exact) -> None:
    """`actual` errs at most twice as much as torch's own unfused result of that dtype, by maximum and by RMS.

    exact: the same in float64. Where torch makes no error, one rounding of the largest value is allowed. Where torch's
    result is not finite, the same is expected.
    """
    assert (actual.dtype, actual.shape) == (unfused.dtype, unfused.shape)
    dtype, shape = str(actual.dtype).removeprefix("torch."), list(actual.shape)
    eps = torch.finfo(actual.dtype).eps * (
        4 if actual.dtype == torch.float32 else 1
    )  # float32 sums differ by order alone
    actual, unfused, exact = (t.detach().double().cpu() for t in (actual, unfused, exact))
    finite = unfused.isfinite() & exact.isfinite()
    torch.testing.assert_close(actual[~finite], unfused[~finite], rtol=0, atol=0, equal_nan=True)
    if not finite.any():
        return
    for measure, size in (("largest", lambda t: t.abs().max()), ("RMS", lambda t: t.square().mean().sqrt())):
        error, torchs = size((actual - exact)[finite]), size((unfused - exact)[finite])
        allowed = torch.maximum(2.0 * torchs, eps * size(exact[finite]))
        if not error <= allowed:  # not so for NaN either
            worst = torch.where(finite, actual - exact, 0.0).abs().nan_to_num(nan=torch.inf).argmax()
            raise Inaccurate(
                dtype=dtype, shape=shape, index=[int(i) for i in np.unravel_index(int(worst), shape)],
                actual=actual.flatten()[worst].item(), exact=exact.flatten()[worst].item(), measure=measure,
                error=error.item(), torch=torchs.item(), ratio=(error / torchs).item(), allowed=allowed.item(),
            )  # fmt: skip


def not_finite() -> dict[tuple[str, str], list[set[str]]]:
    """(activation, input) -> the cells of the table in activations.py: torch's value, ours, torch's gradient, ours."""
    cells = (re.split(r"\s{2,}", line.strip()) for line in str(activations.__doc__).splitlines() if line[:4].isspace())
    _, *rows = cells
    return {(name, x): [set(cell.split(" or ")) for cell in row] for name, x, *row in rows}


def as_cell(number: float) -> str:
    return "nan" if number != number else f"{number:.6g}".replace("e+", "e")


def each(function: Callable, value: Any) -> Any:
    """`function` of every array in a structure of dicts, tuples and None."""
    if isinstance(value, dict):
        return {name: each(function, item) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(each(function, item) for item in value)
    return None if value is None else function(value)


def leaves(value: Any) -> list[Any]:
    """The arrays of a structure of dicts, tuples and None, in order."""
    found: list[Any] = []
    each(found.append, value)
    return found


OPS = ("linear", "glu", "glu packed", "mlp", "gated_mlp", "gated_mlp packed")


def op_cases(every: bool = True) -> list[Any]:
    """(op, entry, parameter values): every operation with the activations that it takes."""
    return [
        pytest.param(op, *case.values, id=f"{op}-{case.id}")
        for op in OPS
        for case in cases(1 if op in ("linear", "mlp") else None, every)
    ]


def arguments(op: str, rng, lead: tuple = (7,), sizes: tuple = (5, 6, 3), bias: bool = True) -> dict[str, Any]:
    """Arguments of an operation as float64 arrays: x [*lead, K], H hidden (or glu's and linear's output), N output."""
    K, H, N = sizes

    def draw(*shape):
        return rng.standard_normal(shape) / max(1, shape[-1] if len(shape) > 1 else 2) ** 0.5

    gate, up, down = draw(H, K), draw(H, K), draw(N, H)
    gate_bias, up_bias, down_bias = (draw(H), draw(H), draw(N)) if bias else (None, None, None)
    x = rng.standard_normal((*lead, K))
    if op == "linear":
        return {"x": x, "weight": up, "bias": up_bias}
    if op == "glu":
        return {"x": x, "weight": (gate, up), "bias": (gate_bias, up_bias) if bias else None}
    if op == "glu packed":
        packed = np.concatenate([gate_bias, up_bias]) if bias else None
        return {"x": x, "weight": np.concatenate([gate, up]), "bias": packed}
    if op == "mlp":
        return {"x": x, "up_weight": up, "down_weight": down, "up_bias": up_bias, "down_bias": down_bias}
    if op == "gated_mlp packed":
        gate, up = np.concatenate([gate, up]), None
        gate_bias, up_bias = np.concatenate([gate_bias, up_bias]) if bias else None, None
    return {
        "x": x, "gate_weight": gate, "up_weight": up, "down_weight": down,
        "gate_bias": gate_bias, "up_bias": up_bias, "down_bias": down_bias,
    }  # fmt: skip


def fused(op: str, args: dict[str, Any], entry: Activation, values: tuple = (), **options):
    """The operation as ours."""
    return getattr(epilogue, op.split()[0])(**args, activation=entry, **keywords(entry, values), **options)


def unfused(op: str, args: dict[str, Any], entry: Activation, values: tuple = (), dropout_p: float = 0.0):
    """The operation as people write it in torch."""
    x, *rest = args.values()
    if op == "linear":
        return oracle(entry, values, F.linear(x, *rest))
    if op == "mlp":
        up, down, up_bias, down_bias = rest
        h = oracle(entry, values, F.linear(x, up, up_bias))
        return F.linear(F.dropout(h, dropout_p), down, down_bias)
    if op.startswith("gated_mlp"):
        gate, up, down, gate_bias, up_bias, down_bias = rest
        weight, bias = (gate, gate_bias) if up is None else ((gate, up), (gate_bias, up_bias))
        h = unfused("glu", {"x": x, "weight": weight, "bias": bias}, entry, values)
        return F.linear(F.dropout(h, dropout_p), down, down_bias)
    weight, bias = rest
    if isinstance(weight, tuple):
        a, b = (F.linear(x, w, bias and bias[i]) for i, w in enumerate(weight))
    else:
        a, b = F.linear(x, weight, bias).chunk(2, -1)
    return oracle(entry, values, a, b) if entry.arity == 2 else oracle(entry, values, a) * b


def oracle(entry: Activation, values: tuple, *operands):
    """The activation on torch tensors, in their dtype: a formula without an oracle computes 16 bits in float32."""
    return entry.oracle(F, *operands, *values).to(operands[0].dtype)


def train(function: Callable, args: dict[str, Any], dy, values: tuple = ()) -> list[Any]:
    """[y, gradients of all tensors in args and values] of function(args, values)."""
    args = each(lambda t: t.detach().clone().requires_grad_(), args)
    values = tuple(v.detach().clone().requires_grad_() if isinstance(v, torch.Tensor) else v for v in values)
    y = function(args, values)
    tensors = [*leaves(args), *(v for v in values if isinstance(v, torch.Tensor))]
    return [y, *torch.autograd.grad(y, tensors, dy.to(y.dtype))]


def assert_trains(function: Callable, op: str, args: dict[str, Any], entry: Activation, values: tuple, dy) -> None:
    """function(args, values) and its gradients are as accurate as the unfused layers of the same dtype."""

    def plain(args, values):
        return unfused(op, args, entry, values)

    def double(value):
        return value.double() if isinstance(value, torch.Tensor) else value

    own, exact = train(plain, args, dy, values), train(plain, each(double, args), dy, each(double, values))
    for actual, torchs, truth in zip(train(function, args, dy, values), own, exact, strict=True):
        assert_accurate(actual, torchs, truth)


def kept(function: Callable, *owned: torch.Tensor) -> list[tuple[Any, ...]]:
    """(dtype, *shape) of all that `function` keeps for backward, sorted; views of `owned`, the user's own tensors, cost nothing."""
    storages = {tensor.untyped_storage().data_ptr() for tensor in owned}
    found = []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in storages:
            found.append((str(tensor.dtype).removeprefix("torch."), *tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sorted(found)


def philox(seed, group, row, rounds):
    """Philox4x32 in plain integers, after Salmon et al. 2011: the four words of counter (group, row, 0, 0)."""
    c, k, low = [group, row, 0, 0], [seed & 0xFFFFFFFF, seed >> 32], 0xFFFFFFFF
    for _ in range(rounds):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & low, (a >> 32) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


H = 1e-3
"""The step of `slope`."""


def slope(function, x):
    """f'(x) to fourth order in H."""
    near, far = function(x + H) - function(x - H), function(x + 2 * H) - function(x - 2 * H)
    return (8 * near - far) / (12 * H)


def every_primitive(x, p=0.7, q=1.3):
    """A formula that calls each primitive, without an oracle or a derivative of its own."""
    t = (
        cos(p * x)
        + erf(x) * rsqrt(1.0 + x * x)
        + sin(q * x) * softplus(x)
        + normal_cdf(x) * expm1(-x * x)
        + log(1.0 + x * x)
    )
    return (
        where(x > 0.0, t, minimum(maximum(tanh(x), sigmoid(x)), absolute(x)))
        + log1p(exp(-x * x)) * reciprocal(2.0 + x * x)
        + sqrt(1.0 + x**2)
    )
