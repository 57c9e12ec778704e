"""A user's script in which the checkers find nothing, and every type is known."""
# pyright: strict

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import assert_type

import epilogue
from epilogue.nn import FusedGatedMLP, FusedGLU, FusedLinear, FusedMLP, Report
from epilogue.typing import ActivationLike, CuPyArray
from epilogue.verification import Claim
from epilogue.vocabulary import cos, sin, where

x, w, b = torch.ones(4, 6), nn.Parameter(torch.ones(6, 6)), torch.ones(6)
own: str = "silu"
specs: list[ActivationLike] = ["gelu", own, epilogue.ACTIVATIONS["mish"], nn.GELU("tanh"), nn.GELU, F.silu, None]
specs.append(functools.partial(F.leaky_relu, negative_slope=0.2))
for spec in specs:
    assert_type(epilogue.linear(x, w, b, activation=spec), Tensor)
assert_type(epilogue.linear(w, w, activation="prelu", slope=nn.Parameter(b)), Tensor)
assert_type(epilogue.glu(x, (w, w), (b, None), activation="swiglu"), Tensor)
assert_type(epilogue.mlp(x, w, w, b, dropout_p=0.1, training=True, activation="leaky_relu", negative_slope=0.2), Tensor)
assert_type(epilogue.gated_mlp(x, torch.ones(12, 6), None, w), Tensor)

a = np.ones((6, 6))
assert_type(epilogue.linear(a, a), NDArray[Any])  # NumPy's own name for any dtype
assert_type(epilogue.mlp(a, a.astype(np.float64), a), NDArray[Any])
grads = epilogue.linear_backward(a, a, a, np.ones(6))
assert_type(grads.x, NDArray[Any])
assert_type(grads.weight, NDArray[Any])
assert_type(grads.params, dict[str, NDArray[Any]])
dx, dup, *_ = epilogue.mlp_backward(a, a, a, a)
assert_type(dx, NDArray[Any])
assert_type(dup, NDArray[Any])
assert_type(epilogue.glu_backward(a, a, (a, a)).weight, NDArray[Any] | tuple[NDArray[Any], NDArray[Any]])
assert_type(epilogue.gated_mlp_backward(a, a, a, a, a).gate_bias, NDArray[Any] | None)


def on_cupy(x: CuPyArray, weight: CuPyArray) -> CuPyArray:
    assert_type(epilogue.linear_backward(x, x, weight).weight, CuPyArray)
    return epilogue.linear(x, weight)


layer = FusedLinear(6, 8, activation=nn.PReLU, device="cpu", dtype=torch.float32)
assert_type(layer(x), Tensor)
assert_type(layer.weight, nn.Parameter)
assert_type(layer.bias, nn.Parameter | None)
assert_type(FusedGLU(6, 8)(x), Tensor)
block = FusedMLP(6, 8, activation="leaky_relu", negative_slope=0.2, device=torch.device("cpu"))
assert_type(block(input=x), Tensor)
assert_type(block.up, nn.Linear)
assert_type(block.activation, epilogue.Activation)
assert_type(FusedGatedMLP(6, 8, dropout=0.1, recompute=True)(x), Tensor)
assert_type(FusedMLP.from_module(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))), FusedMLP)
FusedGLU(6, 8).reset_parameters()
FusedGatedMLP(6, 8).reset_parameters()

report = epilogue.fuse(block, include="*.mlp" if not block else None)
assert_type(report, Report)
assert_type([row.path for row in report.refused], list[str])
assert_type(epilogue.unfuse(block), list[str])
assert_type(epilogue.nn.fuse(block, dry_run=True), Report)

act, params = epilogue.resolve(nn.LeakyReLU(0.2))
assert_type(act, epilogue.Activation)
assert_type(params, dict[str, float | Tensor])
assert_type(epilogue.linear(x, w, None, act, **params), Tensor)
assert_type(act.name, str)
assert_type(act.gated, epilogue.Activation)
assert_type(epilogue.ACTIVATIONS, dict[str, epilogue.Activation])


@epilogue.activation
def bent(x: Any, slope: float = 0.2) -> Any:
    return where(x > 0.0, sin(x), slope * x)


@epilogue.derivative_of(bent)
def bent_grad(x: Any, slope: float) -> Any:
    return where(x > 0.0, cos(x), slope)


assert_type(bent, epilogue.Activation)
assert_type(epilogue.check(bent, slope=0.1).failed, tuple[Claim, ...])
assert_type(
    epilogue.activation(oracle=F.silu, aliases=("own_silu",)), Callable[[Callable[..., Any]], epilogue.Activation]
)

with epilogue.backend("eager"):
    assert_type(epilogue.explain("mlp", 8, 64, 128, dtype=torch.float16, gpu="H100").backend, str)
