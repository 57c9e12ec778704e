"""FusedLinear and FusedGLU: one product with its activation."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from epilogue.functional import glu, linear
from epilogue.typing import ActivationLike

from .activated import Activated


class FusedLinear(Activated):
    """act(x Wᵀ + b): nn.Linear followed by an activation, as one operation (`epilogue.linear`).

    weight and bias are named, shaped and, with the same seed, initialised as nn.Linear's: each loads the other's state_dict.

    It is no subclass of nn.Linear: LoRA and row-wise tensor parallelism would take it for a plain one and drop the activation.

    Args:
        in_features: as nn.Linear's.
        out_features: as nn.Linear's.
        bias: whether there is one.
        activation: anything that `epilogue.resolve` takes.
        device: as nn.Linear's.
        dtype: as nn.Linear's.
        **params: the activation's parameters. A number stays fixed; an nn.Parameter (`activation="prelu",
            slope=nn.Parameter(torch.full((out_features,), 0.25))`, or `activation=nn.PReLU(out_features)`) is learned.

    Shape:
        x [..., in_features], by keyword `input` as nn.Linear's -> [..., out_features]; weight [out_features, in_features],
        bias [out_features]

    Raises:
        ValueError, TypeError: as by `epilogue.linear`, and for a keyword that is unknown.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: ActivationLike = "gelu",
        device: Device = None,
        dtype: torch.dtype | None = None,
        **params: float | Tensor,
    ) -> None:
        super().__init__(activation, params, bias, in_features, out_features)
        self.in_features, self.out_features = in_features, out_features
        _add_linear(self, in_features, out_features, bias, device, dtype)
        self._settle(activation, device, dtype)

    def reset_parameters(self: "FusedLinear | FusedGLU") -> None:
        """Initialise as nn.Linear does, and set the activation's learnable parameters as they were given (see `reset_activation`)."""
        nn.Linear.reset_parameters(self)  # type: ignore[arg-type]
        self.reset_activation()

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias, self.activation, **self.activation_params())

    def extra_repr(self: "FusedLinear | FusedGLU") -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"{self.activation_repr()}"
        )


class FusedGLU(Activated):
    """act(x Gᵀ + bg) ⊙ (x Uᵀ + bu): a gated linear unit, as one operation (`epilogue.glu`).

    weight, gate half first, and bias are those of nn.Linear(in_features, 2·out_features), to the bit with the same seed: each loads the
    other's state_dict.

    Args:
        in_features: the size of x's last axis.
        out_features: the size of the result's.
        bias: whether there is one.
        activation: an elementwise one for the gate, a pair, or the name of a gated variant such as "swiglu".
        device: as nn.Linear's.
        dtype: as nn.Linear's.
        **params: as for `FusedLinear`.

    Shape:
        x [..., in_features] -> [..., out_features]; weight [2·out_features, in_features], bias [2·out_features]

    Raises:
        ValueError, TypeError: as by `FusedLinear`.

    Source:
        Dauphin et al. 2016, arXiv:1612.08083; Shazeer 2020, arXiv:2002.05202.
    """

    Gated = True

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: ActivationLike = "silu",
        device: Device = None,
        dtype: torch.dtype | None = None,
        **params: float | Tensor,
    ) -> None:
        super().__init__(activation, params, bias, in_features, out_features)
        self.in_features, self.out_features = in_features, out_features
        _add_linear(self, in_features, 2 * out_features, bias, device, dtype)
        self._settle(activation, device, dtype)

    reset_parameters = FusedLinear.reset_parameters
    extra_repr = FusedLinear.extra_repr

    def forward(self, input: Tensor) -> Tensor:
        return glu(input, self.weight, self.bias, self.activation, **self.activation_params())


def _add_linear(
    module: Any,
    in_features: int,
    out_features: int,
    bias: bool,
    device: Device,
    dtype: torch.dtype | None,
) -> None:
    module.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
    module.register_parameter(
        "bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
    )
    module.reset_parameters()
