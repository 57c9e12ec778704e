"""The public operations. They check the user's arguments, once (checks.py), and pick a backend.

NumPy arrays run the reference, and CuPy arrays the CuPy kernels. Torch tensors run the kernels that serve them (backends.py), or plain
torch operations where none does. Below this file an activation is passed as an `Activation`, never as a string.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from . import backends, reference
from .checks import (
    check_down,
    check_dropout,
    check_dy,
    check_flag,
    check_gated,
    check_glu,
    check_layer,
    check_no_autograd,
    check_values,
    fit,
    is_cupy,
    is_recorded,
    is_torch,
)
from .lookup import learn_functions, resolve, resolve_call

if TYPE_CHECKING:
    from .reference import GatedMLPGrads, LinearGrads, MLPGrads
    from .typing import ActivationLike, Array, ParamValue


def linear(
    x: Array, weight: Array, bias: Array | None = None, activation: ActivationLike = "gelu", **params: ParamValue
) -> Array:
    """act(x Wᵀ + b), with the activation in the product's epilogue.

    x [..., K], weight [N, K] (nn.Linear's layout), bias [N] or None -> [..., N], in the dtype of x (or of autocast, where it is on).
    All are torch tensors, NumPy or CuPy arrays, of one dtype (float16, bfloat16, float32 or float64) and on one device. Products accumulate
    in float32 at least. The fused kernels and the reference apply bias and activation before the only rounding. Where cuBLAS is faster
    (`epilogue.explain`), z is rounded first, as in torch's own layers.

    Backward keeps x and the pre-activation z. In place of z it keeps y where torch's own layer does (relu, sigmoid, tanh), or one bit of y
    (leaky_relu). Where float16 holds y but not z, backward takes z as float16's largest number.

    activation: anything that `epilogue.resolve` takes. Its parameters are keywords with torch's names and defaults (`negative_slope=0.01`).
    prelu's slope and swish's beta may be tensors, of one element or one per output channel, and then get a gradient.

    ValueError for an unknown activation or shapes that do not fit; TypeError for dtypes, devices or kinds of arrays that do not.

    >>> linear(torch.randn(8, 64), torch.randn(128, 64), activation="leaky_relu", negative_slope=0.2).shape
    torch.Size([8, 128])
    """
    if is_recorded(x):
        return _record(linear, activation, x, weight, bias, **params)
    act, values = resolve_call(linear, activation, params, False)
    if not fit(x, weight, bias):
        check_layer("linear", x, "weight", weight, "bias", bias)
    if values:
        check_values("linear", x, act, values, weight.shape[0])
    return _backend(x, weight).linear(x, weight, bias, act, values)


def glu(
    x: Array, weight: Array | tuple[Array, Array], bias: Array | tuple[Array | None, Array | None] | None = None,
    activation: ActivationLike = "silu", **params: ParamValue,
) -> Array:  # fmt: skip
    """act(x Gᵀ + bg) ⊙ (x Uᵀ + bu), or act(x Gᵀ + bg, x Uᵀ + bu) for a pair such as maxout; one pass over x.

    x [..., K] -> [..., F]. weight is a pair (gate, up), each [F, K], or packed [2F, K], gate half first. bias has the same form, [F] each
    or [2F]. No weight is copied or repacked. activation: an elementwise one (its gated variant is used), a pair, or a gated
    variant by name: glu, reglu, geglu, geglu_tanh, swiglu.  Dauphin et al. 2016, arXiv:1612.08083; Shazeer 2020, arXiv:2002.05202.

    Dtypes, devices, parameters and errors as for `linear`.
    """
    if is_recorded(x):
        return _record(glu, activation, x, weight, bias, **params)
    act, values = resolve_call(glu, activation, params, True)
    features = check_glu("glu", x, weight, bias)
    check_values("glu", x, act, values, features)
    return _backend(x, weight).glu(x, weight, bias, act, values)


def mlp(
    x: Array, up_weight: Array, down_weight: Array, up_bias: Array | None = None, down_bias: Array | None = None,
    activation: ActivationLike = "gelu", dropout_p: float = 0.0, training: bool = False, recompute: bool = False,
    **params: ParamValue,
) -> Array:  # fmt: skip
    """dropout(act(x W₁ᵀ + b₁)) W₂ᵀ + b₂: the transformer's MLP.

    x [..., K], up_weight [H, K], down_weight [N, H], up_bias [H], down_bias [N] -> [..., N]. dropout_p: the share of hidden units that
    training drops; the others are scaled by 1/(1-p). Without `training` nothing is dropped.

    The kernels keep x and the pre-activation z for backward. In place of z they keep h = act(z) where it determines the derivative (relu,
    tanh, …; with dropout only relu and leaky_relu). Where z is kept, the epilogue of backward's product computes h again. Backward draws
    dropout's mask again from its seed. With a frozen down_weight, relu and leaky_relu keep one bit of h. recompute=True keeps x alone, and
    backward repeats the up product.

    Dtypes, devices, parameters and errors as for `linear`.
    """
    if is_recorded(x):
        return _record(
            mlp,
            activation,
            x,
            up_weight,
            down_weight,
            up_bias,
            down_bias,
            dropout_p=dropout_p,
            training=training,
            recompute=recompute,
            **params,
        )
    act, values = resolve_call(mlp, activation, params, False)
    if not fit(x, up_weight, up_bias) or not fit(x, down_weight, down_bias, up_weight.shape[0]):
        check_layer("mlp", x, "up_weight", up_weight, "up_bias", up_bias)
        check_down("mlp", x, up_weight.shape[0], down_weight, down_bias)
    check_values("mlp", x, act, values, up_weight.shape[0])
    options = _training("mlp", x, dropout_p, training, recompute)
    backend = _backend(x, (up_weight, down_weight))
    return backend.mlp(x, up_weight, down_weight, up_bias, down_bias, act, values, **options)


def gated_mlp(
    x: Array, gate_weight: Array, up_weight: Array | None, down_weight: Array, gate_bias: Array | None = None,
    up_bias: Array | None = None, down_bias: Array | None = None, activation: ActivationLike = "silu",
    dropout_p: float = 0.0, training: bool = False, recompute: bool = False, **params: ParamValue,
) -> Array:  # fmt: skip
    """dropout(act(x Gᵀ + bg) ⊙ (x Uᵀ + bu)) Dᵀ + bd: the gated MLP of Llama and its kin.

    x [..., K], gate_weight and up_weight [H, K], down_weight [N, H], biases [H], [H] and [N] or None -> [..., N]. gate_weight may
    also be packed [2H, K], gate half first, with up_weight None. Then gate_bias is [2H], and each of backward's products takes both.
    activation as for `glu`, dropout and recompute as for `mlp`.  Shazeer 2020, arXiv:2002.05202.

    The kernels keep x and the pre-activations of gate and up for backward. Dtypes, devices, parameters and errors as for `linear`.
    """
    if is_recorded(x):
        return _record(
            gated_mlp,
            activation,
            x,
            gate_weight,
            up_weight,
            down_weight,
            gate_bias,
            up_bias,
            down_bias,
            dropout_p=dropout_p,
            training=training,
            recompute=recompute,
            **params,
        )
    act, values = resolve_call(gated_mlp, activation, params, True)
    if up_weight is not None and _fit_pair(x, (gate_weight, up_weight), (gate_bias, up_bias)):
        features = gate_weight.shape[0]
    else:
        features = check_gated("gated_mlp", x, gate_weight, up_weight, gate_bias, up_bias)
    if not fit(x, down_weight, down_bias, features):
        check_down("gated_mlp", x, features, down_weight, down_bias)
    check_values("gated_mlp", x, act, values, features)
    options = _training("gated_mlp", x, dropout_p, training, recompute)
    weights = (gate_weight, down_weight) if up_weight is None else (gate_weight, up_weight, down_weight)
    return _backend(x, weights).gated_mlp(
        x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias, act, values, **options
    )


def _fit_pair(x, weights: tuple, biases: tuple) -> bool:
    """True if gate and up both `fit` and have the same shape."""
    alike = (biases[0] is None) == (biases[1] is None)
    return alike and all(map(fit, (x, x), weights, biases)) and weights[0].shape == weights[1].shape


def _record(operation, activation: Any, x, *arrays, **options):
    """Record the call in a trace of Python code (torch.fx), with the activation by its name."""
    act, fixed = resolve(activation)
    overrides = sys.modules["torch"].overrides
    return overrides.handle_torch_function(operation, (x,), x, *arrays, activation=act.name, **fixed, **options)


def _training(op: str, x, dropout_p: float, training: bool, recompute: bool) -> dict[str, Any]:
    """The options that a backend must know. NumPy's and CuPy's have no autograd and keep nothing, so they need no `recompute`."""
    if type(dropout_p) is float and not dropout_p and training is False and recompute is False:
        return {}  # the fast path of most calls
    check_dropout(op, x, dropout_p, training)
    check_flag(f"{op}: recompute", recompute)
    options: dict[str, Any] = {"dropout_p": dropout_p} if training and dropout_p else {}
    return {**options, "recompute": True} if recompute and is_torch(x) else options


def linear_backward(
    dy: Array, x: Array, weight: Array, bias: Array | None = None, activation: ActivationLike = "gelu",
    **params: ParamValue,
) -> LinearGrads[Array, Array]:  # fmt: skip
    """Gradients of `linear` for dy [..., N], as the named tuple (x, weight, bias, params).

    For NumPy and CuPy arrays, without autograd. It computes the pre-activation again from the inputs. Arguments and errors as for `linear`.
    """
    act, values = resolve_call(linear_backward, activation, params, False)
    check_no_autograd("linear_backward", x)
    check_layer("linear_backward", x, "weight", weight, "bias", bias)
    check_values("linear_backward", x, act, values, weight.shape[0])
    check_dy("linear_backward", dy, x, weight.shape[0])
    return _backend(x, weight).linear_backward(dy, x, weight, bias, act, values)


def glu_backward(
    dy: Array, x: Array, weight: Array | tuple[Array, Array], bias: Array | tuple[Array | None, Array | None] | None = None,
    activation: ActivationLike = "silu", **params: ParamValue,
) -> LinearGrads[Array, Array | tuple[Array, Array]]:  # fmt: skip
    """Gradients of `glu` for dy [..., F], as (x, weight, bias, params), with weight's and bias's in the layout of the arguments.

    For NumPy and CuPy arrays, as `linear_backward`.
    """
    act, values = resolve_call(glu_backward, activation, params, True)
    check_no_autograd("glu_backward", x)
    features = check_glu("glu_backward", x, weight, bias)
    check_values("glu_backward", x, act, values, features)
    check_dy("glu_backward", dy, x, features)
    return _backend(x, weight).glu_backward(dy, x, weight, bias, act, values)


def mlp_backward(
    dy: Array, x: Array, up_weight: Array, down_weight: Array, up_bias: Array | None = None,
    down_bias: Array | None = None, activation: ActivationLike = "gelu", **params: ParamValue,
) -> MLPGrads[Array]:  # fmt: skip
    """Gradients of `mlp` (without dropout) for dy [..., N], as (x, up_weight, down_weight, up_bias, down_bias, params).

    For NumPy and CuPy arrays, as `linear_backward`.
    """
    act, values = resolve_call(mlp_backward, activation, params, False)
    check_no_autograd("mlp_backward", x)
    check_layer("mlp_backward", x, "up_weight", up_weight, "up_bias", up_bias)
    check_down("mlp_backward", x, up_weight.shape[0], down_weight, down_bias)
    check_values("mlp_backward", x, act, values, up_weight.shape[0])
    check_dy("mlp_backward", dy, x, down_weight.shape[0])
    return _backend(x, up_weight).mlp_backward(dy, x, up_weight, down_weight, up_bias, down_bias, act, values)


def gated_mlp_backward(
    dy: Array, x: Array, gate_weight: Array, up_weight: Array | None, down_weight: Array, gate_bias: Array | None = None,
    up_bias: Array | None = None, down_bias: Array | None = None, activation: ActivationLike = "silu",
    **params: ParamValue,
) -> GatedMLPGrads[Array]:  # fmt: skip
    """Gradients of `gated_mlp` (without dropout) for dy [..., N], in the order of its arguments, then params; a packed gate's are packed.

    For NumPy and CuPy arrays, as `linear_backward`.
    """
    act, values = resolve_call(gated_mlp_backward, activation, params, True)
    check_no_autograd("gated_mlp_backward", x)
    features = check_gated("gated_mlp_backward", x, gate_weight, up_weight, gate_bias, up_bias)
    check_down("gated_mlp_backward", x, features, down_weight, down_bias)
    check_values("gated_mlp_backward", x, act, values, features)
    check_dy("gated_mlp_backward", dy, x, down_weight.shape[0])
    return _backend(x, gate_weight).gated_mlp_backward(
        dy, x, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias, act, values
    )


_eager: Any = None
_triton: Any = None


def load_torch(torch: Any) -> None:
    """Import the modules that need torch, once it is loaded, and where possible before a compiler traces a call."""
    global _eager, _triton
    from . import eager as _eager
    from . import triton as _triton

    if _triton.INTERPRET or torch.version.cuda:
        from . import autograd as autograd  # a FLOP counter knows only operators older than itself

    learn_functions(torch)


if sys.modules.get("torch") is not None:
    load_torch(sys.modules["torch"])


def _backend(x, weight):
    """The module whose operations serve these arrays."""
    if _eager is None or not isinstance(x, _eager.Tensor):
        if is_cupy(x):  # which a compiler had better not trace: it would look at every module there is
            from .cupy import arrays

            return arrays
        if isinstance(x, np.ndarray):
            return reference
        load_torch(sys.modules["torch"])
    if x.is_cpu and not _triton.INTERPRET:
        return _eager
    name, _ = backends.serving(x, weight)
    if name == "eager":
        return _eager
    from . import autograd

    return autograd.KERNELS[name]
