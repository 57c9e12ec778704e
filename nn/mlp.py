"""FusedMLP and FusedGatedMLP: the transformer's feed-forward blocks."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from epilogue.checks import check_flag, check_probability
from epilogue.eager import apply, recomputed
from epilogue.functional import gated_mlp, mlp
from epilogue.lookup import current
from epilogue.typing import ActivationLike

from .activated import Activated
from .plain import parameters_of
from .surgery.blocks import Block, Unfit, block_of

if TYPE_CHECKING:
    from typing_extensions import Self


class FusedMLP(Activated):
    """dropout(act(x W₁ᵀ + b₁)) W₂ᵀ + b₂, as one operation (`epilogue.mlp`).

    The children `up` and `down` are plain nn.Linear, made in this order, so that the same seed gives the unfused block's weights. The keys
    of a state_dict are `up.weight`, `up.bias`, `down.weight` and `down.bias`; another block's have to be renamed to these (nanoGPT's
    `c_fc` to `up`, `c_proj` to `down`), or `from_module` takes the block itself over, with its parameters.

    If a child is more than a plain nn.Linear at the moment of the call (LoRA, quantised, hooked, parametrized, sharded), both are called as
    modules, and only the activation runs between them.

    Args:
        in_features: the size of x's last axis.
        hidden_features: the number of hidden units.
        out_features: the size of the result's last axis, by default in_features.
        bias: whether the layers have one.
        activation: as for `FusedLinear`.
        dropout: the share of hidden units dropped in training mode, `module.train()`. The name is that of torch's TransformerEncoderLayer.
        device: as nn.Linear's.
        dtype: as nn.Linear's.
        recompute: keep x alone for backward, which repeats the up product.
        **params: as for `FusedLinear`.

    Shape:
        x [..., in_features] -> [..., out_features]

    Raises:
        ValueError, TypeError: as by `FusedLinear`.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        bias: bool = True,
        activation: ActivationLike = "gelu",
        dropout: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
        **params: float | Tensor,
    ) -> None:
        out_features = in_features if out_features is None else out_features
        super().__init__(activation, params, bias, in_features, hidden_features, out_features)
        check_probability("dropout", dropout)
        check_flag("recompute", recompute)
        self.dropout, self.recompute = float(dropout), recompute
        self.up = nn.Linear(in_features, hidden_features, bias, device, dtype)
        self.down = nn.Linear(hidden_features, out_features, bias, device, dtype)
        self._settle(activation, device, dtype)

    @classmethod
    def from_module(cls, module: nn.Module, *, recompute: bool = False) -> "Self":
        """Make the block of an existing MLP, with which it shares layers, parameters and the activation's tensors.

        Args:
            module: an nn.Sequential, or a module whose forward `fuse` reads as one block: nanoGPT's, T5's, timm's.
            recompute: as for the constructor.

        Raises:
            TypeError: it computes something else or more, or its weights cannot be shared; the message says what.
        """
        return _from_module(cls, module, recompute)

    def reset_parameters(self: "FusedMLP | FusedGatedMLP") -> None:
        """Reset every child, in the order in which they were made, and set the activation's parameters as they were given."""
        for child in self.children():
            child.reset_parameters()  # type: ignore[operator]
        self.reset_activation()

    def forward(self, input: Tensor) -> Tensor:
        up, down, params = self.up, self.down, self.activation_params()
        read_up, read_down = parameters_of(up), parameters_of(down)
        if read_up and read_down:
            return mlp(
                input, read_up[0], read_down[0], read_up[1], read_down[1],
                self.activation, self.dropout, self.training, self.recompute, **params,
            )  # fmt: skip
        act = current(self.activation)
        return _as_modules(self, lambda x: apply(act, tuple(params.values()), up(x)), input)

    def extra_repr(self: "FusedMLP | FusedGatedMLP") -> str:
        return f"{self.activation_repr()}, dropout={self.dropout:g}{', recompute=True' if self.recompute else ''}"


class FusedGatedMLP(Activated):
    """dropout(act(x Gᵀ) ⊙ (x Uᵀ)) Dᵀ, as one operation (`epilogue.gated_mlp`): the block of Llama and its kin.

    The children `gate`, `up` and `down` are plain nn.Linear, made in this order. The keys of a state_dict are `gate.weight`, `up.weight`
    and `down.weight`, and `.bias` of each. Llama's have to be renamed, `{key.replace("_proj", ""): value for key, value in
    llama_mlp.state_dict().items()}`, or `from_module` takes the block itself over. What is not said here is as for `FusedMLP`.

    Args:
        in_features: as for `FusedMLP`.
        hidden_features: as for `FusedMLP`.
        out_features: as for `FusedMLP`.
        bias: whether the layers have one.
        activation: as for `FusedGLU`.
        dropout: as for `FusedMLP`.
        device: as nn.Linear's.
        dtype: as nn.Linear's.
        recompute: keep x alone for backward, which repeats the products of gate and up.
        **params: as for `FusedLinear`.

    Shape:
        x [..., in_features] -> [..., out_features]

    Raises:
        ValueError, TypeError: as by `FusedLinear`.

    Source:
        Shazeer 2020, arXiv:2002.05202.
    """

    Gated = True

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        bias: bool = False,
        activation: ActivationLike = "silu",
        dropout: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
        **params: float | Tensor,
    ) -> None:
        out_features = in_features if out_features is None else out_features
        super().__init__(activation, params, bias, in_features, hidden_features, out_features)
        check_probability("dropout", dropout)
        check_flag("recompute", recompute)
        self.dropout, self.recompute = float(dropout), recompute
        self.gate = nn.Linear(in_features, hidden_features, bias, device, dtype)
        self.up = nn.Linear(in_features, hidden_features, bias, device, dtype)
        self.down = nn.Linear(hidden_features, out_features, bias, device, dtype)
        self._settle(activation, device, dtype)

    @classmethod
    def from_module(cls, module: nn.Module, *, recompute: bool = False) -> "Self":
        """Make the block of an existing gated MLP, Llama's say, as `FusedMLP.from_module` does."""
        return _from_module(cls, module, recompute)

    reset_parameters = FusedMLP.reset_parameters

    def forward(self, input: Tensor) -> Tensor:
        gate, up, down, params = self.gate, self.up, self.down, self.activation_params()
        read_gate, read_up, read_down = parameters_of(gate), parameters_of(up), parameters_of(down)
        if read_gate and read_up and read_down:
            return gated_mlp(
                input, read_gate[0], read_up[0], read_down[0], read_gate[1], read_up[1], read_down[1],
                self.activation, self.dropout, self.training, self.recompute, **params,
            )  # fmt: skip
        act = current(self.activation).gated
        return _as_modules(self, lambda x: apply(act, tuple(params.values()), gate(x), up(x)), input)

    extra_repr = FusedMLP.extra_repr


def _from_module(cls: Any, module: nn.Module, recompute: bool) -> Any:
    def make(block: Block) -> nn.Module:
        up, down, (entry, params, _) = block.layers["up"], block.layers["down"], block.activation
        made = cls(
            up.in_features, up.out_features, down.out_features, activation=entry, dropout=block.dropout, device="meta",
            recompute=recompute, **params,
        )  # fmt: skip
        tensors = {name: value for name, value in params.items() if isinstance(value, Tensor)}
        for name, held in {**block.layers, **tensors}.items():
            setattr(made, name, held)
        return made.train(module.training)

    if not isinstance(module, nn.Module):
        raise TypeError(f"{cls.__name__}.from_module: expected a torch.nn.Module, got {type(module).__name__}")
    try:
        return make(block_of(module, cls.Gated, make))
    except Unfit as reason:
        raise TypeError(
            f"{cls.__name__}.from_module: no {cls.__name__} for this {type(module).__name__}: {reason}"
        ) from None


def _as_modules(block: "FusedMLP | FusedGatedMLP", hidden: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the block's result with its children called as modules."""

    def forward(x: Tensor) -> Tensor:
        return block.down(F.dropout(hidden(x), block.dropout, block.training))

    return recomputed(forward, x) if block.recompute else forward(x)
