"""The layers in which the side-by-side trainings differ: from stock torch.nn, and from epilogue."""

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from epilogue.benchmarks.train.stock import MLP, GatedMLP
from epilogue.nn import FusedGatedMLP, FusedLinear, FusedMLP


class GELULinear(nn.Linear):
    """The stock counterpart of FusedLinear."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(super().forward(x))


class Layers(NamedTuple):
    """The classes of one side; both sides' are called alike."""

    linear: Any
    mlp: Any
    gated_mlp: Any


STOCK = Layers(GELULinear, MLP, GatedMLP)
FUSED = Layers(FusedLinear, FusedMLP, FusedGatedMLP)
