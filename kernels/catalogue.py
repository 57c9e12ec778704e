"""What an activation is, the catalogue of them, and how a user's word for one finds it."""

import difflib
import functools
import inspect
import math
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Formula = Callable[..., Any]

ACTIVATIONS: dict[str, "Activation"] = {}
"""name -> Activation: the one catalogue. `@activation` and `@pair` add to it."""

# What `resolve` understands: every spelling of an activation and of its gated variant, the keywords by which torch chooses between
# two of them (("gelu", "approximate", "tanh") -> "gelu_tanh"), and torch's own functions.
_BY_KEY: dict[str, "Activation"] = {}
_VARIANTS: dict[tuple[str, str, Any], str] = {}
_FUNCTIONS: dict[Any, "Activation"] = {}

_TAKEN = frozenset({"x", "a", "b", "weight", "bias", "activation", "dropout_p", "training", "device", "dtype", "in_features",
                    "out_features", "hidden_features", "dropout"})  # fmt: skip
"""Names that a parameter cannot have, since the operations' and modules' own arguments have them."""


@dataclass(frozen=True, eq=False, repr=False)
class Activation:
    """One activation function: its formula, its derivatives and what a backend must know of them.

    `value(x, *params)` for an elementwise activation (arity 1), `value(a, b, *params)` for a pair (arity 2). Formulas compute
    with NumPy as they stand; `epilogue.vocabulary.bind` moves them to another backend. `params` maps each parameter to its default
    (`inspect.Parameter.empty` where the user must give one), in the order in which formulas take them.
    """

    name: str
    value: Formula
    oracle: Callable[..., Any]
    arity: int
    operands: tuple[str, ...]
    params: Mapping[str, Any]
    kinks: Callable[..., tuple[float, ...]]
    requires: tuple[Callable[..., bool], str] | None = None
    gated_name: str = ""
    gate: "Activation | None" = None
    derivatives: dict[str, Formula] = field(default_factory=dict)
    from_output: list[tuple[Formula, Callable[..., bool]]] = field(default_factory=list)
    gated: "Activation" = field(init=False)
    """The gated variant a, b -> value(a) · b of an elementwise activation; a pair is its own."""

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
        """The derivative with respect to an operand or parameter; the gated variant's follows by the product rule."""
        if wrt not in (*self.operands, *self.params):
            expected = ", ".join((*self.operands, *self.params))
            raise ValueError(f"{self.name} has no operand or parameter {wrt!r} to derive by; it has: {expected}")
        self.derivatives[wrt] = formula
        if self.arity == 1:
            gated = lambda a, b, *params: formula(a, *params) * b  # noqa: E731
            self.gated.derivatives["a" if wrt == "x" else wrt] = gated

    def __repr__(self) -> str:
        return f"<activation {self.name}({', '.join((*self.operands, *self.params))})>"

    def __reduce__(self):
        return (getattr, (self.gate, "gated")) if self.gate else (resolve_name, (self.name,))

    def __deepcopy__(self, memo):
        return self

    @property
    def learnable(self) -> tuple[str, ...]:
        """The parameters that may be tensors and then get a gradient."""
        return tuple(name for name in self.params if name in self.derivatives)

    def output_derivative(self, values: tuple) -> Formula | None:
        """The derivative written in y = value(x), where it holds for these parameters: then y is all that backward needs."""
        if any(not isinstance(value, float) for value in values):
            return None
        return next((formula for formula, holds in self.from_output if holds(*values)), None)

    def saves(self, values: tuple) -> str:
        """What backward needs: "output" (y) or "input" (the pre-activation z)."""
        return "output" if self.output_derivative(values) else "input"


def _key(name: str) -> str:
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
                f"a parameter of {name} cannot be called {param!r}, the operations have that argument already"
            )
    spellings = {**dict.fromkeys((name, *aliases), entry), **({gated_name: entry.gated} if arity == 1 else {})}
    for spelling in spellings:
        if _key(spelling) in _BY_KEY:
            raise ValueError(f"an activation called {spelling!r} exists already; choose another name")
    ACTIVATIONS[name] = entry
    _BY_KEY.update({_key(spelling): target for spelling, target in spellings.items()})
    return entry


def activation(
    *,
    oracle: Callable[..., Any],
    aliases: tuple[str, ...] = (),
    gated: str | None = None,
    kinks: tuple[float, ...] | Callable[..., tuple[float, ...]] = (),
    requires: tuple[Callable[..., bool], str] | None = None,
    variant_of: tuple[str, str, Any] | None = None,
) -> Callable[[Formula], Activation]:
    """Decorator: the function is the formula of an elementwise activation, `f(x, param=default, …)`.

    oracle: torch's own version, `oracle(F, x, *params)` with F = torch.nn.functional; it serves as the eager operation and as the
    test's independent truth. gated: the name of the gated variant, where it has one. kinks: where the derivative jumps, as a tuple
    or a function of the parameters. requires: a predicate of numeric parameters and its statement in words.
    variant_of: ("gelu", "approximate", "tanh") makes `gelu` with that keyword mean this entry.
    """

    def register(formula: Formula) -> Activation:
        gated_name = gated or f"gated_{formula.__name__.rstrip('_')}"
        entry = _register(formula, 1, aliases, gated_name, oracle=oracle, kinks=kinks, requires=requires)
        if variant_of:
            _VARIANTS[variant_of] = entry.name
        return entry

    return register


def pair(*, oracle: Callable[..., Any], aliases: tuple[str, ...] = (), kinks=()) -> Callable[[Formula], Activation]:
    """Decorator: the function is the formula of a pair, `f(a, b, param=default, …)`, for `glu` and `gated_mlp`."""
    return lambda formula: _register(formula, 2, aliases, oracle=oracle, kinks=kinks)


def exact_in_half(value: float) -> bool:
    """Whether float16 and bfloat16 both hold this number: where a result saturates at it, the rounded result still shows that."""
    single = np.float32(value)
    return float(np.float16(single)) == value and not single.view(np.uint32) & 0xFFFF and float(single) == value


def derivative_of(
    entry: Activation, wrt: str | None = None, *, output: bool | Callable[..., bool] = False
) -> Callable[[Formula], Formula]:
    """Decorator: the function is the derivative of `entry`.

    wrt: the operand or parameter (default: the only operand); a parameter with a derivative is learnable. output: the formula is
    written in y, not x; True, or a predicate of the parameters that says when y determines the derivative.
    """

    def register(formula: Formula) -> Formula:
        if output:
            entry.from_output.append((formula, output if callable(output) else lambda *values: True))
        else:
            entry.add_derivative(wrt or entry.operands[0], formula)
        return formula

    return register


def resolve_name(name: str) -> Activation:
    """The activation of that name or alias, or a gated variant ("swiglu"); case, `_` and `-` do not matter.

    ValueError lists the known ones.
    """
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    key = _key(name)
    if key in _BY_KEY:
        return _BY_KEY[key]
    close = dict.fromkeys(_BY_KEY[k].name for k in difflib.get_close_matches(key, _BY_KEY, n=2))
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(
        f"unknown activation {name!r}.{hint} Known: {', '.join(ACTIVATIONS)}. "
        "Your own is one block: see epilogue.activation."
    )


def resolve(spec: Any) -> tuple[Activation, dict[str, Any]]:
    """(Activation, params) for what a user may call an activation; params holds what the spec itself fixes.

    spec: a name or alias ("gelu", "gelu_new", "relu2", "swiglu"), an Activation, None (identity), a torch.nn module
    (`nn.LeakyReLU(0.2)`, `nn.GELU("tanh")`, `nn.PReLU()`), a function of torch.nn.functional or torch (`F.silu`), or a
    functools.partial of one. ValueError for an unknown name, TypeError for anything else.

    >>> resolve("relu2")
    (<activation relu_squared(x)>, {})
    """
    if isinstance(spec, Activation):
        return spec, {}
    if isinstance(spec, str):
        return resolve_name(spec), {}
    if spec is None:
        return resolve_name("identity"), {}
    if isinstance(spec, functools.partial):
        entry, params = resolve(spec.func)
        if spec.args:
            raise TypeError(f"{spec} fixes positional arguments; give them as keywords")
        return _with_keywords(entry, {**params, **spec.keywords})
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(spec, torch.nn.Module):
        return _resolve_module(torch, spec)
    if torch is not None and isinstance(spec, _FUNCTION_TYPES):
        learn_functions(torch)
        if spec in _FUNCTIONS:
            return _FUNCTIONS[spec], {}
    raise TypeError(
        f"activation must be a name, an epilogue.Activation, a torch.nn activation module or a torch.nn.functional "
        f"function; got {spec!r}. Your own is one block: see epilogue.activation."
    )


_FUNCTION_TYPES = (types.FunctionType, types.BuiltinFunctionType)


def learn_functions(torch: Any) -> None:
    """Fill the table of torch's functions, once: a compiler cannot trace through looking them up by name.

    Only by a function's own name: F.linear is not our alias of identity, nor F.glu, whose gate comes second, our glu.
    """
    if not _FUNCTIONS:
        for entry in ACTIVATIONS.values():
            for home in (torch.nn.functional, torch):
                function = getattr(home, entry.name, None)
                if entry.arity == 1 and isinstance(function, _FUNCTION_TYPES):
                    _FUNCTIONS[function] = entry


def _resolve_module(torch, module) -> tuple[Activation, dict[str, Any]]:
    """A torch.nn activation module: found by its class's name, its parameters by theirs."""
    cls = type(module)
    if cls is torch.nn.PReLU:
        return resolve_name("prelu"), {"slope": module.weight}
    if cls is torch.nn.Identity or (cls.__module__ == "torch.nn.modules.activation" and _is_elementwise(cls.__name__)):
        entry = resolve_name(cls.__name__)
        known = (*entry.params, *(keyword for name, keyword, _ in _VARIANTS if name == entry.name))
        return _with_keywords(entry, {name: getattr(module, name) for name in known if hasattr(module, name)})
    raise TypeError(
        f"no activation for the module {module!r}: expected one of torch.nn's own activations, such as nn.GELU(); "
        "your own is one block: see epilogue.activation."
    )


def _is_elementwise(name: str) -> bool:
    return _key(name) in _BY_KEY and _BY_KEY[_key(name)].arity == 1


def _with_keywords(entry: Activation, keywords: dict[str, Any]) -> tuple[Activation, dict[str, Any]]:
    """Apply torch keywords that are not numbers: `approximate="tanh"` chooses an entry, `inplace` has no meaning here."""
    params = {}
    for name, value in keywords.items():
        choices = [v for e, keyword, v in _VARIANTS if (e, keyword) == (entry.name, name)]
        if choices:
            if value != "none" and value not in choices:
                raise ValueError(f"{entry.name} takes {name}='none' or one of {choices}; got {value!r}")
            entry = ACTIVATIONS[_VARIANTS.get((entry.name, name, value), entry.name)]
        elif (entry.name, name) == ("prelu", "weight"):
            params["slope"] = value  # F.prelu's name for it; `weight` is the matrix here
        elif name != "inplace":
            params[name] = value
    return entry, params


def resolve_call(op: str, spec: Any, params: dict[str, Any], gated: bool) -> tuple[Activation, tuple]:
    """The activation that a user means by `spec` and `params` in a call of `op`, and its parameters' values in order.

    ValueError for a pair or gated variant where `op` is not gated, TypeError for a parameter given twice.
    """
    if not params:  # the short way for a plain name, or a module's Activation
        act = ACTIVATIONS.get(spec) if type(spec) is str else spec
        if type(act) is Activation and act.arity == 1 and not act.params:
            return act, ()
    act, fixed = resolve(spec)
    if act.arity == 2 and not gated:
        raise ValueError(
            f"{op}: {act.name!r} takes two operands; use epilogue.glu or epilogue.gated_mlp (FusedGLU, FusedGatedMLP), "
            "or one of the elementwise activations here"
        )
    twice = [name for name in params if name in fixed]
    if twice:
        raise TypeError(f"{op}: {twice[0]!r} is given twice, by activation={spec!r} and as a keyword; give it once")
    if params or act.params:
        return bind_params(act.gate or act, {**fixed, **params})
    return act, ()


def bind_params(entry: Activation, params: Mapping[str, Any]) -> tuple[Activation, tuple]:
    """(entry, parameter values in the formula's order): floats, or tensors where the parameter is learnable.

    TypeError for a parameter that the activation has not, that is missing, or that cannot be what was given.
    """
    if not params and not entry.params:
        return entry, ()
    entry, params = _with_keywords(entry, dict(params))
    unknown = [name for name in params if name not in entry.params]
    if unknown:
        takes = ", ".join(entry.params) or "none"
        raise TypeError(f"{entry.name} has no parameter {unknown[0]!r}; its parameters: {takes}")
    values = tuple(_param_value(entry, name, params.get(name, default)) for name, default in entry.params.items())
    if entry.requires and all(isinstance(value, float) for value in values):
        predicate, statement = entry.requires
        if not predicate(*values):
            raise ValueError(f"{entry.name} needs {statement}; got {dict(zip(entry.params, values, strict=True))}")
    return entry, values


def _param_value(entry: Activation, name: str, value: Any) -> Any:
    if type(value) in (float, int) and value == value:  # the short way for all but nan
        return float(value)
    if value is inspect.Parameter.empty:
        raise TypeError(f"{entry.name} needs the parameter {name!r}: give it as a keyword, {name}=…")
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic):
        if name in entry.learnable:
            return value
        if not isinstance(value, np.ndarray) or value.ndim:
            learnable = ", ".join(f"{e.name}({', '.join(e.learnable)})" for e in ACTIVATIONS.values() if e.learnable)
            raise TypeError(f"{entry.name}'s {name} must be a number, got an array; learnable are {learnable}")
    try:
        number = float("" if isinstance(value, (str, bytes, bool)) else value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{entry.name}'s {name} must be a number, got {value!r}") from None
    if math.isnan(number):
        raise ValueError(f"{entry.name}'s {name} must be a number, got nan")
    return number
