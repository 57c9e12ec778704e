"""What `fuse` makes of a module: the same object, of a subclass whose forward runs the fused operation.

At every call the children are looked at, and whatever is more than plain (LoRA, a hook, a quantised or sharded weight, a child replaced by
another) sends the call to the module's own forward. The subclasses are made on demand; pickle and copy know them by the two classes that
they are made of.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from epilogue.catalogue import Activation
from epilogue.eager import is_plain
from epilogue.functional import gated_mlp, linear, mlp

from .plain import plain, unhooked, weight_of

KEY = "_epilogue"
"""The attribute of a fused module that holds its plan."""


@dataclass(frozen=True)
class Act:
    """An activation as a module has it: which one, in which of its attributes, and the object itself, to see whether it is still that.

    Numbers that a function fixes are in `numbers`; those of a module are looked up in it at each call (`live`: parameter -> attribute).
    """

    entry: Activation
    name: str
    held: Any
    numbers: dict[str, Any]
    live: dict[str, str]

    def params(self) -> dict[str, Any]:
        """The keywords for this call."""
        if not self.live:
            return self.numbers
        return {name: getattr(self.held, attribute) for name, attribute in self.live.items()}

    def of(self, module: nn.Module) -> "Act":
        """The same of a copy."""
        return replace(self, held=getattr(module, self.name))

    def serves(self, module: nn.Module) -> bool:
        held = getattr(module, self.name, None)
        return held is self.held and (not isinstance(held, nn.Module) or (unhooked(held) and not is_fused(held)))


@dataclass(frozen=True)
class Block:
    """An MLP by its children's names. gate: None of a plain one; of a packed one the name of up, which then holds both, the gate half first
    unless gate_second. between, after: dropouts, before and behind down."""

    up: str
    down: str
    act: Act
    cls: type  # of the linear layers
    gate: str | None = None
    gate_second: bool = False
    between: str | None = None
    after: str | None = None

    def of(self, module: nn.Module) -> "Block":
        """The same of a copy."""
        return replace(self, act=self.act.of(module))

    @property
    def packed(self) -> bool:
        return self.gate == self.up

    @property
    def pattern(self) -> str:
        if self.gate is None:
            return "plain"
        return "gated packed" if self.packed else "gated"

    def serves(self, module: nn.Module, x: Any) -> bool:
        """Whether every child may be read rather than called."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return False
        up, down = getattr(module, self.up), getattr(module, self.down)
        gate = up if self.gate is None else getattr(module, self.gate)
        layers = (gate, up, down)
        if not all(plain(layer, self.cls) and layer.weight.device == x.device for layer in layers):
            return False
        if not all(layer.weight.dtype is x.dtype for layer in layers) and not torch.is_autocast_enabled(x.device.type):
            return False
        if any(layer.weight.ndim != 2 for layer in layers):  # gathered only at the layer's call, as ZeRO-3 does
            return False
        (hidden, features), held = weight_of(gate).shape, weight_of(down).shape[1] * (1 + self.packed)
        if x.shape[-1] != features or up.weight.shape != gate.weight.shape or hidden != held:
            return False
        dropouts = [getattr(module, name) for name in (self.between, self.after) if name is not None]
        return self.act.serves(module) and all(type(d) is nn.Dropout and unhooked(d) for d in dropouts)

    def run(self, module: Any, x: Tensor) -> Tensor:
        up, down = getattr(module, self.up), getattr(module, self.down)
        p, training = 0.0, False
        if self.between is not None:
            dropout = getattr(module, self.between)
            p, training = dropout.p, dropout.training
        options = {"dropout_p": p, "training": training, **self.act.params()}
        if self.gate is None:
            y = mlp(x, weight_of(up), weight_of(down), up.bias, down.bias, self.act.entry, **options)
        else:
            (gate_weight, up_weight), (gate_bias, up_bias) = self._pair(module, up)
            y = gated_mlp(
                x, gate_weight, up_weight, weight_of(down), gate_bias, up_bias, down.bias, self.act.entry, **options
            )
        return y if self.after is None else getattr(module, self.after)(y)

    def _pair(self, module: Any, up: Any) -> tuple[tuple, tuple]:
        """((gate, up) weights, biases); a packed pair whose gate comes first is one and None."""
        assert self.gate is not None
        if not self.packed:
            gate = getattr(module, self.gate)
            return (weight_of(gate), weight_of(up)), (gate.bias, up.bias)
        weight = weight_of(up)
        if not self.gate_second:
            return (weight, None), (up.bias, None)
        up_weight, gate_weight = weight.chunk(2)
        up_bias, gate_bias = (None, None) if up.bias is None else up.bias.chunk(2)
        return (gate_weight, up_weight), (gate_bias, up_bias)


@dataclass(frozen=True)
class Run:
    """An MLP in an nn.Sequential: these children, the first of them at that place, are a block."""

    first: int
    names: list[str]
    block: Block

    @property
    def last(self) -> int:
        return self.first + len(self.names) - 1

    def of(self, module: nn.Module) -> "Run":
        return replace(self, block=self.block.of(module))


class Fold:
    """A linear layer and the activation behind it, both of one owner: while both are plain, the layer computes it too, and the activation
    hands on what it is given by that layer."""

    def __init__(self, owner: nn.Module, layer: str, act: Act, fast_path: Any = None) -> None:
        """fast_path: what stood in the owner's activation_relu_or_gelu, by which nn.TransformerEncoderLayer reads the layer's weight past
        the layer, and which is 0 as long as this holds."""
        self.owner, self.layer, self.act, self.fast_path = owner, layer, act, fast_path

    def serves(self, layer: Any) -> bool:
        replaced = getattr(self.owner, self.layer, None) is not layer  # by an adapter, say
        plain = not replaced and type(layer) is layer._epilogue_class and unhooked(layer) and is_plain(layer.weight)
        return plain and self._is_folded(getattr(self.owner, self.act.name, None))

    def _is_folded(self, act: Any) -> bool:
        if isinstance(act, FoldedFunction):
            return act.fold is self
        return act is self.act.held and type(act) is act._epilogue_class and unhooked(act)

    def run(self, layer: Any, x: Tensor) -> Tensor:
        y = linear(x, weight_of(layer), layer.bias, self.act.entry, **self.act.params())
        y._epilogue_fold = self  # seen by the activation, which may be called for others too
        return y

    def done(self, x: Any) -> bool:
        """Whether the activation of x has been computed."""
        return getattr(x, "_epilogue_fold", None) is self


class FusedMixin:
    """Of a module with a Block: its forward, while the block serves."""

    def forward(self, *args, **kwargs):
        block: Block = self.__dict__[KEY]
        if len(args) == 1 and not kwargs and block.serves(self, args[0]):
            return block.run(self, args[0])
        return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol):
        return _reduced(self)


class FusedSequentialMixin:
    """Of an nn.Sequential with Runs."""

    def forward(self, input):
        children = list(self._modules.items())
        at, x = 0, input
        for run in self.__dict__[KEY]:
            for _, child in children[at : run.first]:
                x = child(x)
            at = run.first
            names = [name for name, _ in children[run.first : run.last + 1]]
            if names == run.names and run.block.serves(self, x):
                at, x = run.last + 1, run.block.run(self, x)
        for _, child in children[at:]:
            x = child(x)
        return x

    def __reduce_ex__(self, protocol):
        return _reduced(self)


class FusedLinearMixin:
    """Of a linear layer that computes its neighbour's activation too."""

    def forward(self, *args, **kwargs):
        fold: Fold = self.__dict__[KEY]
        if len(args) == 1 and not kwargs and fold.serves(self):
            return fold.run(self, args[0])
        return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol):
        return _reduced(self)


class FoldedMixin:
    """Of an activation module whose linear layer computes it."""

    def forward(self, *args, **kwargs):
        return args[0] if self.__dict__[KEY].done(args[0]) else super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol):
        return _reduced(self)


class FoldedFunction:
    """The same in place of a function."""

    def __init__(self, function: Callable, fold: Fold) -> None:
        self.function, self.fold = function, fold

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return x if self.fold.done(x) else self.function(x, *args, **kwargs)


_DERIVED: dict[tuple[type, type], type] = {}


def derived(mixin: type, cls: type) -> type:
    """The subclass of cls with the mixin's forward. FSDP and parametrizations derive from it in turn, which `_epilogue_class` tells."""
    if (mixin, cls) not in _DERIVED:
        namespace: dict[str, Any] = {"__module__": cls.__module__, "__doc__": cls.__doc__}
        fused: Any = type(f"Fused{cls.__name__}", (mixin, cls), namespace)
        fused._epilogue_class = fused
        _DERIVED[mixin, cls] = fused
    return _DERIVED[mixin, cls]


def is_fused(module: Any) -> bool:
    """Whether its class is one of `derived`, exactly."""
    return type(module) is getattr(type(module), "_epilogue_class", None)


def original(module: Any) -> type:
    """The class that a fused module had."""
    return type(module).__bases__[1]


def _reduced(module: Any) -> tuple:
    if not is_fused(module):
        raise TypeError(
            f"{type(module).__name__} is made of a fused module by another library and cannot be copied or pickled; unfuse first"
        )
    state = (
        module.__getstate__() if hasattr(module, "__getstate__") else module.__dict__
    )  # Python 3.10 has it on request alone
    return _rebuilt, type(module).__bases__, state


def _rebuilt(mixin: type, cls: type) -> Any:
    fused: Any = derived(mixin, cls)
    return fused.__new__(fused)
