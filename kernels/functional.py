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

    The fused kernels and the reference apply bias and activation before the only rounding. Where cuBLAS is faster (`epilogue.explain`),
    z is rounded first, as in torch's own layers. Products accumulate in float32 at least.

    Backward keeps x and the pre-activation z. In place of z it keeps y where torch's own layer does (relu, sigmoid, tanh), or one bit of y
    (leaky_relu). Where float16 holds y but not z, backward takes z as float16's largest number.

    Args:
        x: a torch tensor, NumPy or CuPy array of dtype float16, bfloat16, float32 or float64. All others are of its kind, dtype and device.
        weight: in nn.Linear's layout, one row per output channel.
        bias: one number per output channel, or None.
        activation: anything that `epilogue.resolve` takes: a name, a module such as `nn.GELU("tanh")`, a function such as `F.silu`.
        **params: the activation's parameters, with torch's names and defaults (`negative_slope=0.01`). prelu's slope, swish's beta, and
            xielu's alpha_p and alpha_n may be arrays, of one element or one per output channel, and then get a gradient.

    Shape:
        x [..., K], weight [N, K], bias [N] -> [..., N]

    Returns:
        The result in the dtype of x, or of autocast where it is on.

    Raises:
        ValueError: the activation is unknown, or shapes do not fit.
        TypeError: a keyword is unknown, or dtypes, devices or kinds of arrays do not fit.

    Source:
        The docstring of each formula names its paper: `epilogue.ACTIVATIONS["gelu"].value.__doc__`.

    Examples:
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

    No weight is copied or repacked. What is not said here is as for `linear`.

    Args:
        x: as for `linear`.
        weight: a pair (gate, up), or both packed in one array, the gate half first.
        bias: laid out as weight is, or None.
        activation: an elementwise one (its gated variant is used), a pair, or a gated variant by name: glu, reglu, geglu, swiglu, ….
        **params: as for `linear`.

    Shape:
        x [..., K], weight ([F, K], [F, K]) or [2F, K], bias ([F], [F]) or [2F] -> [..., F]

    Returns:
        The result, as of `linear`.

    Raises:
        ValueError, TypeError: as by `linear`.

    Source:
        Dauphin et al. 2016, arXiv:1612.08083; Shazeer 2020, arXiv:2002.05202.
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

    The kernels keep x and the pre-activation z for backward. In place of z they keep h = act(z) where it determines the derivative (relu,
    tanh, …; with dropout only relu and leaky_relu). Where z is kept, the epilogue of backward's product computes h again. Backward draws
    dropout's mask again from its seed. With a frozen down_weight, relu and leaky_relu keep one bit of h. What is not said here is as for
    `linear`.

    Args:
        x: as for `linear`.
        up_weight: W₁, in nn.Linear's layout.
        down_weight: W₂, in nn.Linear's layout.
        up_bias: b₁ or None.
        down_bias: b₂ or None.
        activation: as for `linear`.
        dropout_p: the share of hidden units to drop; the others are scaled by 1/(1-p). The name is that of torch's
            scaled_dot_product_attention. It does nothing without `training`.
        training: whether to drop. A function has no mode, so a module passes its own: `dropout_p=self.p, training=self.training`.
        recompute: keep x alone for backward, which repeats the up product.
        **params: as for `linear`.

    Shape:
        x [..., K], up_weight [H, K], down_weight [N, H], up_bias [H], down_bias [N] -> [..., N]

    Returns:
        The result, as of `linear`.

    Raises:
        ValueError, TypeError: as by `linear`; ValueError also for dropout in training on arrays without autograd.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762; dropout: Srivastava et al. 2014, JMLR 15.
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

    The kernels keep x and the pre-activations of gate and up for backward. What is not said here is as for `mlp`.

    Args:
        x: as for `linear`.
        gate_weight: G, or G and U packed in one array, the gate half first, with up_weight None. Then gate_bias is packed too, and each of
            backward's products takes both.
        up_weight: U, or None.
        down_weight: D, in nn.Linear's layout.
        gate_bias: bg or None.
        up_bias: bu or None.
        down_bias: bd or None.
        activation: as for `glu`.
        dropout_p: as for `mlp`: nothing is dropped without `training`.
        training: as for `mlp`.
        recompute: keep x alone for backward, which repeats the products of gate and up.
        **params: as for `linear`.

    Shape:
        x [..., K], gate_weight and up_weight [H, K] each or [2H, K] and None, down_weight [N, H], biases [H], [H] (or [2H] and None) and
        [N] -> [..., N]

    Returns:
        The result, as of `linear`.

    Raises:
        ValueError, TypeError: as by `mlp`.

    Source:
        Shazeer 2020, arXiv:2002.05202.
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


def _record(operation, activation: Any, x, /, *arrays, **options):
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
    """Gradients of `linear`: dz = dy ⊙ act'(z), dx = dz W, dW = dzᵀ x, db = Σ dz.

    For NumPy and CuPy arrays, which have no autograd. It computes the pre-activation again from the inputs.

    Args:
        dy: the gradient of the result. All other arguments are those of `linear`.

    Shape:
        dy [..., N]; a gradient has the shape of what it belongs to.

    Returns:
        The named tuple (x, weight, bias, params); params holds the gradients of arrays among the parameters, by name.

    Raises:
        ValueError, TypeError: as by `linear`; TypeError for torch tensors, whose result has backward().
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
    """Gradients of `glu`, laid out as its arguments; for NumPy and CuPy arrays, as `linear_backward`.

    Args:
        dy: the gradient of the result. All other arguments are those of `glu`.

    Shape:
        dy [..., F]

    Returns:
        The named tuple (x, weight, bias, params).

    Raises:
        ValueError, TypeError: as by `linear_backward`.
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
    """Gradients of `mlp` without dropout; for NumPy and CuPy arrays, as `linear_backward`.

    Args:
        dy: the gradient of the result. All other arguments are those of `mlp`.

    Shape:
        dy [..., N]

    Returns:
        The named tuple (x, up_weight, down_weight, up_bias, down_bias, params).

    Raises:
        ValueError, TypeError: as by `linear_backward`.
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
    """Gradients of `gated_mlp` without dropout; for NumPy and CuPy arrays, as `linear_backward`.

    Args:
        dy: the gradient of the result. All other arguments are those of `gated_mlp`.

    Shape:
        dy [..., N]

    Returns:
        The named tuple of gradients in the order of the arguments, then params; those of a packed gate are packed.

    Raises:
        ValueError, TypeError: as by `linear_backward`.
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
