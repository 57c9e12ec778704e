"""The class that `fuse` gives a module: derived from the module's own, with our sites in its methods.

One is made for each class and roles of children ("linear", "act", …), so that an instance holds nothing of ours. A copy has the same
class, a pickle names the original class and the roles, and `type(module)(…)` makes another instance. Name, module and signatures are the
original's.
"""

import ast
import functools
import inspect
import types
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .expressions import Found
from .rewriting import Rewriter
from .roles import Roles
from .sites import sequential
from .source import Unreadable, codes_within, innermost, parsed, rebuilt, redecorated
from .trees import changed, stored

_KEY = "_epilogue_plan"
"""The attribute, of a made class itself, that holds its plan."""


@dataclass
class Method:
    """A method as it stands in a class, decorated; the function within, the sites that were found there, and the method that replaces it.

    notes: why it has no sites, by kind (see Roles), or "source" if it cannot be read.
    """

    home: type
    name: str
    original: Any
    inner: Any = None
    definition: ast.FunctionDef | None = None
    found: list[Found] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    remade: Any = None


@dataclass
class Plan:
    """The methods of a class for modules whose children have these roles, and the class that is made of them."""

    original: type
    roles: dict[str, str]
    methods: list[Method] = field(default_factory=list)
    made: type | None = None

    def fits(self, module: nn.Module) -> bool:
        """Return whether the plan was made for such a module, and its class still has the same methods."""
        asked: dict[str, str] = {}
        for method in self.methods:
            if method.inner is not None:
                Roles(method.inner, module, asked).ask_again(self.roles)
        return self.current() and asked == self.roles

    def current(self) -> bool:
        return all(vars(method.home).get(method.name) is method.original for method in self.methods)


_PLANS: dict[type, list[Plan]] = {}
_SEQUENTIAL, _CHILDREN = nn.Sequential.forward, nn.Sequential.__iter__


def plan_of(module: nn.Module) -> Plan:
    """Return the plan for the module's class and its children, which is made if there is none yet."""
    plans = _PLANS.setdefault(type(module), [])
    for plan in plans:
        if plan.fits(module):
            return plan
    plans.append(_planned(type(module), module, {}))
    return plans[-1]


def _planned(cls: type, owner: Any, roles: dict[str, str]) -> Plan:
    plan = Plan(cls, roles)
    names, at = ["forward"], 0
    while at < len(names):
        for home in cls.__mro__[: cls.__mro__.index(nn.Module)]:
            if names[at] not in vars(home):
                continue
            method = Method(home, names[at], vars(home)[names[at]])
            plan.methods.append(method)
            try:
                _read(method, owner, roles)
            except Unreadable as error:
                method.notes["source"] = [f"its {method.name} cannot be read: {error}"]
            code = method.inner.__code__ if method.inner else None
            named = [name for each in (code, *codes_within(code)) for name in each.co_names] if code else []
            names += [name for name in named if name not in names and _is_method(cls, name)]
            if "super" not in named:  # what is further up is not called
                break
        at += 1
    if any(method.definition and _compares_its_class(method) for method in plan.methods):
        for method in plan.methods:
            method.found, method.remade = [], None
            method.notes = {"source": ["its forward compares its own class"]}
    return plan


def _compares_its_class(method: Method) -> bool:
    """Return whether the method would notice that its class is another: `type(self) is …`."""
    own = method.inner.__code__.co_varnames[0]
    compared = [node for node in ast.walk(method.definition) if isinstance(node, ast.Compare)]  # type: ignore[arg-type]
    asked = {ast.unparse(side) for node in compared for side in (node.left, *node.comparators)}
    return bool(asked & {f"type({own})", f"{own}.__class__"})


def _is_method(cls: type, name: str) -> bool:
    return not hasattr(nn.Module, name) and isinstance(inspect.getattr_static(cls, name, None), types.FunctionType)


def _read(method: Method, owner: Any, roles: dict[str, str]) -> None:
    """Find the sites of a method, and make the method that has them."""
    if method.original is _SEQUENTIAL:
        method.remade = _sequential
        return
    method.inner = innermost(method.original)
    code = method.inner.__code__
    if code.co_flags & _SUSPENDS or not code.co_argcount:
        raise Unreadable("it is a generator, a coroutine or no method")
    method.definition = definition = parsed(method.inner)
    if code.co_varnames[0] in stored(ast.Module(definition.body, [])) or _OWN_VARIABLES & set(code.co_names):
        raise Unreadable("it deals with its own variables by name")
    role = Roles(method.inner, owner, roles)
    rewriter = Rewriter(definition, role)
    method.found, method.notes = rewriter.found, role.notes
    if method.found:
        known: dict[str, Any] = {found.name: found.site for found in method.found}
        known |= {"_epilogue_home": method.home, "_epilogue_original": method.original}
        known |= {"_epilogue_getattr": getattr, "_epilogue_partial": functools.partial}
        inner = rebuilt(_guarded(rewriter.definition, method.name), method.inner, known)
        method.remade = redecorated(method.original, inner)


_SUSPENDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_OWN_VARIABLES = {"locals", "vars", "eval", "exec"}


def _guarded(definition: ast.FunctionDef, name: str) -> ast.FunctionDef:
    """Return the definition with a guard before its body, which calls the class's method if that is no longer the one that was read."""
    given = definition.args
    arguments = [arg.arg for arg in (*given.posonlyargs, *given.args)]
    arguments += [f"*{given.vararg.arg}"] if given.vararg else []
    arguments += [f"{arg.arg}={arg.arg}" for arg in given.kwonlyargs]
    arguments += [f"**{given.kwarg.arg}"] if given.kwarg else []
    guard = f"if _epilogue_home.{name} is not _epilogue_original: return _epilogue_home.{name}({', '.join(arguments)})"
    (patched,) = ast.parse(guard).body
    for node in ast.walk(patched):
        ast.copy_location(node, definition)
    return changed(definition, body=[patched, *definition.body])


@functools.wraps(nn.Sequential.forward)
def _sequential(self: Any, input: Any) -> Any:
    ours = nn.Sequential.forward is _SEQUENTIAL and type(self).__iter__ is _CHILDREN
    return sequential(self, input) if ours else nn.Sequential.forward(self, input)


class _Remade:
    """The first base of every made class."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if _KEY not in vars(cls):  # a user's class that notes its subclasses must not see ours
            super().__init_subclass__(**kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(max(2, protocol))
        cls = type(self)
        if _KEY not in vars(cls) or isinstance(reduced, str):
            return reduced
        make, args, *state = reduced
        if not any(part is cls for part in (make, *args)):
            return reduced
        return _called, tuple(_Reference(cls) if part is cls else part for part in (make, *args)), *state


class _Reference:
    """Stands for a made class in a pickle, since no module holds that class under its name."""

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def __reduce__(self) -> Any:
        plan = vars(self.cls)[_KEY]
        return _unpickled, (plan.original, plan.roles)


def _called(*parts: Any) -> Any:
    """Make an object when it is unpickled; references become the classes that they stand for."""
    make, *args = [part.cls if isinstance(part, _Reference) else part for part in parts]
    return make(*args)


def _unpickled(original: type, roles: dict[str, str]) -> type:
    """Return the class that is made of the original for these roles."""
    plans = _PLANS.setdefault(original, [])
    plan = next((plan for plan in plans if plan.roles == roles and plan.current()), None)
    if plan is None:
        plan = _planned(original, None, dict(roles))
        plans.append(plan)
    return made(plan)


def made(plan: Plan) -> type:
    """Return the class that the plan describes, which is made once."""
    if plan.made is None:
        own: dict[str, Any] = {}
        parents: list[type] = []
        for home in plan.original.__mro__:
            methods = {method.name: method.remade for method in plan.methods if method.home is home and method.remade}
            if home is plan.original:
                own = methods
            elif methods:
                quiet = type("Quiet", (), {"__init_subclass__": classmethod(lambda _cls, **_kwargs: None)})
                parents.append(_class(home, (quiet, home), methods))
        # A parent that has sites comes right before the class that it is made of, where super() in that one's children finds it.
        plan.made = _class(plan.original, (_Remade, plan.original, *parents), {**own, _KEY: plan})
    return plan.made


def _class(like: type, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
    named = {"__module__": like.__module__, "__qualname__": like.__qualname__, "__doc__": like.__doc__, **namespace}
    return types.new_class(like.__name__, bases, {}, lambda body: body.update(named))


def is_remade(module: Any) -> bool:
    return _KEY in vars(type(module))


def remade_from(cls: type) -> type | None:
    """Return the class that a made one, or one that another library derived from it, was made of; None for any other."""
    return next((vars(base)[_KEY].original for base in cls.__mro__ if _KEY in vars(base)), None)


def remake(module: nn.Module, plan: Plan) -> None:
    module.__class__ = made(plan)


def restore(module: nn.Module) -> None:
    """Give the module its own class again, and its own methods if somebody has put those of the made class into the instance."""
    plan = vars(type(module))[_KEY]
    ours = {method.remade: method.original for method in plan.methods if method.remade}
    module.__class__ = plan.original
    for name, value in list(vars(module).items()):
        if isinstance(value, types.MethodType) and value.__self__ is module and value.__func__ in ours:
            vars(module)[name] = types.MethodType(ours[value.__func__], module)
