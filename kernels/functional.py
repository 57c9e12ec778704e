"""The public operations: what the user gave is checked here, once, and a backend is picked.

NumPy arrays run the reference; torch tensors the Triton kernels where those serve them and plain torch operations where not. Below this
file an `Activation` travels, never a string.
"""

import os
import sys
from typing import Any

import numpy as np

from . import reference
from .catalogue import ACTIVATIONS, Activation, bind_params, resolve
from .reference import GatedMLPGrads, LinearGrads, MLPGrads

# Triton reads the same switch when it decorates a kernel, so it is read once here too.
_INTERPRET = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def linear(x, weight, bias=None, activation: Any = "gelu", **params):
    """act(x Wᵀ + b), with the activation in the product's epilogue.

    x [..., K], weight [N, K] (nn.Linear's layout), bias [N] or None -> [..., N], in the dtype of x (autocast's, where that is on).
    All of one dtype, float16, bfloat16, float32 or float64, and on one device; torch tensors or NumPy arrays. Products accumulate in
    float32 at least, bias and activation are applied before the one rounding. Backward keeps x and the pre-activation z, or y alone where
    y determines the derivative (relu, tanh, …).

    activation: whatever `epilogue.resolve` takes; its parameters are keywords with torch's names and defaults (`negative_slope=0.01`).
    prelu's slope and swish's beta may be tensors, one element or one per output channel, and get their gradient.

    ValueError for an unknown activation or shapes that do not fit, TypeError for dtypes, devices or kinds of arrays that do not.

    >>> linear(torch.randn(8, 64), torch.randn(128, 64), activation="leaky_relu", negative_slope=0.2).shape
    torch.Size([8, 128])
    """
    act, values = _resolve("linear", activation, params)
    _check_layer("linear", x, "weight", weight, "bias", bias)
    if values:
        _check_values("linear", x, act, values, weight.shape[0])
    return _backend(x, weight).linear(x, weight, bias, act, values)


def glu(x, weight, bias=None, activation: Any = "silu", **params):
    """act(x Gᵀ + bg) ⊙ (x Uᵀ + bu), or act(x Gᵀ + bg, x Uᵀ + bu) for a pair such as maxout; one pass over x.

    x [..., K]; weight the pair (gate, up), each [F, K], or packed [2F, K] with the gate half first; bias the same way, [F] each or [2F]
    -> [..., F]. No weight is copied or repacked. activation: an elementwise one (its gated variant is meant), a pair, or a gated
    variant by name: glu, reglu, geglu, geglu_tanh, swiglu.  Dauphin et al. 2016, arXiv:1612.08083; Shazeer 2020, arXiv:2002.05202.

    Dtypes, devices, parameters and errors as for `linear`.
    """
    act, values = _resolve("glu", activation, params)
    features = _check_glu("glu", x, weight, bias)
    _check_values("glu", x, act, values, features)
    return _backend(x, weight).glu(x, weight, bias, act, values)


def mlp(
    x, up_weight, down_weight, up_bias=None, down_bias=None, activation: Any = "gelu",
    dropout_p: float = 0.0, training: bool = False, **params,
):  # fmt: skip
    """dropout(act(x W₁ᵀ + b₁)) W₂ᵀ + b₂: the transformer's MLP.

    x [..., K], up_weight [H, K], down_weight [N, H], up_bias [H], down_bias [N] -> [..., N]. dropout_p: the share of hidden units that
    training drops (torch.nn.functional.dropout's semantics); without `training` nothing is dropped.

    Dtypes, devices, parameters and errors as for `linear`.
    """
    act, values = _resolve("mlp", activation, params)
    _check_layer("mlp", x, "up_weight", up_weight, "up_bias", up_bias)
    _check_down("mlp", x, up_weight.shape[0], down_weight, down_bias)
    _check_values("mlp", x, act, values, up_weight.shape[0])
    dropout = _dropout("mlp", x, dropout_p, training)
    return _backend(x, up_weight).mlp(x, up_weight, down_weight, up_bias, down_bias, act, values, **dropout)


def gated_mlp(
    x, gate_weight, up_weight, down_weight, gate_bias=None, up_bias=None, down_bias=None, activation: Any = "silu",
    dropout_p: float = 0.0, training: bool = False, **params,
):  # fmt: skip
    """dropout(act(x Gᵀ + bg) ⊙ (x Uᵀ + bu)) Dᵀ + bd: the gated MLP of Llama and its kin.

    x [..., K], gate_weight and up_weight [H, K], down_weight [N, H], biases [H], [H] and [N] or None -> [..., N]. activation as for
    `glu`, dropout as for `mlp`.  Shazeer 2020, arXiv:2002.05202.

    Dtypes, devices, parameters and errors as for `linear`.
    """
    act, values = _resolve("gated_mlp", activation, params)
    features = _check_glu("gated_mlp", x, (gate_weight, up_weight), (gate_bias, up_bias))
    _check_down("gated_mlp", x, features, down_weight, down_bias)
    _check_values("gated_mlp", x, act, values, features)
    dropout = _dropout("gated_mlp", x, dropout_p, training)
    backend = _backend(x, gate_weight)
    return backend.gated_mlp(
        x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias, act, values, **dropout
    )


def linear_backward(dy, x, weight, bias=None, activation: Any = "gelu", **params) -> LinearGrads:
    """Gradients of `linear` for dy [..., N], as the named tuple (x, weight, bias, params).

    For NumPy arrays, which have no autograd; the pre-activation is computed again from the inputs. Arguments and errors as for `linear`.
    """
    act, values = _resolve("linear", activation, params)
    _no_autograd("linear_backward", x)
    _check_layer("linear_backward", x, "weight", weight, "bias", bias)
    _check_values("linear_backward", x, act, values, weight.shape[0])
    _check_dy("linear_backward", dy, x, weight.shape[0])
    return reference.linear_backward(dy, x, weight, bias, act, values)


def glu_backward(dy, x, weight, bias=None, activation: Any = "silu", **params) -> LinearGrads:
    """Gradients of `glu` for dy [..., F], as (x, weight, bias, params), weight's and bias's in the layout in which they came.

    For NumPy arrays, as `linear_backward`.
    """
    act, values = _resolve("glu", activation, params)
    _no_autograd("glu_backward", x)
    features = _check_glu("glu_backward", x, weight, bias)
    _check_values("glu_backward", x, act, values, features)
    _check_dy("glu_backward", dy, x, features)
    return reference.glu_backward(dy, x, weight, bias, act, values)


def mlp_backward(
    dy, x, up_weight, down_weight, up_bias=None, down_bias=None, activation: Any = "gelu", **params
) -> MLPGrads:
    """Gradients of `mlp` (without dropout) for dy [..., N], as (x, up_weight, down_weight, up_bias, down_bias, params).

    For NumPy arrays, as `linear_backward`.
    """
    act, values = _resolve("mlp", activation, params)
    _no_autograd("mlp_backward", x)
    _check_layer("mlp_backward", x, "up_weight", up_weight, "up_bias", up_bias)
    _check_down("mlp_backward", x, up_weight.shape[0], down_weight, down_bias)
    _check_values("mlp_backward", x, act, values, up_weight.shape[0])
    _check_dy("mlp_backward", dy, x, down_weight.shape[0])
    return reference.mlp_backward(dy, x, up_weight, down_weight, up_bias, down_bias, act, values)


def gated_mlp_backward(
    dy, x, gate_weight, up_weight, down_weight, gate_bias=None, up_bias=None, down_bias=None,
    activation: Any = "silu", **params,
) -> GatedMLPGrads:  # fmt: skip
    """Gradients of `gated_mlp` (without dropout) for dy [..., N], in the order of its arguments, then params.

    For NumPy arrays, as `linear_backward`.
    """
    act, values = _resolve("gated_mlp", activation, params)
    _no_autograd("gated_mlp_backward", x)
    features = _check_glu("gated_mlp_backward", x, (gate_weight, up_weight), (gate_bias, up_bias))
    _check_down("gated_mlp_backward", x, features, down_weight, down_bias)
    _check_values("gated_mlp_backward", x, act, values, features)
    _check_dy("gated_mlp_backward", dy, x, down_weight.shape[0])
    return reference.gated_mlp_backward(
        dy, x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias, act, values
    )


_GATED_OPS = ("glu", "gated_mlp")


def _resolve(op: str, spec: Any, params: dict) -> tuple[Activation, tuple]:
    """The activation that `op` means by `spec`, and its parameters' values in order."""
    if not params:  # the short way for a plain name, or a module's Activation
        act = ACTIVATIONS.get(spec) if type(spec) is str else spec
        if type(act) is Activation and act.arity == 1 and not act.params:
            return act, ()
    act, fixed = resolve(spec)
    if act.arity == 2 and op not in _GATED_OPS:
        raise ValueError(
            f"{op}: {act.name!r} takes two operands; use epilogue.{'gated_mlp' if op == 'mlp' else 'glu'}, "
            f"or one of the elementwise activations here"
        )
    if fixed:
        twice = [name for name in params if name in fixed]
        if twice:
            raise TypeError(f"{op}: {twice[0]!r} is given twice, by activation={spec!r} and as a keyword; give it once")
        params = {**fixed, **params}
    if params or act.params:
        return bind_params(act.gate or act, params)
    return act, ()


def _is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


_FLOATS = ("float16", "bfloat16", "float32", "float64")

# Filled with the first tensor, since importing this file must not import torch.
_eager: Any = None
_TORCH_FLOATS: set = set()


def _backend(x, weight):
    """The module whose operations serve these arrays."""
    global _eager
    if isinstance(x, np.ndarray):
        return reference
    if _eager is None:
        import torch

        from . import eager as _eager

        _TORCH_FLOATS.update(getattr(torch, name) for name in _FLOATS)
    if x.is_cpu and not _INTERPRET:
        return _eager
    from . import triton

    if triton.refusal(x, weight):
        return _eager
    from .triton import autograd

    return autograd


def _shape(array) -> list[int]:
    return list(array.shape)


def _check_layer(op: str, x, weight_name: str, weight, bias_name: str, bias) -> None:
    """x [..., K], weight [N, K], bias [N] or None: one kind of array, one dtype, one device."""
    if _fit(x, weight, bias):
        return
    _check_arrays(op, x, weight_name, weight, bias_name, bias)
    if weight.ndim != 2:
        raise ValueError(f"{op}: {weight_name} must be [out, in], two axes as nn.Linear's; got shape {_shape(weight)}")
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        hint = ""
        if x.ndim and x.shape[-1] == weight.shape[0]:
            hint = f". A weight stored [in, out] goes in as {weight_name}.T"
        raise ValueError(
            f"{op}: the last axis of x must be {weight_name}'s second, {weight.shape[1]}; "
            f"got x {_shape(x)} and {weight_name} {_shape(weight)}{hint}"
        )
    if bias is not None and (bias.ndim != 1 or bias.shape[0] != weight.shape[0]):
        raise ValueError(
            f"{op}: {bias_name} must have shape [{weight.shape[0]}], one per row of {weight_name}; got {_shape(bias)}"
        )


def _fit(x, weight, bias) -> bool:
    """Whether these are tensors without a fault: the cheap test in front of the checks, whose cost a 4x8 call would feel."""
    try:
        dtype, device, (features, k) = x.dtype, x.device, weight.shape
        return (
            dtype is weight.dtype
            and dtype in _TORCH_FLOATS
            and device == weight.device
            and x.shape[-1] == k
            and (bias is None or (bias.dtype is dtype and bias.device == device and bias.shape == (features,)))
        )
    except (AttributeError, IndexError, ValueError):
        return False  # not tensors, or not of these axes: the checks say what they should be


def _check_arrays(op: str, x, weight_name: str, weight, bias_name: str, bias) -> None:
    is_torch = _is_torch(x)
    if not is_torch and not isinstance(x, np.ndarray):
        raise TypeError(
            f"{op}: x must be a torch.Tensor or a numpy.ndarray, got {type(x).__name__}; "
            "convert it, for instance with torch.as_tensor(x)"
        )
    if not _is_float(x):
        raise TypeError(
            f"{op}: x must be float16, bfloat16, float32 or float64, got {x.dtype}; convert it, for instance to float32"
        )
    for name, array in ((weight_name, weight), (bias_name, bias)):
        if array is None and name == bias_name:
            continue
        if not (_is_torch(array) if is_torch else isinstance(array, np.ndarray)):
            raise TypeError(f"{op}: {name} must be a {_kind(x)} as x is, got {type(array).__name__}")
        if array.dtype != x.dtype and not (is_torch and _is_float(array) and _autocast(x)):
            raise TypeError(
                f"{op}: {name} must have the dtype of x, {x.dtype}; got {array.dtype}. Convert one of them, or use autocast"
            )
        if is_torch and array.device != x.device:
            raise TypeError(
                f"{op}: {name} must be on the device of x, {x.device}; got {array.device}. Move one of them"
            )


def _kind(x) -> str:
    return "torch.Tensor" if _is_torch(x) else "numpy.ndarray"


def _is_float(x) -> bool:
    return str(x.dtype).removeprefix("torch.") in _FLOATS


def _autocast(x) -> bool:
    import torch

    return torch.is_autocast_enabled(x.device.type)


def _check_glu(op: str, x, weight, bias) -> int:
    """The number of output features F of a gated layer, whose weight is (gate, up) or packed."""
    paired = isinstance(weight, (tuple, list))
    if paired != isinstance(bias, (tuple, list)) and bias is not None:
        want, got = ("a pair (gate, up)", "one array") if paired else ("one array [2F]", "a pair")
        raise ValueError(f"{op}: bias must be laid out as weight is: expected {want}, got {got}")
    if not paired:
        _check_layer(op, x, "weight", weight, "bias", bias)
        if weight.shape[0] % 2:
            raise ValueError(
                f"{op}: a packed weight is [2F, K], gate half first, so its first axis is even; got {_shape(weight)}"
            )
        return weight.shape[0] // 2
    biases = (None, None) if bias is None else bias
    if len(weight) != 2 or len(biases) != 2:
        raise ValueError(f"{op}: weight and bias are pairs (gate, up); got {len(weight)} and {len(biases)} items")
    _check_layer(op, x, "gate_weight", weight[0], "gate_bias", biases[0])
    _check_layer(op, x, "up_weight", weight[1], "up_bias", biases[1])
    if weight[0].shape != weight[1].shape:
        raise ValueError(
            f"{op}: gate and up weight must have one shape; got {_shape(weight[0])} and {_shape(weight[1])}"
        )
    return weight[0].shape[0]


def _check_down(op: str, x, features: int, weight, bias) -> None:
    _check_arrays(op, x, "down_weight", weight, "down_bias", bias)
    if weight.ndim != 2 or weight.shape[1] != features:
        raise ValueError(
            f"{op}: down_weight must be [out, {features}], its second axis the hidden features; got {_shape(weight)}"
        )
    if bias is not None and (bias.ndim != 1 or bias.shape[0] != weight.shape[0]):
        raise ValueError(f"{op}: down_bias must have shape [{weight.shape[0]}]; got {_shape(bias)}")


def _check_values(op: str, x, act: Activation, values: tuple, features: int) -> None:
    """Learnable arrays: of x's kind, floating, on its device, one element or one per output channel."""
    for name, value in zip(act.params, values, strict=True):
        if isinstance(value, float):
            continue
        if (
            _is_torch(value) != _is_torch(x)
            or not (_is_torch(x) or isinstance(value, np.ndarray))
            or not _is_float(value)
        ):
            raise TypeError(f"{op}: {act.name}'s {name} must be a number or a floating {_kind(x)}, got {value!r}")
        size = value.shape[0] if value.ndim == 1 else 1
        if value.ndim > 1 or size not in (1, features):
            raise ValueError(
                f"{op}: {act.name}'s {name} must have one element or {features}, one per output channel; "
                f"got shape {_shape(value)}"
            )
        if _is_torch(x) and value.device != x.device:
            raise TypeError(f"{op}: {act.name}'s {name} must be on the device of x, {x.device}; got {value.device}")


def _check_dy(op: str, dy, x, features: int) -> None:
    expected = [*x.shape[:-1], features]
    if not isinstance(dy, np.ndarray) or not _is_float(dy) or _shape(dy) != expected:
        got = f"{dy.dtype} {_shape(dy)}" if isinstance(dy, np.ndarray) else type(dy).__name__
        raise ValueError(f"{op}: dy must be a floating numpy.ndarray of the result's shape {expected}; got {got}")


def _dropout(op: str, x, p: float, training: bool) -> dict[str, float]:
    """The backend's dropout keyword: nothing where nothing is dropped."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{op}: dropout_p must be a probability between 0 and 1, got {p}")
    if not training or p == 0.0:
        return {}
    if not _is_torch(x):
        raise ValueError(
            f"{op}: dropout in training needs torch tensors, got a {type(x).__name__}; pass training=False"
        )
    return {"dropout_p": float(p)}


def _no_autograd(op: str, x) -> None:
    if _is_torch(x):
        raise TypeError(f"{op} is for arrays without autograd; for a torch.Tensor call backward() on the result")
