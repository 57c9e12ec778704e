"""The record of an activation, and the catalogue of all activations by name."""

import difflib
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .derivation import Dual, applied, derived
from .formula import arguments_of, frozen, function_of

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


class _Derivatives(dict[str, Formula]):
    """The derivatives that were given, by operand or parameter. One that was not is derived when it is first asked for."""

    def __init__(self, derive: Callable[[str], Formula]) -> None:
        super().__init__()
        self._derive, self._derived = derive, dict[str, Formula]()

    def __missing__(self, wrt: str) -> Formula:
        if wrt not in self._derived:
            self._derived[wrt] = self._derive(wrt)
        return self._derived[wrt]


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
    written: Formula | None = None
    """The formula as it was written, which may call other activations."""
    own_oracle: bool = True
    """False where the oracle is the formula itself, on torch tensors."""
    builtin: bool = False
    """True for the package's own, which tests hold to torch. A user's is checked when it is first used."""
    derivatives: _Derivatives = field(init=False)
    from_output: list[tuple[Formula, Callable[..., bool], bool, bool]] = field(default_factory=list)
    gated: "Activation" = field(init=False)
    """The gated variant a, b -> value(a) · b of an elementwise activation. A pair is its own gated variant."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "derivatives", _Derivatives(self._derived))
        object.__setattr__(self, "gated", self if self.arity == 2 else self._gated_variant())

    def _gated_variant(self) -> "Activation":
        return Activation(
            name=self.gated_name,
            value=lambda a, b, *params: self.value(a, *params) * b,
            oracle=lambda F, a, b, *params: self.oracle(F, a, *params) * b,
            arity=2,
            operands=("a", "b"),
            params=self.params,
            kinks=self.kinks,
            requires=self.requires,
            gate=self,
            own_oracle=self.own_oracle,
            builtin=self.builtin,
        )

    def _derived(self, wrt: str) -> Formula:
        """The derivative by an operand or parameter: a gated variant's by the product rule, any other by forward mode."""
        base = self.gate
        if base is None:
            assert self.written is not None
            trace = derived(self.written, (*self.operands, *self.params), wrt)
            return function_of(trace, f"{self.value.__name__}_grad_{wrt}", self.value.__module__, None)
        if wrt == "b":
            return lambda a, b, *params: base.value(a, *params)
        # Looked up at each call: the user may still add a derivative of the base.
        return lambda a, b, *params: base.derivatives["x" if wrt == "a" else wrt](a, *params) * b

    def add_derivative(self, wrt: str, formula: Formula) -> None:
        """Add the derivative with respect to an operand or parameter."""
        if wrt not in (*self.operands, *self.params):
            expected = ", ".join((*self.operands, *self.params))
            raise ValueError(f"{self.name} has no operand or parameter {wrt!r} to derive by; it has: {expected}")
        self.derivatives[wrt] = self._checked(formula, (*self.operands, *self.params))

    def add_output_derivative(self, formula: Formula, holds: Callable[..., bool], sign: bool, torchs: bool) -> None:
        """Add a derivative that is written in y, and holds where `holds(*params)`."""
        # The newest comes first: a notebook's cell may run again.
        self.from_output.insert(0, (self._checked(formula, ("y", *self.params)), holds, sign, torchs))

    def _checked(self, formula: Formula, takes: tuple[str, ...]) -> Formula:
        given = arguments_of(formula)
        if len(given) != len(takes):
            raise ValueError(
                f"a derivative of {self.name} takes the arguments ({', '.join(takes)}), got ({', '.join(given)})"
            )
        return frozen(formula)

    def __call__(self, *operands: Any, **params: Any) -> Any:
        """The activation alone, of NumPy arrays or torch tensors; within another's formula, of what that one computes with.

        Parameters follow the operands or are keywords. Those left out have their defaults.
        """
        values = self._values(operands, params)
        if any(isinstance(value, Dual) for value in values):
            return applied(self.value, [self.derivatives[name] for name in (*self.operands, *self.params)], values)
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(values[0], torch.Tensor):
            y = self.oracle(torch.nn.functional, *values)
            return y.to(values[0].dtype) if values[0].is_floating_point() else y
        return self.value(*values)

    def _values(self, operands: tuple, params: dict[str, Any]) -> list[Any]:
        """The formula's arguments for a call."""
        names = (*self.operands, *self.params)
        given = dict(zip(names, operands, strict=False))
        values = {**self.params, **given, **params}
        missing = [name for name in names if values.get(name, inspect.Parameter.empty) is inspect.Parameter.empty]
        if len(operands) > len(names) or given.keys() & params.keys() or len(values) > len(names) or missing:
            raise TypeError(
                f"{self!r} cannot be called with {len(operands)} operands and {', '.join(params) or 'no keywords'}"
            )
        return [values[name] for name in names]

    def __repr__(self) -> str:
        return f"<activation {self.name}({', '.join((*self.operands, *self.params))})>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (getattr, (self.gate, "gated")) if self.gate else (unpickled, (self.name, self.value.__module__))

    def __deepcopy__(self, memo: Any) -> "Activation":
        return self

    @property
    def base(self) -> "Activation":
        """The elementwise activation of a gated variant, else the activation itself."""
        return self.gate or self

    @property
    def learnable(self) -> tuple[str, ...]:
        """The parameters that may be tensors and then get a gradient: those by which a derivative was given, or, where the formula is its
        own oracle, all. A function of torch's may take numbers alone.
        """
        return tuple(name for name in self.params if name in self.base.derivatives or not self.own_oracle)

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


def formulas(act: Activation, values: tuple, keep: Keep) -> dict[str, Any]:
    """The formulas of a backward kernel, written in the tensor that was kept: z ("input") or y ("output", "sign").

    value: the elementwise activation or pair itself. grad: its derivative by the first operand; grad_up: by a pair's second operand, else
    None; grad_params: by each parameter that is an array in `values`.
    """
    base = act.base
    grad: Formula | None
    if base.arity == 2:
        grad, grad_up = base.derivatives["a"], base.derivatives["b"]
    else:
        grad, grad_up = base.derivatives["x"] if keep == "input" else base.output_derivative(values), None
    learned = [name for name, value in zip(base.params, values, strict=True) if not isinstance(value, float)]
    grad_params = tuple(base.derivatives[name] for name in learned)
    return {"value": base.value, "grad": grad, "grad_up": grad_up, "grad_params": grad_params}


def key_of(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def exact_in_half(value: float) -> bool:
    """True if float16 and bfloat16 both hold this number. A result that saturates at it then still shows that after rounding.

    Such a number has one of float16's exponents and bfloat16's 8 significant bits. Plain Python, which a compiler can trace.
    """
    mantissa, _ = math.frexp(value)
    return (256.0 * mantissa).is_integer() and (2.0**24 * value).is_integer() and abs(value) < 65536.0


def unpickled(name: str, module: str) -> Activation:
    """The activation of that name, for pickles. ValueError names the module that registers it."""
    if name not in ACTIVATIONS:
        raise ValueError(f"the pickle has the activation {name!r} of the module {module!r}: import that module first")
    return ACTIVATIONS[name]


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
