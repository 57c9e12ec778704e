"""The decorators that register activations and their derivatives."""

import inspect
from collections.abc import Callable
from typing import Any, overload

from .catalogue import ACTIVATIONS, BY_KEY, VARIANTS, Activation, Formula, key_of, resolve_name
from .formula import function_of, on_torch, trace_of

_TAKEN = frozenset({
    "x", "a", "b", "weight", "bias", "activation", "gate_weight", "up_weight", "down_weight", "gate_bias", "up_bias", "down_bias",
    "dropout_p", "dropout", "training", "recompute", "inplace", "in_features", "hidden_features", "out_features", "device", "dtype",
})  # fmt: skip
"""Names that a parameter cannot have, because the operations and modules have arguments of these names."""


def _register(
    formula: Formula, arity: int, aliases: tuple[str, ...], oracle: Callable[..., Any] | None, kinks: Any, gated: str | None = None,
    requires: tuple[Callable[..., bool], str] | None = None,
) -> Activation:  # fmt: skip
    trace = trace_of(formula)
    # A trailing underscore keeps a formula's name clear of the primitive that it calls (PEP 8): `tanh_` is the activation tanh.
    name = formula.__name__.rstrip("_")
    if not name.isidentifier():
        raise ValueError(
            "the formula of an activation needs a name: write it with def, not as a lambda, and not called _"
        )
    gated_name = gated or f"gated_{name}"
    signature = list(inspect.signature(formula).parameters.values())
    if len(signature) < arity or not {argument.place for argument in trace.arguments[:arity]} & trace.needed():
        raise ValueError(
            f"{name}: the formula of an activation takes {arity} operands before its parameters, and uses them"
        )
    if oracle is not None:
        _check_oracle(name, oracle, [p.name for p in signature])
    entry = Activation(
        name=name,
        value=function_of(trace, formula.__name__, formula.__module__, formula.__doc__),
        oracle=oracle or on_torch(trace),
        arity=arity,
        operands=("x",) if arity == 1 else ("a", "b"),
        params={p.name: p.default for p in signature[arity:]},
        kinks=kinks if callable(kinks) else lambda *values: tuple(kinks),
        requires=requires,
        gated_name=gated_name,
        written=formula,
        own_oracle=oracle is not None,
        builtin=formula.__module__ == f"{__package__}.activations",
    )
    for param, default in entry.params.items():
        if param in _TAKEN:
            raise ValueError(
                f"a parameter of {name} cannot be called {param!r}: the operations already have that argument"
            )
        if default is not inspect.Parameter.empty and (
            isinstance(default, bool) or not isinstance(default, (int, float))
        ):
            raise ValueError(f"{name}'s parameter {param} must have a number for its default, or none; got {default!r}")
    spellings = {**dict.fromkeys((name, *aliases), entry), **({gated_name: entry.gated} if arity == 1 else {})}
    if not entry.builtin:
        for wrt in (*entry.operands, *entry.params):
            _ = entry.derivatives[wrt]  # derived now, while what the formula looks up is what the trace found
    stale = _replaced(ACTIVATIONS.get(name), formula)
    for spelling in spellings:
        if key_of(spelling) in BY_KEY.keys() - stale:
            raise ValueError(f"an activation called {spelling!r} exists already; choose another name")
    for key in stale:
        del BY_KEY[key]
    for variant in [variant for variant, of in VARIANTS.items() if stale and of == name]:
        del VARIANTS[variant]
    ACTIVATIONS[name] = entry
    BY_KEY.update({key_of(spelling): target for spelling, target in spellings.items()})
    return entry


def _check_oracle(name: str, oracle: Callable[..., Any], takes: list[str]) -> None:
    """ValueError where the oracle cannot be called as oracle(F, x, *params). A function of torch's own takes its tensor first."""
    try:
        inspect.signature(oracle).bind(None, *takes)
        fits = not str(getattr(oracle, "__module__", "")).startswith("torch")
    except (TypeError, ValueError):
        fits = False
    if not fits:
        arguments = ", ".join(takes)
        raise ValueError(
            f"{name}: the oracle must take (F, {arguments}), F being torch.nn.functional, as `lambda F, {arguments}: F.silu(…)` does; "
            f"got {oracle!r}"
        )


def _replaced(entry: Activation | None, formula: Formula) -> set[str]:
    """The spellings of `entry` if `formula` replaces it: if both are defined in the same place, as when a notebook's cell runs again.

    A function that makes activations makes another one at each call, so these do not replace each other.
    """
    place = (formula.__module__, formula.__qualname__)
    if (
        entry is None
        or entry.written is None
        or "<locals>" in place[1]
        or place != (entry.written.__module__, entry.written.__qualname__)
    ):
        return set()
    return {key for key, target in BY_KEY.items() if target in (entry, entry.gated)}


@overload
def activation(formula: Formula, /) -> Activation: ...
@overload
def activation(
    *, oracle: Callable[..., Any] | None = None, aliases: tuple[str, ...] = (), gated: str | None = None,
    kinks: tuple[float, ...] | Callable[..., tuple[float, ...]] = (), requires: tuple[Callable[..., bool], str] | None = None,
    variant_of: tuple[str, str, Any] | None = None,
) -> Callable[[Formula], Activation]: ...  # fmt: skip
def activation(
    formula: Formula | None = None, /, *, oracle: Callable[..., Any] | None = None, aliases: tuple[str, ...] = (),
    gated: str | None = None, kinks: tuple[float, ...] | Callable[..., tuple[float, ...]] = (),
    requires: tuple[Callable[..., bool], str] | None = None, variant_of: tuple[str, str, Any] | None = None,
) -> Any:  # fmt: skip
    """Decorator that registers a function as the formula of an elementwise activation, `f(x, param=default, …)`.

        @epilogue.activation
        def snake(x, alpha=1.0):
            s = sin(alpha * x)
            return x + s * s / alpha

    A formula is straight-line arithmetic on x: + - * /, whole powers, comparisons, other activations, and the functions of
    epilogue.vocabulary, among them `where(condition, a, b)` in place of `if`. It is called once, here, and what it computes then is what
    every backend computes. Its derivatives follow by forward mode, unless `derivative_of` gives one that is cheaper or more accurate.
    Value and derivatives are checked in float64 when the activation is first used (`epilogue.check`).

    Args:
        formula: the function. Without it, as in `@epilogue.activation(oracle=…)`, the decorator is returned.
        oracle: torch's own version, `oracle(F, x, *params)` with F = torch.nn.functional. Tensors that no kernel serves run it, and the
            formula is checked against it. Without one the formula itself runs on tensors, and each parameter may be a tensor that learns.
        aliases: further names.
        gated: the name of the gated variant, by default "gated_" before the activation's own.
        kinks: where the derivative jumps, as a tuple or a function of the parameters.
        requires: a predicate of numeric parameters and its statement in words.
        variant_of: ("gelu", "approximate", "tanh") makes `gelu` with that keyword mean this entry.

    Returns:
        The `Activation`, which stands in the catalogue under the function's name. The same definition run again, as in a notebook,
        replaces it.

    Raises:
        ValueError: for what is no formula, with its line and column; for a name that is taken.
    """

    def register(formula: Formula) -> Activation:
        entry = _register(formula, 1, aliases, oracle, kinks, gated, requires)
        if variant_of:
            VARIANTS[variant_of] = entry.name
        return entry

    return register(formula) if formula else register


@overload
def pair(formula: Formula, /) -> Activation: ...
@overload
def pair(
    *, oracle: Callable[..., Any] | None = None, aliases: tuple[str, ...] = (), kinks: Any = ()
) -> Callable[[Formula], Activation]: ...
def pair(formula: Formula | None = None, /, *, oracle=None, aliases=(), kinks=()) -> Any:
    """Decorator that registers a function as the formula of a pair, `f(a, b, param=default, …)`, for `glu` and `gated_mlp`.

    The formula, the arguments and the errors are those of `activation`.
    """

    def register(formula: Formula) -> Activation:
        return _register(formula, 2, aliases, oracle, kinks)

    return register(formula) if formula else register


def derivative_of(
    entry: Activation | str, wrt: str | None = None, *, output: bool | Callable[..., bool] = False, sign: bool = False,
    torchs: bool = False,
) -> Callable[[Formula], Formula]:  # fmt: skip
    """Decorator that registers a function as a derivative of `entry`, in place of the one that follows from its formula.

    Args:
        entry: the activation, or its name.
        wrt: the operand or parameter (default: the first operand). A parameter with a derivative is learnable.
        output: True if the formula is written in y, not x, or a predicate of the parameters that says when y determines the derivative,
            also after rounding to 16 bits. Backward then keeps y alone.
        sign: the formula only needs to know whether y > 0, so 1.0 and 0.0 may stand for y (and 0.0 for NaN).
        torchs: torch's own backward is written in y too, so users expect an error when they write to a layer's y.

    Returns:
        The function itself.

    Raises:
        ValueError: for what is no formula, for other arguments than the activation's (or y and its parameters), for an unknown `wrt`.
    """

    act = resolve_name(entry) if isinstance(entry, str) else entry

    def register(formula: Formula) -> Formula:
        if output:
            act.add_output_derivative(formula, output if callable(output) else lambda *values: True, sign, torchs)
        else:
            act.add_derivative(wrt or act.operands[0], formula)
        return formula

    return register
