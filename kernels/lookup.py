"""Lookup of activations: the catalogue's entry for what the user passes, and the values of its parameters."""

import difflib
import functools
import inspect
import math
import sys
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .catalogue import ACTIVATIONS, BY_KEY, VARIANTS, Activation, key_of, resolve_name
from .verification import Report, check_first, check_values, numbers_of, report_of

if TYPE_CHECKING:
    from torch import Tensor

    from .typing import ActivationLike

_FUNCTIONS: dict[Any, str] = {}  # torch's function -> name of its entry, see learn_functions

_TRANSFORMERS = {
    "AccurateGELUActivation": "gelu_tanh", "ClippedGELUActivation": "gelu_10", "FastGELUActivation": "gelu_tanh",
    "GELUActivation": "gelu", "GELUTanh": "gelu_tanh", "LaplaceActivation": "laplace", "LinearActivation": "identity",
    "MishActivation": "mish", "NewGELUActivation": "gelu_tanh", "PytorchGELUTanh": "gelu_tanh", "QuickGELUActivation": "quick_gelu",
    "ReLUSquaredActivation": "relu_squared", "SiLUActivation": "silu", "SqrtSoftplusActivation": "sqrtsoftplus",
    "XIELUActivation": "xielu",
}  # fmt: skip
"""Class of transformers.activations -> name of its entry."""


def resolve(spec: "ActivationLike") -> "tuple[Activation, dict[str, float | Tensor]]":
    """Look up the activation that a user means: `epilogue.linear` and the modules take whatever this function takes.

    Args:
        spec: a name or alias ("gelu", "gelu_new", "relu2", "swiglu"; case, `_` and `-` do not matter), an `Activation`, None (identity), a
            module of torch.nn (`nn.LeakyReLU(0.2)`, `nn.GELU("tanh")`, `nn.PReLU()`) or its class (`nn.GELU`, as it is without
            arguments), a module of transformers (`ACT2FN["silu"]`), a function of torch.nn.functional or torch (`F.silu`), or a
            functools.partial of one. `nn.GLU()` and `F.glu`, whose gate is the second half, are the pair glu_gate_last.

    Returns:
        The `Activation`, and a dict of the parameters that spec itself fixes, such as a module's slope.

    Raises:
        ValueError: no activation has that name. The message suggests similar ones.
        TypeError: spec is something else, or a module that epilogue does not know.

    >>> resolve("relu2")
    (<activation relu_squared(x)>, {})
    """
    if isinstance(spec, Activation):
        return current(spec), {}
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
    if torch is not None and isinstance(spec, type) and issubclass(spec, torch.nn.Module):
        return _resolve_class(torch, spec)
    if torch is not None and isinstance(spec, _FUNCTION_TYPES):
        learn_functions(torch)
        if spec in _FUNCTIONS:
            return ACTIVATIONS[_FUNCTIONS[spec]], {}
    raise TypeError(
        f"activation must be a name, an epilogue.Activation, a torch.nn activation module or a torch.nn.functional "
        f"function; got {spec!r}. Your own is one block: see epilogue.activation."
    )


def current(entry: Activation) -> Activation:
    """The entry, or the one that replaced it in the catalogue when its block was run again."""
    if entry.gate:
        return ACTIVATIONS.get(entry.gate.name, entry.gate).gated
    return ACTIVATIONS.get(entry.name, entry)


_FUNCTION_TYPES = (types.FunctionType, types.BuiltinFunctionType)


def learn_functions(torch: Any) -> None:
    """Fill the table of torch's functions, once, because a compiler cannot trace a lookup by name.

    Aliases and gated variants do not count: F.linear is not our alias of identity, and F.glu, whose gate comes second, is not our glu.
    """
    if not _FUNCTIONS:
        _FUNCTIONS[torch.nn.functional.glu] = "glu_gate_last"
        for entry in ACTIVATIONS.values():
            for home in (torch.nn.functional, torch):
                function = getattr(home, entry.name, None)
                if entry.arity == 1 and isinstance(function, _FUNCTION_TYPES):
                    _FUNCTIONS[function] = entry.name


def _resolve_module(torch, module) -> tuple[Activation, dict[str, Any]]:
    """(Activation, params) of an activation module, found by the name of its class; params by the names of its attributes."""
    cls = type(module)
    if cls is torch.nn.PReLU:
        return resolve_name("prelu"), {"slope": module.weight}
    if cls is torch.nn.Identity or (cls.__module__ == "torch.nn.modules.activation" and _is_elementwise(cls.__name__)):
        entry = resolve_name(cls.__name__)
        known = (*entry.params, *(keyword for name, keyword, _ in VARIANTS if name == entry.name))
        return _with_keywords(entry, {name: getattr(module, name) for name in known if hasattr(module, name)})
    if cls is torch.nn.GLU:
        return _with_keywords(ACTIVATIONS["glu_gate_last"], {"dim": module.dim})
    if cls.__module__ == "transformers.activations" and cls.__name__ in _TRANSFORMERS:
        return _resolve_transformers(module, ACTIVATIONS[_TRANSFORMERS[cls.__name__]])
    raise _no_module(cls)


def _resolve_class(torch, cls) -> tuple[Activation, dict[str, Any]]:
    """(Activation, params) of an activation module's class, as that of its instance without arguments."""
    if cls is not torch.nn.Identity and cls.__module__ not in _HOMES:  # nobody else's constructor is run
        raise _no_module(cls)
    try:
        module = cls()
    except TypeError:
        raise TypeError(f"the class {cls.__name__} needs arguments: pass an instance, {cls.__name__}(…)") from None
    return _resolve_module(torch, module)


_HOMES = ("torch.nn.modules.activation", "transformers.activations")


def _no_module(cls: type) -> TypeError:
    return TypeError(
        f"no activation for the module {cls.__name__}: expected one of torch.nn's or transformers' own activations, such as "
        "nn.GELU(); your own is one block: see epilogue.activation."
    )


def _resolve_transformers(module, entry: Activation) -> tuple[Activation, dict[str, Any]]:
    if entry.name == "gelu_10" and (module.min, module.max) != (-10.0, 10.0):
        raise TypeError(
            f"no activation for ClippedGELUActivation({module.min}, {module.max}): only gelu clipped to -10 and 10 is supported, as gelu_10"
        )
    if entry.name == "xielu":
        numbers = {"beta": module._beta_scalar, "eps": module._eps_scalar}
        return entry, {"alpha_p": module.alpha_p, "alpha_n": module.alpha_n, **numbers}
    return entry, {}


def _is_elementwise(name: str) -> bool:
    return key_of(name) in BY_KEY and BY_KEY[key_of(name)].arity == 1


def _with_keywords(entry: Activation, keywords: dict[str, Any]) -> tuple[Activation, dict[str, Any]]:
    """Apply torch's keywords that are no parameters: `approximate="tanh"` chooses an entry, and `inplace` is dropped."""
    params = {}
    for name, value in keywords.items():
        choices = [v for e, keyword, v in VARIANTS if (e, keyword) == (entry.name, name)]
        if choices:
            if value != "none" and value not in choices:
                raise ValueError(f"{entry.name} takes {name}='none' or one of {choices}; got {value!r}")
            entry = ACTIVATIONS[VARIANTS.get((entry.name, name, value), entry.name)]
        elif (entry.name, name) == ("prelu", "weight"):
            params["slope"] = value  # F.prelu's name for it; `weight` is the matrix here
        elif (entry.name, name) == ("glu_gate_last", "dim"):
            if value != -1:
                raise TypeError(f"torch's GLU halves the last axis here: give it dim=-1, got {value!r}")
        elif name != "inplace":
            params[name] = value
    return entry, params


def resolve_call(op: Callable[..., Any], spec: Any, params: Mapping[str, Any], gated: bool) -> tuple[Activation, tuple]:
    """(the activation that a user means by `spec` and `params` in a call of `op`, its parameters' values in order).

    op: the public function, or the module's class.

    ValueError for a pair or gated variant where `op` is not gated, TypeError for a parameter given twice.
    """
    if not params:  # the fast path for a plain name, or a module's Activation
        act = ACTIVATIONS.get(spec) if type(spec) is str else current(spec) if type(spec) is Activation else spec
        if type(act) is Activation and act.arity == 1 and not act.params and act.builtin:
            return act, ()
    act, fixed = resolve(spec)
    if act.arity == 2 and not gated:
        raise ValueError(
            f"{op.__name__}: {act.name!r} takes two operands; use epilogue.glu or epilogue.gated_mlp (FusedGLU, FusedGatedMLP), "
            "or one of the elementwise activations here"
        )
    twice = [name for name in params if name in fixed]
    if twice:
        raise TypeError(
            f"{op.__name__}: {twice[0]!r} is given twice, by activation={spec!r} and as a keyword; give it once"
        )
    values: tuple = ()
    if params or fixed or act.params:
        act, values = bind_params(act.base, {**fixed, **params}, op)
    if not act.builtin:
        check_first(act.base.name)
        if not _in_dynamo() and all(isinstance(value, float) for value in values):
            check_values(act.base.name, values)
    return act, values


def _in_dynamo() -> bool:
    """True in a trace of torch.compile, whose numbers may be symbols."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_dynamo_compiling()


def bind_params(
    entry: Activation, params: Mapping[str, Any], op: Callable[..., Any] | None = None
) -> tuple[Activation, tuple]:
    """(entry, parameter values in the formula's order): floats, or tensors where the parameter is learnable.

    op: the function or class that was called with these keywords, which may be meant for its own arguments.

    TypeError for an unknown or a missing parameter, and for a value that the parameter cannot have.
    """
    if not params and not entry.params:
        return entry, ()
    entry, params = _with_keywords(entry, dict(params))
    unknown = [name for name in params if name not in entry.params]
    if unknown:
        raise TypeError(_unknown_keyword(entry, unknown[0], op))
    values = tuple(_param_value(entry, name, params.get(name, default)) for name, default in entry.params.items())
    if entry.requires and all(isinstance(value, float) for value in values):
        predicate, statement = entry.requires
        if not predicate(*values):
            raise ValueError(f"{entry.name} needs {statement}; got {dict(zip(entry.params, values, strict=True))}")
    return entry, values


def _unknown_keyword(entry: Activation, name: str, op: Callable[..., Any] | None) -> str:
    arguments = inspect.signature(op).parameters.values() if op else ()
    names = [argument.name for argument in arguments if argument.kind is not argument.VAR_KEYWORD]
    known = [*names, *entry.params]
    close = [one for one in known if one.startswith(name)] or difflib.get_close_matches(name, known, n=1)
    if close:
        return f"{op.__name__ if op else entry.name}: unknown keyword {name!r}; did you mean {close[0]}?"
    return f"{entry.name} has no parameter {name!r}; its parameters: {', '.join(entry.params) or 'none'}"


def _param_value(entry: Activation, name: str, value: Any) -> Any:
    if type(value) in (float, int) and value == value:  # the fast path for all but nan
        return float(value)
    if value is inspect.Parameter.empty:
        raise TypeError(f"{entry.name} needs the parameter {name!r}: give it as a keyword, {name}=…")
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic):
        if name in entry.learnable:
            return value
        if not isinstance(value, np.ndarray) or value.ndim:
            learnable = ", ".join(f"{e.name}({', '.join(e.learnable)})" for e in ACTIVATIONS.values() if e.learnable)
            remedy = (
                "" if entry.builtin else f", or give its derivative: @epilogue.derivative_of({entry.name!r}, {name!r})"
            )
            raise TypeError(f"{entry.name}'s {name} must be a number, got an array; learnable are {learnable}{remedy}")
    not_a_number = TypeError(f"{entry.name}'s {name} must be a number, got {value!r}")
    if isinstance(value, (str, bytes, bool)):
        raise not_a_number
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise not_a_number from None
    if math.isnan(number):
        raise ValueError(f"{entry.name}'s {name} must be a number, got nan")
    return number


def check(activation: "ActivationLike", **params: float) -> Report:
    """Check that an activation is one function everywhere, in float64.

    Its derivatives, given or derived, are compared with central differences of its formula; where torch is imported, the formula with the
    oracle, and the derivatives with autograd's of the oracle.

    Args:
        activation: anything that `epilogue.resolve` takes.
        **params: its parameters, numbers. Those left out have their defaults.

    Returns:
        A report, true if every comparison holds to 1e-6 of 1 + |expected|. Printed, it lists them with their worst points.

    Raises:
        ValueError, TypeError: for an unknown activation or parameter.

    >>> assert check("gelu")
    """
    entry, fixed = resolve(activation)
    act, values = bind_params(entry.base, {**fixed, **params})
    return report_of(act, [numbers_of(act, values)])
