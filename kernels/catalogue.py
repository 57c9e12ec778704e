"""What an activation is, the catalogue of them, and how a user's word for one finds it."""

import difflib
import functools
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Formula = Callable[..., Any]

ACTIVATIONS: dict[str, "Activation"] = {}
"""name -> Activation: the one catalogue. `@activation` and `@pair` add to it."""

# What `resolve` understands: every spelling of an activation, every spelling of a gated variant, and the keywords by which
# torch chooses between two of them: ("gelu", "approximate", "tanh") -> "gelu_tanh".
_BY_KEY: dict[str, "Activation"] = {}
_GATE_BY_KEY: dict[str, "Activation"] = {}
_VARIANTS: dict[tuple[str, str, Any], str] = {}


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
    gated_name: str
    gate: "Activation | None" = None
    derivatives: dict[str, Formula] = field(default_factory=dict)
    from_output: list[tuple[Formula, Callable[..., bool]]] = field(default_factory=list)

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

    @functools.cached_property
    def gated(self) -> "Activation":
        """The gated variant a, b -> value(a) · b of an elementwise activation; a pair is its own."""
        if self.arity == 2:
            return self
        variant = Activation(
            name=self.gated_name,
            value=lambda a, b, *params: self.value(a, *params) * b,
            oracle=lambda F, a, b, *params: self.oracle(F, a, *params) * b,
            arity=2,
            operands=("a", "b"),
            params=self.params,
            kinks=self.kinks,
            gated_name=self.gated_name,
            gate=self,
        )
        variant.derivatives["a"] = lambda a, b, *params: self.derivatives["x"](a, *params) * b
        variant.derivatives["b"] = lambda a, b, *params: self.value(a, *params)
        for param in self.learnable:
            gradient = self.derivatives[param]
            variant.derivatives[param] = lambda a, b, *params, gradient=gradient: gradient(a, *params) * b
        return variant


def _key(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _register(formula: Formula, oracle, arity: int, aliases, kinks, gated: str | None = None) -> Activation:
    # A trailing underscore keeps a formula's name clear of the primitive that it calls (PEP 8): `tanh_` is the activation tanh.
    name = formula.__name__.rstrip("_")
    signature = list(inspect.signature(formula).parameters.values())
    entry = Activation(
        name=name,
        value=formula,
        oracle=oracle,
        arity=arity,
        operands=tuple(p.name for p in signature[:arity]),
        params={p.name: p.default for p in signature[arity:]},
        kinks=kinks if callable(kinks) else lambda *values: tuple(kinks),
        gated_name=gated or f"gated_{name}",
    )
    for spelling in (name, *aliases, entry.gated_name):
        if _key(spelling) in _BY_KEY or _key(spelling) in _GATE_BY_KEY:
            raise ValueError(f"an activation called {spelling!r} exists already; choose another name")
    ACTIVATIONS[name] = entry
    _BY_KEY.update({_key(spelling): entry for spelling in (name, *aliases)})
    if arity == 1:
        _GATE_BY_KEY[_key(entry.gated_name)] = entry
    return entry


def activation(
    *,
    oracle: Callable[..., Any],
    aliases: tuple[str, ...] = (),
    gated: str | None = None,
    kinks: tuple[float, ...] | Callable[..., tuple[float, ...]] = (),
    variant_of: tuple[str, str, Any] | None = None,
) -> Callable[[Formula], Activation]:
    """Decorator: the function is the formula of an elementwise activation, `f(x, param=default, …)`.

    oracle: torch's own version, `oracle(F, x, *params)` with F = torch.nn.functional; it serves as the eager operation and as the
    test's independent truth. gated: the name of the gated variant, where it has one. kinks: where the derivative jumps, as a tuple
    or a function of the parameters. variant_of: ("gelu", "approximate", "tanh") makes `gelu` with that keyword mean this entry.
    """

    def register(formula: Formula) -> Activation:
        entry = _register(formula, oracle, 1, aliases, kinks, gated)
        if variant_of:
            _VARIANTS[variant_of] = entry.name
        return entry

    return register


def pair(*, oracle: Callable[..., Any], aliases: tuple[str, ...] = (), kinks=()) -> Callable[[Formula], Activation]:
    """Decorator: the function is the formula of a pair, `f(a, b, param=default, …)`, for `glu` and `gated_mlp`."""
    return lambda formula: _register(formula, oracle, 2, aliases, kinks)


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
            entry.derivatives[wrt or entry.operands[0]] = formula
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
    if key in _GATE_BY_KEY:
        return _GATE_BY_KEY[key].gated
    spellings = {
        **{k: entry.gated_name for k, entry in _GATE_BY_KEY.items()},
        **{k: e.name for k, e in _BY_KEY.items()},
    }
    close = [spellings[k] for k in difflib.get_close_matches(key, spellings, n=2)]
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
    if torch is not None and callable(spec):
        name = getattr(spec, "__name__", "").lstrip("_")
        named = _BY_KEY.get(_key(name))
        # By its own name only: F.linear is not our alias of identity, nor F.bilinear the pair.
        if named is not None and named.arity == 1 and _key(named.name) == _key(name):
            homes, spellings = (torch.nn.functional, torch, torch.special), (name, f"_{name}", named.name)
            if any(spec is getattr(home, spelling, None) for home in homes for spelling in spellings):
                return named, {}
    raise TypeError(
        f"activation must be a name, an epilogue.Activation, a torch.nn activation module or a torch.nn.functional "
        f"function; got {spec!r}. Your own is one block: see epilogue.activation."
    )


def _resolve_module(torch, module) -> tuple[Activation, dict[str, Any]]:
    """A torch.nn activation module: found by its class's name, its parameters by theirs."""
    cls = type(module)
    if cls is torch.nn.PReLU:
        return resolve_name("prelu"), {"slope": module.weight}
    if cls is torch.nn.Identity or (cls.__module__ == "torch.nn.modules.activation" and _key(cls.__name__) in _BY_KEY):
        entry = resolve_name(cls.__name__)
        known = (*entry.params, *(keyword for name, keyword, _ in _VARIANTS if name == entry.name))
        return _with_keywords(entry, {name: getattr(module, name) for name in known if hasattr(module, name)})
    raise TypeError(
        f"no activation for the module {module!r}: expected one of torch.nn's own activations, such as nn.GELU(); "
        "your own is one block: see epilogue.activation."
    )


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
    return entry, tuple(_param_value(entry, name, params.get(name, default)) for name, default in entry.params.items())


def _param_value(entry: Activation, name: str, value: Any) -> Any:
    if type(value) is float and value == value:  # the short way for all but nan
        return value
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
    except (TypeError, ValueError):
        raise TypeError(f"{entry.name}'s {name} must be a number, got {value!r}") from None
    if math.isnan(number):
        raise ValueError(f"{entry.name}'s {name} must be a number, got nan")
    return number
