"""The class that `fuse` gives a module is the class for all who ask; modules are edited, copied, pickled and restored as before."""

import abc
import copy
import inspect
import io
import json
import sys
import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import blocks
from as_stock import X, assert_same, check, in_a_process, pair, run
from blocks import Gated, Packed, Plain, Stacked, Twice, VisionMLP
from epilogue.nn import Report, fuse, unfuse
from forwards import GLU, MAKES, MLP, Forwards, OfT, Res, encoder_layer, sequential

EDITS = {
    "[:-1]": lambda m: m[:-1],
    "[1:]": lambda m: m[1:],
    "[3:6]": lambda m: m[3:6],
    "[:3] + [3:]": lambda m: m[:3] + m[3:],
    "+": lambda m: m + sequential().double().requires_grad_(False),
    "+=": lambda m: m.__iadd__(m[:3]),
    "*": lambda m: m * 2,
    "append": lambda m: m.append(nn.Linear(8, 3).double()),
    "extend": lambda m: m.extend([nn.GELU(), nn.Linear(8, 3).double()]),
    "insert": lambda m: m.insert(1, nn.LayerNorm(m[0].out_features).double()),
    "insert first": lambda m: m.insert(0, nn.GELU()),
    "pop": lambda m: (m.pop(1), m)[1],
    "del": lambda m: (m.__delitem__(1), m)[1],
    "del of a slice": lambda m: (m.__delitem__(slice(1, 5)), m)[1],
    "=": lambda m: (m.__setitem__(1, nn.Tanh()), m)[1],
    "of its children": lambda m: type(m)(*m),
    "of a dict": lambda m: type(m)(OrderedDict(m._modules)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}

# torch constructs type(self)(OrderedDict), which a class with a constructor of its own does not take
NOT_OF_A_CLASS = ("[:-1]", "[1:]", "[3:6]", "[:3] + [3:]", "+=", "+", "*", "of its children", "of a dict")


@pytest.mark.parametrize(
    ("make", "edit"),
    [(sequential, edit) for edit in EDITS] + [(VisionMLP, edit) for edit in EDITS if edit not in NOT_OF_A_CLASS],
)
def test_sequentials_are_edited(make, edit):
    module, stock = pair(make)
    edited = []
    for m in (module, stock):
        torch.manual_seed(3)
        edited.append(EDITS[edit](m))
    x = torch.randn(5, 16).double() if edit == "[1:]" else X
    check(*edited, x)
    assert [type(m) for m in edited[0]] == [type(m) for m in edited[1]]
    assert isinstance(edited[0], nn.Sequential)
    unfuse(edited[0]), unfuse(module)
    check(*edited, x)


@pytest.mark.parametrize("make", [MLP, Res, GLU, Packed, Plain, VisionMLP, Stacked, Gated])
def test_the_class_constructs(make):
    module, stock = (m.eval() for m in pair(make))
    another = type(module)().double().eval()
    another.load_state_dict(stock.state_dict())
    check(another, stock)
    assert isinstance(another, make)
    derived = type("Derived", (type(module),), {"forward": lambda self, x: super(derived, self).forward(x) + 1})
    another = derived().double().eval()
    another.load_state_dict(stock.state_dict())
    assert_same(another(X), stock(X) + 1)


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, saved_and_loaded], ids=lambda f: f.__name__)
@pytest.mark.parametrize("make", [Res, MLP, GLU, sequential, VisionMLP, encoder_layer])
def test_copies_are_ordinary_modules(make, copied):
    module, stock = (m.eval() for m in pair(make))
    other = copied(module)
    check(other, stock, X[None])
    assert_same(run(copied(other.get_submodule("")), X[None]), run(stock, X[None]))
    unfuse(module)
    check(other, stock, X[None])
    fuse(module)
    unfuse(other)
    check(module, stock, X[None])
    check(other, stock, X[None])


PICKLED = [blocks.Plain, blocks.Dense, blocks.VisionMLP, blocks.sequential]


@pytest.fixture(scope="module")
def another_process(tmp_path_factory):
    """What another process says of each of these, pickled; one process for all, since importing torch takes it seconds."""
    path, x = tmp_path_factory.mktemp("pickled") / "models.pt", X[:, None]
    pairs = [[m.eval() for m in pair(make)] for make in PICKLED]
    torch.save([(module, x, stock(x).detach()) for module, stock in pairs], path)
    code = """
import json, torch
found = []
for module, x, expected in torch.load(sys.argv[1], weights_only=False):
    found.append([type(module).__name__, sorted(module.__dict__), (module(x) - expected).abs().max().item()])
    from epilogue.nn import unfuse
    unfuse(module)
    found[-1] += [type(module).__module__, (module(x) - expected).abs().max().item()]
print(json.dumps(found))
"""
    return json.loads(in_a_process(code, str(path)))


@pytest.mark.parametrize("make", PICKLED)
def test_pickled_for_another_process(make, another_process):
    stock = make()
    name, keys, error, home, error_unfused = another_process[PICKLED.index(make)]
    assert (name, keys, home) == (type(stock).__name__, sorted(stock.__dict__), type(stock).__module__)
    assert max(error, error_unfused) < 1e-12


def test_a_pickle_says_what_it_needs(tmp_path, monkeypatch):
    module, _ = pair(blocks.Plain)
    torch.save(module, tmp_path / "model.pt")
    for name in [name for name in sys.modules if name.partition(".")[0] == "epilogue"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="epilogue"):
        torch.load(tmp_path / "model.pt", weights_only=False)


def put_back(m):
    m.forward = m.forward


def hooked_by_accelerate(m):
    hooks = pytest.importorskip("accelerate.hooks")
    for module in [m, *m.children()]:
        hooks.add_hook_to_module(module, hooks.ModelHook())


def unhooked_by_accelerate(m):
    hooks = pytest.importorskip("accelerate.hooks")
    for module in [m, *m.children()]:
        hooks.remove_hook_from_module(module)


@pytest.mark.parametrize("make", [MLP, Res, sequential, VisionMLP, GLU])
@pytest.mark.parametrize(
    "steps",
    [
        [fuse, put_back, unfuse],
        [fuse, hooked_by_accelerate, unfuse, unhooked_by_accelerate],
        [fuse, hooked_by_accelerate, unhooked_by_accelerate, unfuse],
        [hooked_by_accelerate, fuse, unhooked_by_accelerate, unfuse],
        [hooked_by_accelerate, fuse, unfuse, unhooked_by_accelerate],
    ],
    ids=lambda steps: ", ".join(step.__name__ for step in steps),
)
def test_a_bound_forward_is_put_back(make, steps):
    _, stock = pair(make)
    module = copy.deepcopy(stock)
    for step in [*steps, fuse]:
        step(module)
        check(module, stock)


def unfused_by_parts(m):
    for child in reversed(list(m.modules())):
        unfuse(child)


def through_reports(m, order):
    if not unfuse(m):
        return
    reports = [fuse(m, include="0*"), fuse(m, include="1*"), fuse(m)]
    assert all(isinstance(report, Report) for report in reports)
    for i in order:
        reports[i].__exit__(None, None, None)


UNDONE = {
    "twice": lambda m: (unfuse(m), unfuse(m)),
    "children first": unfused_by_parts,
    "a parent that is gone": lambda m: (unfuse(m[0]), unfuse(nn.ModuleList([m[1]])), unfuse(m)),
    "reports in order": lambda m: through_reports(m, [0, 1, 2]),
    "reports in reverse": lambda m: through_reports(m, [2, 1, 0]),
    "reports, out of order": lambda m: through_reports(m, [1, 2, 0]),
    "layers exchanged": lambda m: (
        m[0].__setattr__("fc1", m[1].fc1),
        m[1].__setattr__("fc1", copy.deepcopy(m[0].fc1)),
        unfuse(m),
    ),
    "activations exchanged": lambda m: (setattr(m[0], "act", m[1].act), unfuse(m)),
    "parametrized": lambda m: (parametrize.register_parametrization(m[1].fc1, "weight", Twice()), unfuse(m)),
    "parametrized and no more": lambda m: (
        parametrize.register_parametrization(m[1].fc1, "weight", Twice()),
        m(X),
        parametrize.remove_parametrizations(m[1].fc1, "weight", leave_parametrized=False),
        unfuse(m),
    ),
    "a layer gone": lambda m: (setattr(m[1], "fc1", nn.Linear(8, 16).double()), unfuse(m)),
    "a forward of its own": lambda m: (setattr(m[1], "forward", lambda x: 2 * x), unfuse(m)),
}


@pytest.mark.parametrize("undo", UNDONE)
def test_undone_whatever_happened_between(undo):
    module, stock = pair(lambda: nn.Sequential(MLP(), Res(), sequential()))
    apart = [m.fc1 for m in module if hasattr(m, "fc1")]
    for m in (module, stock):
        torch.manual_seed(3)
        UNDONE[undo](m)
    for m, s in zip(module.modules(), stock.modules(), strict=True):
        assert type(m) is type(s) or parametrize.is_parametrized(s)
        assert m.__dict__.keys() == s.__dict__.keys()
    check(module, stock)
    assert all(type(layer) is nn.Linear or parametrize.is_parametrized(layer) for layer in apart)


class Registered(MLP):
    registry: list = []  # noqa: RUF012

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        Registered.registry.append(cls)


class Abstract(MLP, metaclass=abc.ABCMeta):
    """One with a metaclass."""

    @abc.abstractmethod
    def nothing(self): ...


class Concrete(Abstract):
    def nothing(self): ...


class Meta(type):
    def __new__(mcs, name, bases, namespace, *, tag):
        return super().__new__(mcs, name, bases, namespace)


class Tagged(MLP, metaclass=Meta, tag="one"):
    """With a keyword for its metaclass."""


class Defaults(MLP):
    def forward(self, x, seen=[], /, *, more={}):  # noqa: B006
        seen.append(1)
        return self.fc2(self.act(self.fc1(x)))


@pytest.mark.parametrize(
    "make", [*MAKES, Concrete, Tagged, OfT, OfT[int], Defaults, Forwards.Private, Forwards.Decorated]
)
def test_the_class_for_all_who_ask(make):
    module, stock = pair(make)
    cls, original = type(module), type(stock)
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(cls, name) == getattr(original, name)
        assert getattr(cls.forward, name) == getattr(original.forward, name)
        assert getattr(module.forward, name) == getattr(stock.forward, name)
    assert type(cls) is type(original)
    assert repr(cls) == repr(original)
    assert repr(module) == repr(stock)
    assert inspect.signature(cls) == inspect.signature(original)
    for actual, expected in ((cls.forward, original.forward), (module.forward, stock.forward)):
        assert inspect.signature(actual) == inspect.signature(expected)
        assert actual.__annotations__ == expected.__annotations__
        names = inspect.getfullargspec(actual)
        assert names == inspect.getfullargspec(expected)
    defaults, kwdefaults = original.forward.__defaults__ or (), original.forward.__kwdefaults__ or {}
    assert all(a is b for a, b in zip(cls.forward.__defaults__ or (), defaults, strict=True))
    assert all((cls.forward.__kwdefaults__ or {})[key] is value for key, value in kwdefaults.items())
    assert inspect.getsource(cls.forward) == inspect.getsource(original.forward)  # what torch.jit.script reads
    assert isinstance(module, original)
    assert issubclass(cls, original)
    assert getattr(cls, "__orig_bases__", None) == getattr(original, "__orig_bases__", None)


@pytest.mark.parametrize("make", MAKES)
def test_an_instance_holds_nothing_of_ours(make):
    """And children are of their own exact classes."""
    torch.manual_seed(0)
    module = make()
    module.register_forward_hook(lambda *args: None)
    before = {name: (type(m), dict(m.__dict__)) for name, m in module.named_modules()}
    keys, leaves = (
        list(module.state_dict()),
        {name: type(m) for name, m in module.named_modules() if not list(m.children())},
    )
    assert fuse(module).fused
    for name, m in module.named_modules():
        cls, attributes = before[name]
        assert m.__dict__.keys() == attributes.keys()
        assert all(m.__dict__[key] is value for key, value in attributes.items())
        assert isinstance(m, cls)
    assert {name: type(m) for name, m in module.named_modules() if not list(m.children())} == leaves
    assert list(module.state_dict()) == keys
    assert [name for name, _ in module.named_modules()] == list(before)


def test_a_registry_of_subclasses_sees_no_second_one():
    class Member(Registered):
        pass

    before = list(Registered.registry)
    module = nn.ModuleList([Member(), Member()])
    assert len(fuse(module).fused) == 2
    assert Registered.registry == before
    assert type(module[0]) is type(module[1])


class Hooked(MLP):
    def __init__(self):
        super().__init__()
        self.seen = []
        self.register_forward_pre_hook(lambda m, args: m.seen.append("pre"))
        self.register_forward_hook(lambda m, args, y: m.seen.append("forward"))
        self.register_full_backward_hook(lambda m, dx, dy: m.seen.append("backward"))


def test_hooks_of_the_module_and_its_mode():
    module, stock = pair(Hooked)
    assert module.seen == []
    check(module, stock)
    assert module.seen == stock.seen == ["pre", "forward", "backward"]
    for m in (module, stock):
        m.eval(), m.requires_grad_(False), m.float(), m.double(), m.train()
    assert module.training
    check(module, stock)


def test_the_class_itself_stays(counted):
    """Other instances are none of ours, and nor are subclasses that are made, or called, later."""
    before = {cls: dict(vars(cls)) for cls in (MLP, Forwards.Scaled, nn.Sequential, nn.Linear, nn.GELU)}
    module, stock = pair(lambda: nn.ModuleDict({"a": MLP(), "b": MLP(), "c": Forwards.Scaled(), "d": sequential()}))
    unfuse(module)
    fuse(module, include=["a", "d"])
    counted.clear()
    for name in ("b", "c"):
        check(module[name], stock[name])
        assert type(module[name]) is type(stock[name])
    assert counted == []
    module["a"](X), module["d"](X)
    assert counted
    unfuse(module["a"])
    check(module["d"], stock["d"])
    for cls, attributes in before.items():
        assert vars(cls).keys() == attributes.keys()
        assert all(vars(cls)[name] is value for name, value in attributes.items())


@pytest.mark.parametrize("make", MAKES)
def test_nothing_keeps_a_module_alive(make, collect):
    module = make()
    fuse(module)
    module(torch.randn(1, 5, 8))
    seen = weakref.ref(module)
    del module
    collect()
    assert seen() is None
