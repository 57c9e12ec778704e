"""The choice of the tensor that forward keeps for backward, in the fewest bytes. Both autograd and `epilogue.explain` ask here."""

from .catalogue import CUBLASLT, Activation, Keep


def kept_by_layer(act: Activation, values: tuple, gated: bool) -> Keep:
    """The tensor that a single layer keeps beside x, where some gradient is wanted."""
    return "input" if gated else act.layer_saves(values)


def kept_by_mlp(act: Activation, values: tuple, gated: bool, dropout: bool, hidden: bool, down: bool) -> Keep:
    """The tensor that an MLP keeps of its hidden layer h = act(z), beside x.

    hidden: a gradient of x or of the hidden layer's parameters is wanted. down: the down weight's gradient is wanted, which needs h. Where
    h is enough for both, it is kept alone. Dropout scales h and loses the elements that it drops, but the others keep their signs.
    """
    if not hidden:
        return "output" if down else "nothing"
    if gated or act.saves(values) == "input" or (dropout and not act.sign_suffices(values)):
        return "input"
    return "sign" if act.sign_suffices(values) and not down else "output"


def emits_h(keep: Keep, down: bool) -> bool:
    """True if the product of an MLP's backward writes h for the down weight's gradient. Where h itself was kept, it does not."""
    return keep == "input" and down


def library_serves(act: Activation, keep: Keep, gated: bool, bias: bool, dropout: bool) -> bool:
    """True if one of cuBLASLt's epilogues computes this layer, which must have a bias and keep nothing beside y."""
    return act.name in CUBLASLT and keep in ("nothing", "output") and bias and not gated and not dropout
