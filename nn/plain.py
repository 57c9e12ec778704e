"""Which children a fused block may read the weights of, rather than call them."""

from typing import Any

from torch import Tensor, nn

from epilogue.eager import is_plain


def is_linear(module: Any) -> bool:
    """Exactly nn.Linear, transformers' Conv1D, whose weight is stored [in, out], or a class that adds to nn.Linear a forward and nothing
    else (Falcon's). What such a forward computes, a trial says."""
    cls = type(module)
    if cls is nn.Linear:
        return True
    if cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils":  # which need not be installed
        return True
    return cls.__bases__ == (nn.Linear,) and {name for name in vars(cls) if not name.startswith("__")} == {"forward"}


def unhooked(module: nn.Module) -> bool:
    """Whether calling the module is calling its class's forward."""
    return "forward" not in module.__dict__ and not (  # accelerate's hooks replace it on the instance
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def plain(child: Any, cls: type[Any]) -> bool:
    """Whether the child is a linear layer of exactly that class and does nothing which reading its weight would skip."""
    return type(child) is cls and unhooked(child) and is_plain(child.weight)


def weight_of(layer: Any) -> Tensor:
    """The weight [out, in] of a linear layer, a view of Conv1D's."""
    weight: Tensor = layer.weight
    return weight if isinstance(layer, nn.Linear) else weight.t()
