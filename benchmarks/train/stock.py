"""The feed-forward blocks as users write them without epilogue: stock torch.nn, parameters named as in epilogue.nn's."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """The stock counterpart of FusedMLP; activation is a function of tensors."""

    def __init__(
        self,
        features: int,
        hidden: int,
        bias: bool = True,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        dropout: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.up = nn.Linear(features, hidden, bias, device, dtype)
        self.down = nn.Linear(hidden, features, bias, device, dtype)
        self.activation = activation
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.down(dropped(self.activation(self.up(x)), self.dropout, self.training))


class GatedMLP(nn.Module):
    """The stock counterpart of FusedGatedMLP."""

    def __init__(
        self,
        features: int,
        hidden: int,
        bias: bool = False,
        activation: Callable[[Tensor], Tensor] = F.silu,
        dropout: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(features, hidden, bias, device, dtype)
        self.up = nn.Linear(features, hidden, bias, device, dtype)
        self.down = nn.Linear(hidden, features, bias, device, dtype)
        self.activation = activation
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.down(dropped(self.activation(self.gate(x)) * self.up(x), self.dropout, self.training))


def dropped(h: Tensor, p: float, training: bool) -> Tensor:
    """Dropout as F.dropout computes it on a GPU, where the mask is kept as bytes; on a CPU F.dropout keeps it in the dtype of h."""
    return torch.native_dropout(h, p, training)[0] if p else h
