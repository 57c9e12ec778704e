"""Which activation of the catalogue an object is, at this moment: a module, a function, a method; by what it computes, never by a name."""

import ast
import dis
import functools
import types
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from epilogue.catalogue import ACTIVATIONS, Activation
from epilogue.lookup import bind_params, resolve

from .plain import unhooked
from .source import Unreadable, captured, parsed


class Known(NamedTuple):
    """An activation and its parameters; whether autocast may run what computes it in float32, and so give a float32 result."""

    entry: Activation
    params: dict[str, Any]
    widens: bool = False


NARROW = {"relu", "square", "sigmoid", "tanh", "silu", "gelu"}
"""Functions that autocast leaves in the narrow dtype; of what else an activation is spelled with, some are not."""
WIDE = {
    "pow",
    "exp",
    "expm1",
    "log",
    "log10",
    "log1p",
    "log2",
    "softplus",
    "reciprocal",
    "rsqrt",
    "sinh",
    "cosh",
    "tan",
    "sum",
    "prod",
}
"""Functions that it runs in float32 (CUDA's list)."""


def activation_of(held: Any) -> Known | None:
    """(the activation, its parameters) that a call of it computes, or None where it does anything else or more."""
    return None if isinstance(held, nn.Module) and not unhooked(held) else recognised(held)


def recognised(held: Any, run: bool = True) -> Known | None:
    """The same, hooks aside. run: to see what it computes, it may be called, even if it calls more than torch's functions itself."""
    if isinstance(held, nn.Module):
        cls = type(held)
        if cls in _TORCHS:
            return _torchs(held, *_TORCHS[cls])
        if held._modules or held._parameters or held._buffers or isinstance(held, nn.modules.dropout._DropoutNd):
            return None
        return _looked_up(cls.forward, held)
    if isinstance(held, types.MethodType):
        return _looked_up(held.__func__, held.__self__) if isinstance(held.__self__, nn.Module) else None
    if isinstance(held, (functools.partial, types.BuiltinFunctionType, types.FunctionType)):
        known = _resolved(held)
        if known is None and isinstance(held, types.FunctionType) and (run or _calls_torch_alone(held)):
            return _looked_up(held, None)
        return known
    return None


# --- torch's own


def _resolved(held: Any) -> Known | None:
    try:
        entry, params = resolve(held)
    except (TypeError, ValueError):
        return None
    return _bound(entry, params) if entry.name != "identity" else None


def _bound(entry: Activation, params: dict[str, Any]) -> Known | None:
    """With these parameters, if they are numbers that ours takes."""
    try:
        bind_params(entry, params)
    except (TypeError, ValueError):
        return None
    numbers = all(type(value) in (int, float) for value in params.values())
    return Known(entry, params, entry.name in WIDE) if numbers else None


def _torch_classes() -> dict[type, tuple[Any, tuple[str, ...], dict[tuple, Known]]]:
    """torch.nn's activations: their forward; the attributes that are no parameters, and the activation by what these hold."""
    found: dict[type, Any] = {nn.PReLU: (nn.PReLU.forward, (), {(): Known(ACTIVATIONS["prelu"], {})})}
    arguments: dict[type, list[dict[str, Any]]] = {
        nn.GELU: [{}, {"approximate": "tanh"}],
        nn.Threshold: [{"threshold": 0.5, "value": 0.0}],
    }
    for cls in vars(nn.modules.activation).values():
        if not isinstance(cls, type) or cls.__module__ != nn.modules.activation.__name__ or cls in found:
            continue
        try:
            made = [cls(**given) for given in arguments.get(cls, [{}])]
            known = [_resolved(module) for module in made]
        except TypeError:  # an attention
            continue
        if known[0] is not None:
            plain = ("training", "inplace", *known[0].entry.params)
            others = tuple(name for name in vars(made[0]) if name[0] != "_" and name not in plain)
            by_others = dict(zip([tuple(getattr(each, name) for name in others) for each in made], known, strict=True))
            found[cls] = (cls.forward, others, by_others)  # type: ignore[attr-defined]
    return found


def _torchs(held: Any, forward: Any, others: tuple[str, ...], known: dict[tuple, Known]) -> Known | None:
    if type(held).forward is not forward:  # patched
        return None
    if isinstance(held, nn.PReLU):  # whose channels are the second axis, ours the last
        return known[()]._replace(params={"slope": held.weight}) if held.weight.numel() == 1 else None
    found = known.get(tuple([getattr(held, name) for name in others])) if others else known[()]
    if found is None or not found.params:
        return found
    return _bound(found.entry, {name: getattr(held, name) for name in found.params})


# --- others

_SCALARS = (bool, int, float, str, type(None), torch.dtype)
_BUILTINS = {"abs", "bool", "float", "int", "isinstance", "max", "min", "pow", "round"}
"""Python's functions that an activation may call."""
_CHANGES = (
    "STORE_ATTR",
    "STORE_GLOBAL",
    "STORE_DEREF",
    "STORE_SUBSCR",
    "DELETE_",
    "YIELD",
    "RETURN_GENERATOR",
    "IMPORT",
    "MAKE_FUNCTION",
)
"""How instructions begin by which a function does more than compute."""


@dataclass
class Reading:
    """What a function reads beside its input: attributes of its module, globals; and what it computes for what values of these."""

    attributes: tuple[str, ...]
    globals: tuple[str, ...]
    widens: bool
    known: dict[tuple, Known | None] = field(default_factory=dict)


_READINGS: dict[Any, Reading | None] = {}
"""None where that cannot be said."""


def _looked_up(function: Any, owner: Any) -> Known | None:
    if torch.compiler.is_compiling():  # which would guard all that is known of others
        named = function.__module__ == type(owner).__module__ == "transformers.activations"
        known = _resolved(owner) if named else None
        return known and known._replace(
            widens=known.entry.name in ("gelu_tanh", "sqrtsoftplus")
        )  # NewGELUActivation's pow
    if function not in _READINGS:
        if not isinstance(function, types.FunctionType) or not _holds_numbers(function):
            return None
        _READINGS[function] = _reading(function, owner)
    reading = _READINGS[function]
    if reading is None:
        return None
    values = [getattr(owner, name, None) for name in reading.attributes]
    values += [function.__globals__.get(name) for name in reading.globals]
    values += [cell.cell_contents for cell in function.__closure__ or ()]
    if not all(map(_is_fixed, values)):
        return None
    key = (len(ACTIVATIONS), *((type(value), value) for value in values))  # the catalogue may grow
    if key not in reading.known:
        if len(reading.known) > 100:  # a number that every step changes
            reading.known.clear()
        entry = computed(function if owner is None else functools.partial(function, owner))
        reading.known[key] = None if entry is None else Known(entry, {}, reading.widens)
    return reading.known[key]


def _holds_numbers(function: types.FunctionType) -> bool:
    """Whether what the function itself holds is fixed; one that holds a module would keep it alive in our table."""
    cells = captured(function)
    return len(cells) == len(function.__closure__ or ()) and all(
        map(_is_fixed, (*cells.values(), *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()))
    )


def _is_fixed(value: Any) -> bool:
    """Whether it is a number, a name, or torch's: what a user's function or class does may change, and be more than to compute."""
    if isinstance(value, _SCALARS) or _is_torchs(value):
        return True
    if isinstance(value, functools.partial):
        return all(map(_is_fixed, (value.func, *value.args, *value.keywords.values())))
    if _is_of_torch(value):
        return True
    if isinstance(value, types.MethodType):  # one that does not look at its object
        me = value.__func__.__code__.co_varnames[0]
        read = [step.argval for step in dis.get_instructions(value.__func__)]
        looks = any(me == name or (isinstance(name, tuple) and me in name) for name in read)
        return not looks and _computes_alone(value.__func__)
    if isinstance(value, type) and issubclass(value, torch.autograd.Function):
        return all(map(_computes_alone, (value.forward, value.backward)))
    return _computes_alone(value)


def _is_of_torch(value: Any) -> bool:
    home = getattr(value, "__module__", None) or "torch"
    kinds = (type, types.FunctionType, types.BuiltinFunctionType)
    return isinstance(value, kinds) and home.partition(".")[0] == "torch"


def _computes_alone(function: Any, within: tuple = ()) -> bool:
    """Whether it is a function that reads nothing but torch and such functions: a number that it read could change."""
    if not isinstance(function, types.FunctionType) or function in within or not _holds_numbers(function):
        return False
    reading = _reading(function, None)
    if reading is None:
        return False
    held = [function.__globals__[name] for name in reading.globals]
    within = (*within, function)
    return not any(isinstance(value, _SCALARS) for value in held) and all(
        _is_of_torch(value)
        or _computes_alone(value, within)
        or (not isinstance(value, types.FunctionType) and _is_fixed(value))
        for value in held
    )


def _reading(function: types.FunctionType, owner: Any) -> Reading | None:
    steps = list(dis.get_instructions(function))
    builtin = {step.argval for step in steps if step.opname == "LOAD_GLOBAL"} - function.__globals__.keys()
    if builtin - _BUILTINS or any(step.opname.startswith(_CHANGES) for step in steps):
        return None
    attributes: dict[str, None] = {}
    if owner is not None:
        try:
            definition = parsed(function)
        except Unreadable:
            return None
        me = definition.args.args[0].arg
        own = [
            node.attr for node in ast.walk(definition) if isinstance(node, ast.Attribute) and _is_name(node.value, me)
        ]
        if len(own) != sum(_is_name(node, me) for node in ast.walk(definition)):
            return None
        attributes = dict.fromkeys(own)
    others = [name for name in _globals(function) if not _is_torchs(function.__globals__[name])]
    widens = any(
        step.argval in WIDE or step.opname == "BINARY_POWER" or step.argrepr in ("**", "**=") for step in steps
    )
    return Reading(tuple(attributes), tuple(others), widens)


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _calls_torch_alone(function: types.FunctionType) -> bool:
    known = [function.__globals__[name] for name in _globals(function)]
    return not function.__closure__ and all(isinstance(value, (int, float)) or _is_torchs(value) for value in known)


def _globals(function: types.FunctionType) -> list[str]:
    read = [step.argval for step in dis.get_instructions(function) if step.opname == "LOAD_GLOBAL"]
    return [name for name in dict.fromkeys(read) if name in function.__globals__]


def _is_torchs(value: Any) -> bool:
    return isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] in ("torch", "math")


_ELEMENTWISE = {"hardswish", "hardswish_", "log_sigmoid_forward", "_prelu_kernel", "gelu_", "clone", "lift_fresh"}
_ELEMENTWISE |= {"zeros_like", "ones_like", "full_like", "scalar_tensor", "detach"}
"""Those of torch's operators that are not tagged so; the gradient tells where a function detaches."""


_DEVICE = Tensor.device.__get__


class _Elementwise(TorchDispatchMode):
    """Refuses whatever else runs: a view, a reduction, a random number."""

    ran = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.pointwise not in op.tags and op.overloadpacket.__name__ not in _ELEMENTWISE:
            raise TypeError(f"{op} is not elementwise")
        self.ran += 1
        return op(*args, **(kwargs or {}))


class _Unasked(TorchFunctionMode):
    """Refuses whatever asks a tensor for more than its elements (its dtype, its shape, a truth) or might do something to another
    (a cast, a copy to a device). Its device is said to be this one."""

    def __init__(self, device: str, elementwise: _Elementwise) -> None:
        super().__init__()
        self.device, self.elementwise = torch.device(device), elementwise

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function == _DEVICE:
            return self.device
        before = self.elementwise.ran
        found = function(*args, **(kwargs or {}))
        if not isinstance(found, Tensor) or self.elementwise.ran == before:
            raise TypeError(f"{function} computes nothing")
        return found


def computed(function: Any) -> Activation | None:
    """The activation without parameters that a function of one tensor computes on a grid, in float64, and its gradient.

    A grid says nothing of shapes, dtypes and states: the function must be made of elementwise operations alone.
    """
    with _disable_current_modes(), torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        grid, x = _grid().clone(), _near().clone().requires_grad_()  # clones, into which it may write
        try:
            with torch.no_grad(), _Elementwise() as elementwise, _Unasked("cuda", elementwise):
                y = function(grid)
            with torch.enable_grad(), _Elementwise() as elementwise, _Unasked("cpu", elementwise):
                z = function(x.clone())
            (dx,) = torch.autograd.grad(z, x, torch.ones_like(x))
        except Exception:  # it wants something else than a tensor, or another shape
            return None
        if y.shape != _grid().shape or y.dtype != _grid().dtype:
            return None
        for entry in ACTIVATIONS.values():
            if (
                entry.arity == 1
                and entry.name != "identity"
                and all(isinstance(p, float) for p in entry.params.values())
            ):
                values, gradients = _values(entry)
                if torch.allclose(y, values, 1e-9, 1e-9, equal_nan=True) and torch.allclose(dx, gradients, 1e-8, 1e-8):
                    return entry
    return None


@functools.cache
def _near() -> Tensor:
    """With 0 and 3, where there are kinks."""
    return torch.linspace(-12, 12, 4001, dtype=torch.float64, device="cpu").round(decimals=3)


@functools.cache
def _grid() -> Tensor:
    far = [-torch.inf, -1e30, -1e5, -1e3, 1e3, 1e5, 1e30, torch.inf, torch.nan]
    return torch.cat([_near(), torch.tensor(far, dtype=torch.float64, device="cpu")])


@functools.cache
def _values(entry: Activation) -> tuple[Tensor, Tensor]:
    """What an activation computes on the grid, with its parameters' defaults, and its gradient nearby."""
    params = tuple(entry.params.values())
    with torch.enable_grad():
        x = _near().clone().requires_grad_()
        (dx,) = torch.autograd.grad(entry.oracle(F, x, *params).sum(), x)
    return entry.oracle(F, _grid(), *params), dx


_TORCHS = _torch_classes()
