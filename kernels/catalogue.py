"""The record of an activation, and the catalogue of all activations by name."""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Formula = Callable[..., Any]

Keep = Literal["nothing", "input", "output", "sign"]
"""The tensor that forward keeps for backward beside its arguments: none; the pre-activation z; the activation's result; one bit for each
element of that result, whether it is positive."""

ACTIVATIONS: dict[str, "Activation"] = {}
"""name -> Activation: the one catalogue. `@activation` and `@pair` add to it."""

CUBLASLT = {"relu": "RELU", "gelu_tanh": "GELU"}
"""The activations that cuBLASLt has as a product's epilogue -> its names for them."""

# Every spelling of an activation and of its gated variant, and the keywords by which torch chooses between two of them:
# ("gelu", "approximate", "tanh") -> "gelu_tanh".
BY_KEY: dict[str, "Activation"] = {}
VARIANTS: dict[tuple[str, str, Any], str] = {}

_TAKEN = frozenset({
    "x", "a", "b", "weight", "bias", "activation", "gate_weight", "up_weight", "down_weight", "gate_bias", "up_bias", "down_bias",
    "gate", "up", "down", "dropout_p", "dropout", "training", "recompute", "in_features", "hidden_features", "out_features", "device",
    "dtype",
})  # fmt: skip
"""Names that a parameter cannot have, because the operations and modules have arguments of these names."""


class _Derivatives(dict[str, Formula]):
    """Derivatives by operand or parameter. Asking for a missing one raises an error that says how to add it."""

    def __missing__(self, wrt: str) -> Formula:
        raise ValueError(
            f"this activation has no derivative with respect to {wrt!r}; add it with @epilogue.derivative_of"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Activation:
    """One activation function: its formula, its derivatives and what a backend must know about them.

    `value(x, *params)` for an elementwise activation (arity 1), `value(a, b, *params)` for a pair (arity 2). Formulas compute
    with NumPy as they stand; `epilogue.vocabulary.bind` moves them to another backend. `params` maps each parameter to its default
    (`inspect.Parameter.empty` where the user must give one), in the order in which formulas take them.
    """

    name: str
    value: Formula
    oracle: Callable[..., Any]
    arity: int
    operands: tuple[str, ...]
    params: Mapping[str, float | type[object]]
    kinks: Callable[..., tuple[float, ...]]
    requires: tuple[Callable[..., bool], str] | None = None
    gated_name: str = ""
    gate: "Activation | None" = None
    derivatives: dict[str, Formula] = field(default_factory=_Derivatives)
    from_output: list[tuple[Formula, Callable[..., bool], bool, bool]] = field(default_factory=list)
    gated: "Activation" = field(init=False)
    """The gated variant a, b -> value(a) · b of an elementwise activation. A pair is its own gated variant."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "gated", self if self.arity == 2 else self._gated_variant())

    def _gated_variant(self) -> "Activation":
        variant = Activation(
            name=self.gated_name,
            value=lambda a, b, *params: self.value(a, *params) * b,
            oracle=lambda F, a, b, *params: self.oracle(F, a, *params) * b,
            arity=2,
            operands=("a", "b"),
            params=self.params,
            kinks=self.kinks,
            requires=self.requires,
            gate=self,
        )
        variant.derivatives["b"] = lambda a, b, *params: self.value(a, *params)
        return variant

    def add_derivative(self, wrt: str, formula: Formula) -> None:
        """Add the derivative with respect to an operand or parameter, and the gated variant's by the product rule."""
        if wrt not in (*self.operands, *self.params):
            expected = ", ".join((*self.operands, *self.params))
            raise ValueError(f"{self.name} has no operand or parameter {wrt!r} to derive by; it has: {expected}")
        self.derivatives[wrt] = formula
        if self.arity == 1:
            gated = lambda a, b, *params: formula(a, *params) * b  # noqa: E731
            self.gated.derivatives["a" if wrt == "x" else wrt] = gated

    def __repr__(self) -> str:
        return f"<activation {self.name}({', '.join((*self.operands, *self.params))})>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (getattr, (self.gate, "gated")) if self.gate else (resolve_name, (self.name,))

    def __deepcopy__(self, memo: Any) -> "Activation":
        return self

    @property
    def base(self) -> "Activation":
        """The elementwise activation of a gated variant, else the activation itself."""
        return self.gate or self

    @property
    def learnable(self) -> tuple[str, ...]:
        """The parameters that may be tensors and then get a gradient."""
        return tuple(name for name in self.params if name in self.derivatives)

    def output_derivative(self, values: tuple[Any, ...]) -> Formula | None:
        """The derivative written in y = value(x), or None where none holds for these parameters. With it, backward needs y alone."""
        return self._from_output(values)[0]

    def sign_suffices(self, values: tuple[Any, ...]) -> bool:
        """True if the output derivative needs only one bit of y: whether it is positive."""
        return self._from_output(values)[1]

    def _from_output(self, values: tuple) -> tuple[Formula | None, bool, bool]:
        if all(isinstance(value, float) for value in values):
            for formula, holds, sign, torchs in self.from_output:
                if holds(*values):
                    return formula, sign, torchs
        return None, False, False

    def saves(self, values: tuple[Any, ...]) -> Keep:
        """The tensor that backward needs: "output" (y) or "input" (the pre-activation z)."""
        return "output" if self.output_derivative(values) else "input"

    def layer_saves(self, values: tuple[Any, ...]) -> Keep:
        """The tensor that a single layer keeps for backward. The caller holds its y and may write to it, so this is "output" only where
        torch's own layer keeps y too (and then raises an error), "sign" where one bit of y is enough, else "input".
        """
        _, sign, torchs = self._from_output(values)
        return "output" if torchs else "sign" if sign else "input"


def formulas(act: Activation, values: tuple, keep: Keep) -> dict[str, Formula | None]:
    """The formulas of a backward kernel, written in the tensor that was kept: z ("input") or y ("output", "sign").

    value: the elementwise activation or pair itself. grad: its derivative by the first operand; grad_up: by a pair's second operand;
    grad_param: by the parameter that is an array in `values`. None where absent.
    """
    base = act.base
    grad: Formula | None
    if base.arity == 2:
        grad, grad_up = base.derivatives["a"], base.derivatives["b"]
    else:
        grad, grad_up = base.derivatives["x"] if keep == "input" else base.output_derivative(values), None
    learned = next((name for name, v in zip(base.params, values, strict=True) if not isinstance(v, float)), "")
    return {"value": base.value, "grad": grad, "grad_up": grad_up, "grad_param": base.derivatives.get(learned)}


def key_of(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _register(formula: Formula, arity: int, aliases: tuple[str, ...], gated_name: str = "", **record) -> Activation:
    # A trailing underscore keeps a formula's name clear of the primitive that it calls (PEP 8): `tanh_` is the activation tanh.
    name = formula.__name__.rstrip("_")
    signature = list(inspect.signature(formula).parameters.values())
    kinks = record.pop("kinks")
    entry = Activation(
        name=name,
        value=formula,
        arity=arity,
        operands=("x",) if arity == 1 else ("a", "b"),
        params={p.name: p.default for p in signature[arity:]},
        kinks=kinks if callable(kinks) else lambda *values: tuple(kinks),
        gated_name=gated_name,
        **record,
    )
    for param in entry.params:
        if param in _TAKEN:
            raise ValueError(
                f"a parameter of {name} cannot be called {param!r}: the operations already have that argument"
            )
    spellings = {**dict.fromkeys((name, *aliases), entry), **({gated_name: entry.gated} if arity == 1 else {})}
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


def _replaced(entry: Activation | None, formula: Formula) -> set[str]:
    """The spellings of `entry` if `formula` replaces it: if both are defined in the same place, as when a notebook's cell runs again.

    A function that makes activations makes another one at each call, so these do not replace each other.
    """
    place = (formula.__module__, formula.__qualname__)
    if entry is None or "<locals>" in place[1] or place != (entry.value.__module__, entry.value.__qualname__):
        return set()
    return {key for key, target in BY_KEY.items() if target in (entry, entry.gated)}


def activation(
    *,
    oracle: Callable[..., Any],
    aliases: tuple[str, ...] = (),
    gated: str | None = None,
    kinks: tuple[float, ...] | Callable[..., tuple[float, ...]] = (),
    requires: tuple[Callable[..., bool], str] | None = None,
    variant_of: tuple[str, str, Any] | None = None,
) -> Callable[[Formula], Activation]:
    """Decorator that registers a function as the formula of an elementwise activation, `f(x, param=default, …)`.

    oracle: torch's own version, `oracle(F, x, *params)` with F = torch.nn.functional; it serves as the eager operation and as the
    test's independent truth. gated: the name of the gated variant, by default "gated_" before the activation's own. kinks: where the
    derivative jumps, as a tuple or a function of the parameters. requires: a predicate of numeric parameters and its statement in words.
    variant_of: ("gelu", "approximate", "tanh") makes `gelu` with that keyword mean this entry.
    """

    def register(formula: Formula) -> Activation:
        gated_name = gated or f"gated_{formula.__name__.rstrip('_')}"
        entry = _register(formula, 1, aliases, gated_name, oracle=oracle, kinks=kinks, requires=requires)
        if variant_of:
            VARIANTS[variant_of] = entry.name
        return entry

    return register


def pair(
    *,
    oracle: Callable[..., Any],
    aliases: tuple[str, ...] = (),
    kinks: tuple[float, ...] | Callable[..., tuple[float, ...]] = (),
) -> Callable[[Formula], Activation]:
    """Decorator that registers a function as the formula of a pair, `f(a, b, param=default, …)`, for `glu` and `gated_mlp`."""
    return lambda formula: _register(formula, 2, aliases, oracle=oracle, kinks=kinks)


def exact_in_half(value: float) -> bool:
    """True if float16 and bfloat16 both hold this number. A result that saturates at it then still shows that after rounding.

    Such a number has one of float16's exponents and bfloat16's 8 significant bits. Plain Python, which a compiler can trace.
    """
    mantissa, _ = math.frexp(value)
    return (256.0 * mantissa).is_integer() and (2.0**24 * value).is_integer() and abs(value) < 65536.0


def derivative_of(
    entry: Activation, wrt: str | None = None, *, output: bool | Callable[..., bool] = False, sign: bool = False,
    torchs: bool = False,
) -> Callable[[Formula], Formula]:  # fmt: skip
    """Decorator that registers a function as a derivative of `entry`.

    wrt: the operand or parameter (default: the only operand); a parameter with a derivative is learnable. output: True if the formula is
    written in y, not x, or a predicate of the parameters that says when y determines the derivative, also after rounding to 16 bits.
    sign: the formula only needs to know whether y > 0, so 1.0 and 0.0 may stand for y (and 0.0 for NaN). torchs: torch's own backward
    is written in y too, so users expect an error when they write to a layer's y.
    """

    def register(formula: Formula) -> Formula:
        if output:
            entry.from_output.append((formula, output if callable(output) else lambda *values: True, sign, torchs))
        else:
            entry.add_derivative(wrt or entry.operands[0], formula)
        return formula

    return register


def resolve_name(name: str) -> Activation:
    """The activation or gated variant ("swiglu") of that name or alias. Case, `_` and `-` do not matter.

    For an unknown name, ValueError lists the known ones.
    """
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    key = key_of(name)
    if key in BY_KEY:
        return BY_KEY[key]
    close = dict.fromkeys(BY_KEY[k].name for k in difflib.get_close_matches(key, BY_KEY, n=2))
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(
        f"unknown activation {name!r}.{hint} Known: {', '.join(ACTIVATIONS)}. "
        "Your own is one block: see epilogue.activation."
    )
