"""The types of the public face, for your own annotations too. Nothing is imported for them at run time.

ActivationName: the names that are there from the start, so that editors complete them. ActivationLike: whatever may stand for an
activation, names of your own among them. Array: the kinds of arrays, of which a call takes one and returns the same. ParamValue: an
activation's parameter.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

if sys.version_info >= (3, 11):
    from typing import NamedTuple as NamedTuple
else:  # where a NamedTuple cannot be generic; torch needs this package too
    from typing_extensions import NamedTuple as NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from .catalogue import Activation

ActivationName = Literal[
    "identity", "step", "sign", "sigmoid", "hardsigmoid", "logsigmoid", "tanh", "hardtanh", "tanhshrink", "softsign", "relu", "relu6",
    "relu_squared", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "gelu_10", "gelu_tanh", "quick_gelu", "silu", "swish", "mish",
    "hardswish", "softplus", "sqrtsoftplus", "softshrink", "hardshrink", "threshold", "laplace", "xielu",
    # aliases
    "linear", "none", "heaviside", "log_sigmoid", "relu2", "squared_relu", "gelu_python", "gelu_new", "gelu_fast", "gelu_pytorch_tanh",
    "gelu_python_tanh", "gelu_accurate",
    # pairs and gated variants
    "bilinear", "maxout", "glu_gate_last", "glu", "reglu", "geglu", "geglu_tanh", "swiglu", "gated_identity", "gated_step", "gated_sign",
    "gated_hardsigmoid", "gated_logsigmoid", "gated_tanh", "gated_hardtanh", "gated_tanhshrink", "gated_softsign", "gated_relu6",
    "gated_relu_squared", "gated_leaky_relu", "gated_prelu", "gated_elu", "gated_selu", "gated_celu", "gated_gelu_10",
    "gated_quick_gelu", "gated_swish", "gated_mish", "gated_hardswish", "gated_softplus", "gated_sqrtsoftplus", "gated_softshrink",
    "gated_hardshrink", "gated_threshold", "gated_laplace", "gated_xielu",
]  # fmt: skip

BackendName = Literal["triton", "cupy", "eager"]
OpName = Literal["linear", "glu", "mlp", "gated_mlp"]

ActivationLike: TypeAlias = (
    "ActivationName | str | Activation | nn.Module | type[nn.Module] | Callable[..., Tensor] | None"
)


class CuPyArray(Protocol):
    """A cupy.ndarray, whose package says nothing of types and need not be installed: an array with `get`, which copies it to the host."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def get(self) -> "NDArray[Any]": ...


Array = TypeVar("Array", "Tensor", "NDArray[Any]", CuPyArray)
ParamValue: TypeAlias = "float | Tensor | NDArray[Any] | CuPyArray"
