"""What forward keeps for backward, in the fewest bytes. Autograd's operations and `epilogue.explain` ask here alike."""

from .catalogue import CUBLASLT, Activation, Keep


def kept_by_layer(act: Activation, values: tuple, gated: bool) -> Keep:
    """What a single layer keeps beside x, where some gradient is wanted."""
    return "input" if gated else act.layer_saves(values)


def kept_by_mlp(act: Activation, values: tuple, gated: bool, dropout: bool, hidden: bool, down: bool) -> Keep:
    """What an MLP keeps of its hidden layer h = act(z) beside x.

    hidden: whether a gradient of x or of the hidden layer's parameters is wanted; down: whether that of the down weight is, which needs h.
    Where h is enough for both it is kept alone; with dropout h is scaled and has lost what it dropped, but not the sign of what it kept.
    """
    if not hidden:
        return "output" if down else "nothing"
    if gated or act.saves(values) == "input" or (dropout and not act.sign_suffices(values)):
        return "input"
    return "sign" if act.sign_suffices(values) and not down else "output"


def emits_h(keep: Keep, down: bool) -> bool:
    """Whether the product of an MLP's backward writes h for the down weight's gradient: not where h itself was kept."""
    return keep == "input" and down


def library_serves(act: Activation, keep: Keep, gated: bool, bias: bool, dropout: bool) -> bool:
    """Whether one of cuBLASLt's epilogues computes this layer: it has a bias and keeps nothing beside y."""
    return act.name in CUBLASLT and keep in ("nothing", "output") and bias and not gated and not dropout
