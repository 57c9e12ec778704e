"""Every operation, forward and backward, in NumPy: the oracle that the other backends are compared with.

Arrays are float16, bfloat16 (ml_dtypes), float32 or float64; the arithmetic is float64 unless `compute_dtype` says
otherwise (None: the input's own, or float32 for bfloat16, as NumPy promotes it), and results have the dtype of x.
`weight` is `[out, in]`; a gated `weight` is `(gate, up)` or packed `[2F, K]`, gate half first, and its bias has the same
form. Gradients are computed from the inputs alone: nothing is kept between the calls.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

from .catalogue import Activation
from .typing import Array, NamedTuple

Pair = tuple[Any, Any]
Layout = TypeVar("Layout")


class LinearGrads(NamedTuple, Generic[Array, Layout]):
    """Gradients of `linear` and `glu`, in the order and layout of their arguments; `params` has those of the learnable arrays."""

    x: Array
    weight: Layout
    bias: Layout | None
    params: dict[str, Array]


class MLPGrads(NamedTuple, Generic[Array]):
    """Gradients of `mlp`, in the order of its arguments."""

    x: Array
    up_weight: Array
    down_weight: Array
    up_bias: Array | None
    down_bias: Array | None
    params: dict[str, Array]


class GatedMLPGrads(NamedTuple, Generic[Array]):
    """Gradients of `gated_mlp`, in the order of its arguments."""

    x: Array
    gate_weight: Array
    up_weight: Array | None
    down_weight: Array
    gate_bias: Array | None
    up_bias: Array | None
    down_bias: Array | None
    params: dict[str, Array]


def _quiet(operation: Callable) -> Callable:
    """Decorator that silences NumPy's floating-point warnings: inf and NaN are ordinary values here."""

    @functools.wraps(operation)
    def wrapped(*args, **kwargs):
        with np.errstate(all="ignore"):
            return operation(*args, **kwargs)

    return wrapped


def _cast(value: Any, dtype) -> Any:
    """Cast arrays, and tuples of them, to `dtype`. None and plain numbers stay as they are."""
    if isinstance(value, (tuple, list)):
        return tuple(_cast(item, dtype) for item in value)
    return rounded(value, dtype) if isinstance(value, np.ndarray) else value


def rounded(array: Any, dtype) -> Any:
    """The array (NumPy's or CuPy's) in `dtype`, each number rounded once, to nearest even.

    ml_dtypes casts float64 to bfloat16 by way of float32, which is a second rounding. Here float32 is rounded to odd (inexact results get
    the last bit 1), so that it still shows on which side of a tie the number was. Boldo and Melquiond 2008, doi:10.1109/TC.2007.70819.
    """
    if array.dtype == np.float64 and np.dtype(dtype).name == "bfloat16":
        single = array.astype(np.float32)
        down = single.view(np.uint32) - (np.abs(single) > np.abs(array))
        array = (down | (single != array)).view(np.float32)
    return array.astype(dtype)


def _cast_params(grads: dict[str, np.ndarray], act: Activation, values: tuple) -> dict[str, np.ndarray]:
    """Each learnable array's gradient in that array's own dtype."""
    given = dict(zip(act.params, values, strict=True))
    return {name: rounded(grad, given[name].dtype) for name, grad in grads.items()}


def _halves(value: Any) -> Pair:
    """(gate, up) of a pair, of a packed array, or of None."""
    if value is None or isinstance(value, (tuple, list)):
        return (None, None) if value is None else (value[0], value[1])
    half = value.shape[0] // 2
    return value[:half], value[half:]


def _rows(array):
    """[..., n] -> [rows, n]; reshape(-1, n) cannot tell the rows where n is 0."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def _affine(x, weight, bias):
    z = x @ weight.T
    return z if bias is None else z + bias


def _affine_grads(dz, x, weight, bias):
    """(dx, dw, db) of x Wᵀ + b: Wᵀδ, δ xᵀ and the sum of δ over the rows."""
    rows = _rows(dz)
    dw = rows.T @ _rows(x)
    return dz @ weight, dw, None if bias is None else rows.sum(0)


def _activation_grads(dy, operands, act: Activation, values):
    """(gradients of the operands, gradients of the learnable arrays) of y = act(*operands)."""
    grads = [dy * act.derivatives[name](*operands, *values) for name in act.operands]
    params = {}
    for name, value in zip(act.params, values, strict=True):
        if isinstance(value, np.ndarray):
            full = _rows(np.broadcast_to(dy * act.derivatives[name](*operands, *values), dy.shape))
            params[name] = (full.sum() if value.size == 1 else full.sum(0)).reshape(value.shape)
    return grads, params


@_quiet
def linear(x, weight, bias, act: Activation, values=(), *, compute_dtype: Any = np.float64):
    """act(x Wᵀ + b): x [..., K], weight [N, K], bias [N] or None -> [..., N]."""
    dtype = compute_dtype or x.dtype
    x_, w, b, values = _cast((x, weight, bias, values), dtype)
    return rounded(np.asarray(act.value(_affine(x_, w, b), *values)), x.dtype)


@_quiet
def linear_backward(dy, x, weight, bias, act: Activation, values=(), *, compute_dtype: Any = np.float64) -> LinearGrads:
    """Gradients of `linear` for dy [..., N]."""
    dtype, given = compute_dtype or x.dtype, values
    dy, x_, w, b, values = _cast((dy, x, weight, bias, values), dtype)
    (dz,), dparams = _activation_grads(dy, (_affine(x_, w, b),), act, values)
    dx, dw, db = _affine_grads(dz, x_, w, b)
    dx, dw, db = _cast((dx, dw, db), x.dtype)
    return LinearGrads(dx, dw, db, _cast_params(dparams, act, given))


@_quiet
def glu(x, weight, bias, act: Activation, values=(), *, compute_dtype: Any = np.float64):
    """act(x Gᵀ + bg) ⊙ (x Uᵀ + bu), or act(·, ·) of a pair: weight (gate, up) each [F, K], or packed [2F, K] -> [..., F]."""
    dtype = compute_dtype or x.dtype
    x_, w, b, values = _cast((x, weight, bias, values), dtype)
    operands = [_affine(x_, w, b) for w, b in zip(_halves(w), _halves(b), strict=True)]
    return rounded(np.asarray(act.gated.value(*operands, *values)), x.dtype)


@_quiet
def glu_backward(dy, x, weight, bias, act: Activation, values=(), *, compute_dtype: Any = np.float64) -> LinearGrads:
    """Gradients of `glu` for dy [..., F], with weight's and bias's in the layout of the arguments."""
    dtype, given = compute_dtype or x.dtype, values
    dy, x_, w, b, values = _cast((dy, x, weight, bias, values), dtype)
    weights, biases = _halves(w), _halves(b)
    operands = [_affine(x_, w, b) for w, b in zip(weights, biases, strict=True)]
    dz, dparams = _activation_grads(dy, operands, act.gated, values)
    parts = [_affine_grads(d, x_, w, b) for d, w, b in zip(dz, weights, biases, strict=True)]
    dx: Any = parts[0][0] + parts[1][0]
    dw: Any = (parts[0][1], parts[1][1])
    db: Any = None if b is None else (parts[0][2], parts[1][2])
    if not isinstance(w, tuple):
        dw, db = np.concatenate(dw), None if b is None else np.concatenate(db)
    dx, dw, db = _cast((dx, dw, db), x.dtype)
    return LinearGrads(dx, dw, db, _cast_params(dparams, act, given))


@_quiet
def mlp(x, up_weight, down_weight, up_bias, down_bias, act: Activation, values=(), *, compute_dtype: Any = np.float64):
    """act(x W₁ᵀ + b₁) W₂ᵀ + b₂: up_weight [H, K], down_weight [N, H] -> [..., N]. The hidden layer is not rounded."""
    dtype = compute_dtype or x.dtype
    x_, w1, w2, b1, b2, values = _cast((x, up_weight, down_weight, up_bias, down_bias, values), dtype)
    h = np.asarray(act.value(_affine(x_, w1, b1), *values))
    return rounded(_affine(h, w2, b2), x.dtype)


@_quiet
def mlp_backward(
    dy, x, up_weight, down_weight, up_bias, down_bias, act: Activation, values=(), *, compute_dtype: Any = np.float64
) -> MLPGrads:
    """Gradients of `mlp` for dy [..., N]."""
    dtype, given = compute_dtype or x.dtype, values
    dy, x_, w1, w2, b1, b2, values = _cast((dy, x, up_weight, down_weight, up_bias, down_bias, values), dtype)
    h = linear(x_, w1, b1, act, values, compute_dtype=dtype)
    dh, dw2, db2 = _affine_grads(dy, h, w2, b2)
    up = linear_backward(dh, x_, w1, b1, act, values, compute_dtype=dtype)
    dx, dw1, dw2, db1, db2 = _cast((up.x, up.weight, dw2, up.bias, db2), x.dtype)
    return MLPGrads(dx, dw1, dw2, db1, db2, _cast_params(up.params, act, given))


@_quiet
def gated_mlp(
    x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias, act: Activation, values=(),
    *, compute_dtype: Any = np.float64,
):  # fmt: skip
    """(act(x Gᵀ + bg) ⊙ (x Uᵀ + bu)) Dᵀ + bd: gate and up [F, K], or gate [2F, K] packed and no up; down [N, F] -> [..., N].

    The hidden layer is not rounded.
    """
    dtype = compute_dtype or x.dtype
    w, b = gate_up(gate_weight, up_weight, gate_bias, up_bias)
    x_, w, w2, b, b2, values = _cast((x, w, down_weight, b, down_bias, values), dtype)
    return rounded(_affine(glu(x_, w, b, act, values, compute_dtype=dtype), w2, b2), x.dtype)


@_quiet
def gated_mlp_backward(
    dy, x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias, act: Activation, values=(),
    *, compute_dtype: Any = np.float64,
) -> GatedMLPGrads:  # fmt: skip
    """Gradients of `gated_mlp` for dy [..., N]; those of a packed gate are packed."""
    dtype, given = compute_dtype or x.dtype, values
    w, b = gate_up(gate_weight, up_weight, gate_bias, up_bias)
    dy, x_, w, w2, b, b2, values = _cast((dy, x, w, down_weight, b, down_bias, values), dtype)
    h = glu(x_, w, b, act, values, compute_dtype=dtype)
    dh, dw2, db2 = _affine_grads(dy, h, w2, b2)
    hidden = glu_backward(dh, x_, w, b, act, values, compute_dtype=dtype)
    dx, dw, dw2, db, db2 = _cast((hidden.x, hidden.weight, dw2, hidden.bias, db2), x.dtype)
    params = _cast_params(hidden.params, act, given)
    (dgate, dup), (dgate_bias, dup_bias) = (dw, db) if isinstance(w, tuple) else ((dw, None), (db, None))
    return GatedMLPGrads(dx, dgate, dup, dw2, dgate_bias, dup_bias, db2, params)


def gate_up(gate_weight, up_weight, gate_bias, up_bias) -> tuple[Any, Any]:
    """(weight, bias) as `glu` takes them: packed where there is no up_weight, else pairs."""
    if up_weight is None:
        return gate_weight, gate_bias
    return (gate_weight, up_weight), (gate_bias, up_bias)
