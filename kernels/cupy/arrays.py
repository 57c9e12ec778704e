"""Every operation, forward and backward, on CuPy arrays, without torch. cuBLAS computes the products. Beside each, one pointwise kernel or
cuBLASLt's epilogue computes all else.

As in reference.py, backward computes everything again from the inputs. Pre-activations stay in float32 (float64 for float64), so that bias
and activation come before the only rounding. Only bfloat16's tanh-gelu rounds them, for cuBLASLt's derivative.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..applied import Applied, Needs
from ..catalogue import ACTIVATIONS, Activation
from ..reference import GatedMLPGrads, LinearGrads, MLPGrads, gate_up, rounded
from . import epilogues, launch
from .cublaslt import stored
from .launch import Gradients, Matrices, cupy_library


def _contiguous(array: Any) -> Any:
    import cupy

    return cupy.ascontiguousarray(array)


def _empty(like: Any, *shape: int) -> Any:
    return cupy_library().empty(like, shape, False)


def _rows(x: Any) -> Any:
    """[..., n] -> [rows, n]. Where n is 0, reshape(-1, n) could not tell the number of rows."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _like(dy: Any, x: Any) -> Any:
    """dy in the dtype of x. CuPy's own cast would round float64 to bfloat16 twice."""
    return dy if dy.dtype == x.dtype else rounded(dy, x.dtype)


def _on_device(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Run the operation on the device of its first array, as CuPy requires."""

    @functools.wraps(operation)
    def on_device(first, *arguments):
        with first.device:
            return operation(first, *arguments)

    return on_device


@_on_device
def linear(x, weight, bias, act: Activation, values: tuple):
    """act(x Wᵀ + b): x [..., K], weight [N, K], bias [N] or None -> [..., N]."""
    return _layer(x, weight, bias, act, values, False)


@_on_device
def glu(x, weight, bias, act: Activation, values: tuple):
    """act(x Gᵀ + bg) ⊙ (x Uᵀ + bu): weight packed [2F, K] or a pair of [F, K], bias the same way -> [..., F]."""
    return _layer(x, weight, bias, act, values, True)


@_on_device
def mlp(x, up_weight, down_weight, up_bias, down_bias, act: Activation, values: tuple):
    """act(x W₁ᵀ + b₁) W₂ᵀ + b₂: up_weight [H, K], down_weight [N, H] -> [..., N]."""
    h = _layer(x, up_weight, up_bias, act, values, False)
    return _layer(h, down_weight, down_bias, ACTIVATIONS["identity"], (), False)


@_on_device
def gated_mlp(x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias, act: Activation, values: tuple):
    """(act(x Gᵀ + bg) ⊙ (x Uᵀ + bu)) Dᵀ + bd: gate and up [H, K], or gate [2H, K] packed and no up; down [N, H] -> [..., N]."""
    h = _layer(x, *gate_up(gate_weight, up_weight, gate_bias, up_bias), act, values, True)
    return _layer(h, down_weight, down_bias, ACTIVATIONS["identity"], (), False)


@_on_device
def linear_backward(dy, x, weight, bias, act: Activation, values: tuple) -> LinearGrads:
    """Gradients of `linear` for dy [..., N]."""
    return _layer_backward(_rows(dy), x, weight, bias, act, values, False)[0]


@_on_device
def glu_backward(dy, x, weight, bias, act: Activation, values: tuple) -> LinearGrads:
    """Gradients of `glu` for dy [..., F], with weight's and bias's in the layout of the arguments."""
    return _layer_backward(_rows(dy), x, weight, bias, act, values, True)[0]


@_on_device
def mlp_backward(dy, x, up_weight, down_weight, up_bias, down_bias, act: Activation, values: tuple) -> MLPGrads:
    """Gradients of `mlp` for dy [..., N]."""
    up, ddown, ddown_bias = _mlp_backward(dy, x, up_weight, up_bias, down_weight, down_bias, act, values, False)
    return MLPGrads(up.x, up.weight, ddown, up.bias, ddown_bias, up.params)


@_on_device
def gated_mlp_backward(
    dy, x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias, act: Activation, values: tuple
) -> GatedMLPGrads:
    """Gradients of `gated_mlp` for dy [..., N]; those of a packed gate are packed."""
    weight, bias = gate_up(gate_weight, up_weight, gate_bias, up_bias)
    hidden, ddown, ddown_bias = _mlp_backward(dy, x, weight, bias, down_weight, down_bias, act, values, True)
    dgate, dup = _pair(hidden.weight)
    dgate_bias, dup_bias = _pair(hidden.bias)
    return GatedMLPGrads(hidden.x, dgate, dup, ddown, dgate_bias, dup_bias, ddown_bias, hidden.params)


def _pair(value: Any) -> tuple[Any, Any]:
    """(gate's, up's) of a pair, else (the array or None, None)."""
    return (value[0], value[1]) if isinstance(value, (tuple, list)) else (value, None)


def _product(x, weight):
    """x Wᵀ [M, N] for x [M, K] and weight [N, K], in float32 (float64 for float64)."""
    if x.dtype in (np.float32, np.float64):
        return x.dot(weight.T)
    import cupy

    (m, k), n = x.shape, weight.shape[0]
    z = cupy.zeros((m, n), np.float32)
    if m and n and k:
        # cuBLAS stores matrices by columns, and reads one stored by rows as its transpose. So it computes zᵀ [N, M] = W xᵀ.
        cuda, one, zero = cupy.cuda, np.array(1.0, np.float32), np.array(0.0, np.float32)
        kind = cuda.runtime.CUDA_R_16F if x.dtype == np.float16 else cuda.runtime.CUDA_R_16BF
        (weight, ldw, weight_by_rows), (x, ldx, x_by_rows) = _stored(weight), _stored(x)
        cuda.cublas.gemmEx(
            cuda.get_cublas_handle(), int(weight_by_rows), int(not x_by_rows), n, m, k,
            one.ctypes.data, weight.data.ptr, kind, ldw, x.data.ptr, kind, ldx,
            zero.ctypes.data, z.data.ptr, cuda.runtime.CUDA_R_32F, n,
            cuda.cublas.CUBLAS_COMPUTE_32F, cuda.cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip
    return z


def _stored(matrix) -> tuple[Any, int, bool]:
    """(the matrix or a copy, the stride of its rows or columns, True if it is stored row by row, False if column by column)."""
    found = stored(matrix.shape, cupy_library().strides(matrix))
    return (matrix, *found) if found else (_contiguous(matrix), matrix.shape[1], True)


def _preactivation(x, weight, bias, gated: bool) -> Matrices:
    """x Wᵀ for x [M, K], and the bias that is yet to be added."""
    gate_bias, up_bias = (None if b is None else _contiguous(b) for b in _pair(bias))
    if isinstance(weight, (tuple, list)):
        return Matrices(_product(x, weight[0]), _product(x, weight[1]), gate_bias, up_bias)
    z = _product(x, weight)
    if not gated:
        return Matrices(z, None, gate_bias)
    n = z.shape[1] // 2
    halves = (None, None) if gate_bias is None else (gate_bias[:n], gate_bias[n:])
    return Matrices(z[:, :n], z[:, n:], *halves)


def _layer(x, weight, bias, act: Activation, values: tuple, gated: bool):
    found = None if gated else _by_epilogue(x, weight, bias, act)
    if found:
        y, _ = found
    else:
        z = _preactivation(_rows(x), weight, bias, gated)
        in_place = not gated and z.z.dtype == x.dtype
        y = z.z if in_place else _empty(x, *z.z.shape)
        if not in_place or bias is not None or act.name != "identity":
            launch.forward(cupy_library(), z, y, None, Applied(act, values, gated))
    return y.reshape(*x.shape[:-1], y.shape[1])


def _by_epilogue(x, weight, bias, act: Activation, save: bool = False):
    """(y [M, N], the tensor that backward needs if `save`, else None), or None where cuBLASLt does not serve."""
    return epilogues.forward(cupy_library(), _rows(x), weight, None if bias is None else _contiguous(bias), act, save)


def _layer_backward(
    dy, x, weight, bias, act: Activation, values: tuple, gated: bool, emit: bool = False
) -> tuple[LinearGrads, Any]:
    """(gradients for dy [M, N], h = act(z) [M, N] if `emit`, else None)."""
    learned = [name for name, value in zip(act.params, values, strict=True) if not isinstance(value, float)]
    x2, paired = _rows(x), isinstance(weight, (tuple, list))
    z = _preactivation(x2, weight, bias, gated)
    m, n = z.z.shape
    dz = _empty(x, m, 2 * n if gated and not paired else n)
    dgate: Any = dz[:, :n] if gated else dz
    dup: Any = (_empty(x, m, n) if paired else dz[:, n:]) if gated else None
    into = Gradients(dgate, dup, _empty(x, m, n) if emit else None)
    dy = _like(dy, x)
    needs = Needs(h=emit, dbias=any(b is not None for b in _pair(bias)), dparam=bool(learned))
    found = launch.backward(cupy_library(), dy, z, None, "input", Applied(act, values, gated), into, needs)
    db: Any = None if found.dbias is None else found.dbias.astype(x.dtype)
    if paired:
        dx = dgate.dot(weight[0]) + dup.dot(weight[1])
        dw: Any = (dgate.T.dot(x2), dup.T.dot(x2))
        if db is not None:
            db = tuple(None if b is None else half for b, half in zip(_pair(bias), (db[:n], db[n:]), strict=True))
    else:
        dx, dw = dz.dot(weight), dz.T.dot(x2)
    arrays = (value for value in values if not isinstance(value, float))
    params = (
        {name: _param_gradient(*of) for name, *of in zip(learned, found.dparam, arrays, strict=True)} if learned else {}
    )
    return LinearGrads(dx.reshape(x.shape), dw, db, params), found.h


def _param_gradient(dparam, value):
    """A learnable array's gradient, from the gradient by column [N]."""
    return rounded((dparam.sum() if value.size == 1 else dparam).reshape(value.shape), value.dtype)


def _mlp_backward(dy, x, weight, bias, down_weight, down_bias, act: Activation, values: tuple, gated: bool):
    """(gradients of the hidden layer, of down_weight, of down_bias)."""
    dy = _like(_rows(dy), x)
    found = None if gated else _hidden_by_epilogue(dy, x, weight, bias, down_weight, act)
    hidden, h = found or _layer_backward(dy.dot(down_weight), x, weight, bias, act, values, gated, emit=True)
    if down_bias is None:
        return hidden, dy.T.dot(h), None
    dw, db = epilogues.weight_gradient(cupy_library(), dy, h) or (dy.T.dot(h), _sum_of_rows(dy))
    return hidden, dw, db


def _hidden_by_epilogue(dy, x, weight, bias, down_weight, act: Activation) -> tuple[LinearGrads, Any] | None:
    """(gradients of the hidden layer, h), or None where cuBLASLt does not serve."""
    if not epilogues.serves(cupy_library(), x, act, backward=True):
        return None
    if x.dtype == np.float16 and act.saves(()) == "input":  # cuBLASLt would keep z in float16, where it may overflow
        return None
    kept = _by_epilogue(x, weight, bias, act, save=True)
    found = epilogues.backward(cupy_library(), dy, down_weight, kept[1], act, bias is not None) if kept else None
    if not found:
        return None
    dz, db = found
    return LinearGrads(dz.dot(weight).reshape(x.shape), dz.T.dot(_rows(x)), db, {}), kept[0]


def _sum_of_rows(dy):
    identity, needs = Applied(ACTIVATIONS["identity"]), Needs(dz=False, dbias=True)
    found = launch.backward(cupy_library(), dy, Matrices(dy), None, "input", identity, Gradients(), needs)
    return found.dbias.astype(dy.dtype)
