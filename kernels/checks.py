"""Checks of the user's arguments, made once: arrays of one kind, dtype and device, in shapes that fit. All code below relies on them.

ValueError and TypeError say what was given, what was expected and what to do about it.
"""

import sys
from typing import Any

import numpy as np

from .catalogue import Activation

_FLOATS = ("float16", "bfloat16", "float32", "float64")


def is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def is_recorded(x: Any) -> bool:
    """True if x is torch.fx's stand-in for a tensor: in a trace, functions are called with such objects."""
    return type(x).__name__.endswith("Proxy") and hasattr(x, "__torch_function__")


def is_cupy(x: Any) -> bool:
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(x, cupy.ndarray)


def _shape(array) -> list[Any]:
    """The array's shape; "*" for an axis of a nested tensor that has no single size."""
    return [_size(array, axis) for axis in range(array.ndim)] if _nested(array) else list(array.shape)


def _features(x) -> Any:
    """The size of x's last axis, or None where x has no axes."""
    return None if not x.ndim else _size(x, -1) if _nested(x) else x.shape[-1]


def _nested(x) -> bool:
    return is_torch(x) and x.is_nested


def _size(nested, axis: int) -> Any:
    try:
        return nested.size(axis)
    except RuntimeError:
        return "*"


def check_layer(op: str, x, weight_name: str, weight, bias_name: str, bias) -> None:
    """Check that x is [..., K], weight [N, K], and bias [N] or None, all of one kind, dtype and device."""
    if fit(x, weight, bias):
        return
    _check_arrays(op, x, weight_name, weight, bias_name, bias)
    if weight.ndim != 2:
        raise ValueError(f"{op}: {weight_name} must be [out, in], two axes as nn.Linear's; got shape {_shape(weight)}")
    features = _features(x)
    if features != weight.shape[1]:
        hint = ""
        if features == weight.shape[0]:
            hint = f". A weight stored [in, out] goes in as {weight_name}.T"
        raise ValueError(
            f"{op}: the last axis of x must be {weight_name}'s second, {weight.shape[1]}; "
            f"got x {_shape(x)} and {weight_name} {_shape(weight)}{hint}"
        )
    if bias is not None and (bias.ndim != 1 or bias.shape[0] != weight.shape[0]):
        raise ValueError(
            f"{op}: {bias_name} must have shape [{weight.shape[0]}], one per row of {weight_name}; got {_shape(bias)}"
        )


def fit(x, weight, bias, hidden: int | None = None) -> bool:
    """True if these are tensors without a fault. This cheap test comes before the full checks, which would slow a 4x8 call down.

    hidden: the number of features that the weight multiplies, where it is not that of x.
    """
    try:
        dtype, device, (features, k) = x.dtype, x.device, weight.shape
        return (
            dtype is weight.dtype
            and dtype.is_floating_point
            and dtype.itemsize > 1
            and device == weight.device
            and (x.shape[-1] if hidden is None else hidden) == k
            and (bias is None or (bias.dtype is dtype and bias.device == device and bias.shape == (features,)))
        )
    except (AttributeError, IndexError, ValueError, RuntimeError):
        return False  # not tensors, or not of these axes: the full checks say what is wrong


def _check_arrays(op: str, x, weight_name: str, weight, bias_name: str, bias) -> None:
    kind = _kind(x)
    _check_class(f"{op}: x", x)
    if kind is None:
        raise TypeError(
            f"{op}: x must be a torch.Tensor, a numpy.ndarray or a cupy.ndarray, got {type(x).__name__}; "
            "convert it, for instance with torch.as_tensor(x)"
        )
    if not _is_float(x):
        raise TypeError(
            f"{op}: x must be float16, bfloat16, float32 or float64, got {x.dtype}; convert it, for instance to float32"
        )
    for name, array in ((weight_name, weight), (bias_name, bias)):
        if array is None and name == bias_name:
            continue
        _check_class(f"{op}: {name}", array)
        if _kind(array) != kind:
            hint = "; an activation goes by keyword, activation=…" if isinstance(array, str) else ""
            raise TypeError(f"{op}: {name} must be a {kind} as x is, got {type(array).__name__}{hint}")
        if array.dtype != x.dtype and not (is_torch(x) and _is_float(array) and _autocast(x)):
            raise TypeError(
                f"{op}: {name} must have the dtype of x, {x.dtype}; got {array.dtype}. Convert one of them, or use autocast"
            )
        if _apart(array, x):
            raise TypeError(
                f"{op}: {name} must be on the device of x, {x.device}; got {array.device}. Move one of them"
            )


def _kind(x) -> str | None:
    """The name of an array's type, or None where it is not supported."""
    if is_torch(x):
        return "torch.Tensor"
    if is_cupy(x):
        return "cupy.ndarray"
    return "numpy.ndarray" if isinstance(x, np.ndarray) else None


def _check_class(what: str, array) -> None:
    """Raise TypeError for a subclass of numpy.ndarray other than memmap: its arithmetic may differ (np.matrix) or lose data (a mask)."""
    if _kind(array) == "numpy.ndarray" and type(array) not in (np.ndarray, np.memmap):
        remedy = "its filled(…)" if isinstance(array, np.ma.MaskedArray) else "numpy.asarray(…)"
        raise TypeError(
            f"{what} must be a numpy.ndarray itself, got its subclass {type(array).__name__}, whose arithmetic differs; "
            f"convert it with {remedy}"
        )


def _apart(array, x) -> bool:
    """True if two arrays of one kind are on different devices."""
    return (is_torch(x) or is_cupy(x)) and array.device != x.device


def _is_float(x) -> bool:
    return str(x.dtype).removeprefix("torch.") in _FLOATS


def _autocast(x) -> bool:
    import torch

    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def check_gated(op: str, x, gate_weight, up_weight, gate_bias, up_bias) -> int:
    """Check a gated MLP's gate and up, [H, K] each or packed as gate [2H, K] with up None, and return its hidden features H."""
    if up_weight is not None:
        return check_glu(op, x, (gate_weight, up_weight), (gate_bias, up_bias))
    if isinstance(gate_weight, (tuple, list)):
        raise ValueError(f"{op}: a pair goes in as gate_weight and up_weight; gate_weight alone is packed")
    if up_bias is not None:
        raise ValueError(
            f"{op}: without up_weight, gate_weight is packed [2H, K], and so is gate_bias [2H]; leave out up_bias"
        )
    return check_glu(op, x, gate_weight, gate_bias, "gate_weight", "gate_bias")


def check_glu(op: str, x, weight, bias, weight_name: str = "weight", bias_name: str = "bias") -> int:
    """Check a gated layer, whose weight is (gate, up) or packed, and return its output features F."""
    paired = isinstance(weight, (tuple, list))
    if paired != isinstance(bias, (tuple, list)) and bias is not None:
        want, got = ("a pair (gate, up)", "one array") if paired else ("one array [2F]", "a pair")
        raise ValueError(f"{op}: {bias_name} must be laid out as {weight_name} is: expected {want}, got {got}")
    if not paired:
        check_layer(op, x, weight_name, weight, bias_name, bias)
        if weight.shape[0] % 2:
            raise ValueError(
                f"{op}: a packed {weight_name} is [2F, K], gate half first, so its first axis is even; got {_shape(weight)}"
            )
        return weight.shape[0] // 2
    biases = (None, None) if bias is None else bias
    if len(weight) != 2 or len(biases) != 2:
        raise ValueError(f"{op}: weight and bias must be pairs (gate, up); got {len(weight)} and {len(biases)} items")
    check_layer(op, x, "gate_weight", weight[0], "gate_bias", biases[0])
    check_layer(op, x, "up_weight", weight[1], "up_bias", biases[1])
    if weight[0].shape != weight[1].shape:
        raise ValueError(
            f"{op}: gate and up weight must have one shape; got {_shape(weight[0])} and {_shape(weight[1])}"
        )
    return weight[0].shape[0]


def check_down(op: str, x, features: int, weight, bias) -> None:
    _check_arrays(op, x, "down_weight", weight, "down_bias", bias)
    if weight.ndim != 2 or weight.shape[1] != features:
        raise ValueError(
            f"{op}: down_weight must be [out, {features}], its second axis the hidden features; got {_shape(weight)}"
        )
    if bias is not None and (bias.ndim != 1 or bias.shape[0] != weight.shape[0]):
        raise ValueError(f"{op}: down_bias must have shape [{weight.shape[0]}]; got {_shape(bias)}")


def check_values(op: str, x, act: Activation, values: tuple, features: int) -> None:
    """Check learnable arrays: of x's kind, floating, on its device, with one element or one per output channel."""
    for name, value in zip(act.params, values, strict=True):
        if isinstance(value, float):
            continue
        _check_class(f"{op}: {act.name}'s {name}", value)
        if _kind(value) != _kind(x) or not _is_float(value):
            raise TypeError(f"{op}: {act.name}'s {name} must be a number or a floating {_kind(x)}, got {value!r}")
        size = value.shape[0] if value.ndim == 1 else 1
        if value.ndim > 1 or size not in (1, features):
            raise ValueError(
                f"{op}: {act.name}'s {name} must have one element or {features}, one per output channel; "
                f"got shape {_shape(value)}"
            )
        if _apart(value, x):
            raise TypeError(f"{op}: {act.name}'s {name} must be on the device of x, {x.device}; got {value.device}")


def check_dy(op: str, dy, x, features: int) -> None:
    _check_class(f"{op}: dy", dy)
    expected = [*x.shape[:-1], features]
    if _kind(dy) != _kind(x) or not _is_float(dy) or _shape(dy) != expected:
        got = f"{dy.dtype} {_shape(dy)}" if _kind(dy) == _kind(x) else type(dy).__name__
        raise ValueError(f"{op}: dy must be a floating {_kind(x)} of the result's shape {expected}; got {got}")
    if _apart(dy, x):
        raise TypeError(f"{op}: dy must be on the device of x, {x.device}; got {dy.device}. Move one of them")


def check_probability(name: str, p: Any) -> None:
    if not isinstance(p, (int, float, np.floating)) or not 0.0 <= p <= 1.0:
        raise ValueError(f"{name} must be a probability between 0 and 1, got {p!r}")


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_dropout(op: str, x, p: float, training: bool) -> None:
    """Check that p is a probability and, where it drops something, that x is a torch tensor: its backward knows what was dropped."""
    check_probability(f"{op}: dropout_p", p)
    if training and p and not is_torch(x):
        raise ValueError(
            f"{op}: dropout in training needs torch tensors, got a {type(x).__name__}; pass training=False"
        )


def check_no_autograd(op: str, x) -> None:
    if is_torch(x):
        raise TypeError(f"{op} is for arrays without autograd; for a torch.Tensor call backward() on the result")
