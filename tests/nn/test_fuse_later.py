"""What happens to a model after `fuse` has the same effect as in a stock one: changed children and numbers, patches, hooks, casts."""

import copy
import functools
import math
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import forwards
from as_stock import X, assert_as_stock, assert_same, check, in_a_process, outcome, pair, run
from blocks import LoRA, Packed, Plain, Stacked, Twice, VisionMLP
from epilogue.nn import fuse, unfuse
from forwards import GLU, MAKES, MLP, Forwards, Res, sequential, swished


def set_in(child, **attributes):
    def change(m):
        for name, value in attributes.items():
            setattr(m.get_submodule(child), name, value)

    return change


def lora(m):
    torch.manual_seed(3)
    adapter = LoRA(m.fc1)
    adapter.b = nn.Linear(2, 16, dtype=torch.float64)
    m.fc1 = adapter


def adapted(m):
    torch.manual_seed(3)
    return nn.Linear(16, 16, dtype=torch.float64)


def shared(m):
    """Another owner of fc1, which calls it without an activation, before."""
    other = nn.Module()
    other.fc1 = m.fc1
    m.register_forward_pre_hook(lambda _m, args: (args[0] + other.fc1(args[0]).sum(),))


def on_the_class(module, **attributes):
    module.__class__ = type(type(module).__name__, (type(module),), attributes)


CHANGES = {
    "fc1 copied": (Res, lambda m: setattr(m, "fc1", copy.deepcopy(m.fc1))),
    "fc1 copied, function": (lambda: Res(F.gelu), lambda m: setattr(m, "fc1", copy.deepcopy(m.fc1))),
    "fc1 copied in an MLP": (MLP, lambda m: setattr(m, "fc1", copy.deepcopy(m.fc1))),
    "fc1 shallowly copied": (Res, lambda m: setattr(m, "fc1", copy.copy(m.fc1))),
    "act copied": (Res, lambda m: setattr(m, "act", copy.deepcopy(m.act))),
    "both copied": (Res, lambda m: [setattr(m, name, copy.deepcopy(getattr(m, name))) for name in ("fc1", "act")]),
    "another linear": (Res, lambda m: setattr(m, "fc1", adapted(m)) or setattr(m.fc1, "weight", nn.Parameter(m.fc1.weight[:, :8]))),
    "fc1 owned twice": (Res, shared),
    "an adapter behind, in its place": (Res, lambda m: setattr(m, "fc1", nn.Sequential(m.fc1, adapted(m)))),
    "an adapter before the activation": (Res, lambda m: setattr(m, "act", nn.Sequential(adapted(m), m.act))),
    "an adapter beside": (Res, lambda m: setattr(m, "adapter", adapted(m))),
    "LoRA": (MLP, lora),
    "the activation a function": (MLP, lambda m: (delattr(m, "act"), setattr(m, "act", torch.tanh))),
    "the activation dropped": (MLP, lambda m: setattr(m, "act", nn.Identity())),
    "fc1 as the activation": (lambda: Res(nn.Tanh()), lambda m: setattr(m, "act", nn.Linear(16, 16).double().requires_grad_(False))),
    "a layer without bias": (Res, lambda m: setattr(m.fc1, "bias", None)),
    "wider layers": (MLP, lambda m: (setattr(m, "fc1", nn.Linear(8, 5).double()), setattr(m, "fc2", nn.Linear(5, 3).double()))),
    "frozen": (Res, lambda m: m.requires_grad_(False)),
    "frozen in part": (MLP, lambda m: m.fc1.requires_grad_(False)),
    "tied weights": (lambda: nn.Sequential(MLP(), MLP(), Res()), lambda m: [setattr(m[i].fc1, "weight", m[0].fc1.weight) for i in (1, 2)]),
    "the weight replaced": (Res, lambda m: setattr(m.fc1, "weight", nn.Parameter(torch.ones(16, 8).double()))),
    "the weight a plain tensor": (MLP, lambda m: (delattr(m.fc1, "weight"), setattr(m.fc1, "weight", torch.ones(16, 8).double()))),
    "weight norm": (MLP, lambda m: parametrizations.weight_norm(m.fc1)),
    "spectral norm": (Res, lambda m: parametrizations.spectral_norm(m.fc1)),
    "pruned": (Res, lambda m: prune.l1_unstructured(m.fc1, "weight", amount=0.5)),
    "a parametrized activation": (
        lambda: Res(nn.PReLU()),
        lambda m: parametrize.register_parametrization(m.act, "weight", Twice()),
    ),
    "a slope for each channel": (lambda: MLP(nn.PReLU()), lambda m: setattr(m.act, "weight", nn.Parameter(torch.rand(16).double()))),
    "approximate": (MLP, set_in("act", approximate="tanh")),
    "approximate, residual": (Res, set_in("act", approximate="tanh")),
    "negative_slope": (lambda: Res(nn.LeakyReLU(0.1)), set_in("act", negative_slope=0.5)),
    "alpha": (lambda: MLP(nn.ELU()), set_in("act", alpha=0.5)),
    "beta": (lambda: Res(nn.Softplus()), set_in("act", beta=2.0, threshold=1.0)),
    "min_val": (lambda: MLP(nn.Hardtanh()), set_in("act", min_val=-0.1, max_val=0.2)),
    "lambd": (lambda: MLP(nn.Hardshrink()), set_in("act", lambd=0.1)),
    "one's own beta": (lambda: MLP(swished(1.702)), set_in("act", beta=0.3)),
    "one's own beta, residual": (lambda: Res(swished(1.0)), set_in("act", beta=3.0)),
    "a number on the instance": (Forwards.Scaled, set_in("", scale=0.0)),
    "the activation's forward": (Res, lambda m: setattr(m.act, "forward", torch.tanh)),
    "the activation's forward, MLP": (MLP, lambda m: setattr(m.act, "forward", torch.tanh)),
    "the down layer's forward": (MLP, lambda m: setattr(m.fc2, "forward", lambda h: h[..., :8])),
    "the module's forward": (MLP, lambda m: setattr(m, "forward", lambda x: 2 * x)),
    "the module's forward, wrapped": (Res, lambda m: setattr(m, "forward", lambda x, old=m.forward: 2 * old(x))),
    "a class derived": (MLP, lambda m: on_the_class(m, forward=lambda self, x: MLP.forward(self, x) + 1)),
    "a class derived of fc1's": (Res, lambda m: on_the_class(m.fc1, forward=lambda self, x: 2 * F.linear(x, self.weight))),
    "a class derived of act's": (Res, lambda m: on_the_class(m.act, forward=lambda self, x: torch.tanh(x))),
    "a property for the weight": (MLP, lambda m: on_the_class(m.fc1, weight=property(lambda self: torch.ones(16, 8).double()))),
    "a hook that changes the output": (Res, lambda m: m.fc1.register_forward_hook(lambda _m, args, z: 2 * z)),
    "a hook that changes the input": (MLP, lambda m: m.fc2.register_forward_pre_hook(lambda _m, args: (2 * args[0],))),
    "a hook with keywords": (
        MLP,
        lambda m: m.fc1.register_forward_hook(lambda _m, args, kwargs, z: 2 * z, with_kwargs=True),
    ),
    "a backward hook": (Res, lambda m: m.fc1.register_full_backward_hook(lambda _m, dx, dz: (2 * dx[0],))),
    "a backward pre-hook": (MLP, lambda m: m.fc1.register_full_backward_pre_hook(lambda _m, dz: (2 * dz[0],))),
    "a gradient's hook": (MLP, lambda m: m.fc1.weight.register_hook(lambda dw: 2 * dw)),
    "children renamed": (sequential, lambda m: m._modules.update({"1": nn.Tanh()})),
    "children in another order": (sequential, lambda m: m._modules.update({"1": m[4], "4": nn.Tanh()})),
}  # fmt: skip


class Dropped(MLP):
    def forward(self, x):
        return self.fc2(self.drop(self.act(self.fc1(x))))


class DroppedByAFunction(MLP):
    p = 0.5

    def forward(self, x):
        return self.fc2(F.dropout(self.act(self.fc1(x)), self.p, self.training))


@pytest.mark.parametrize("p", [0, 1, True, 2, -1.0, math.nan, torch.tensor(0.5), "0.5"], ids=str)
def test_any_share_to_drop(p):
    for make in (Dropped, DroppedByAFunction):
        module, stock = pair(make)
        for m in (module, stock):
            m.p = m.drop.p = p
        assert_as_stock(module, stock)
    for m in (module, stock):
        m.drop.training = 1
    assert_as_stock(module, stock)


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (nn.CELU, {"alpha": 0.0}),
        (nn.Softshrink, {"lambd": -1.0}),
        (nn.Hardtanh, {"min_val": 3.0, "max_val": 1.0}),
        (nn.LeakyReLU, {"negative_slope": True}),
        (nn.LeakyReLU, {"negative_slope": math.nan}),
        (nn.LeakyReLU, {"negative_slope": torch.tensor(0.5)}),
        (nn.GELU, {"approximate": "no"}),
        (nn.PReLU, {"weight": nn.Parameter(torch.ones(1))}),
    ],
    ids=lambda given: str(given),
)
def test_any_parameter(make, change):
    module, stock = pair(lambda: MLP(make()))
    for m in (module, stock):
        vars(m.act).update({name: value for name, value in change.items() if name != "weight"})
        if "weight" in change:
            m.act.weight = change["weight"]
    assert_as_stock(module, stock)


@pytest.mark.parametrize("dtype", [torch.complex128, torch.int64, torch.float8_e4m3fn], ids=str)
def test_any_dtype(dtype):
    module, stock = pair(lambda: MLP(nn.Tanh() if dtype.is_complex else nn.ReLU()).requires_grad_(False))
    for parameter in (*module.parameters(), *stock.parameters()):
        parameter.data = (10 * parameter).to(dtype)
    assert_as_stock(module, stock, lambda m: m((10 * X).to(dtype)))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize("make", [MLP, GLU, sequential])
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(make, layout):
    module, stock = pair(make)
    x = torch.nested.nested_tensor([X[:2], X], layout=layout)
    assert_same([y.detach() for y in module(x).unbind()], [y.detach() for y in stock(x).unbind()])


class Reduced(MLP):
    def __reduce__(self):
        return type(self), (), self.__getstate__()


class ReducedByKeywords(MLP):
    def __new__(cls, **kwargs):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (), {"key": 1}


@pytest.mark.parametrize("make", [Reduced, ReducedByKeywords])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_in_a_way_of_ones_own(make, protocol, counted):
    module, stock = pair(make)
    for other in (pickle.loads(pickle.dumps(module, protocol)), copy.copy(module), copy.deepcopy(module)):
        counted.clear()
        assert_same(other(X), stock(X))
        assert counted == ["mlp"]
        unfuse(other)
        assert type(other) is make


def test_calls_are_seen_by_whoever_patches_them(monkeypatch):
    module, stock = pair(MLP)
    call, seen = nn.Module.__call__, []
    monkeypatch.setattr(
        nn.Module, "__call__", lambda self, *args: (seen.append(type(self).__name__), call(self, *args))[1]
    )
    module(X)
    of_module = seen.copy()
    seen.clear()
    stock(X)
    assert of_module == seen


def test_a_function_keeps_no_module_alive(collect):
    def made(layer):
        return lambda x: F.gelu(x) * (layer is not None)

    module = MLP()
    module.act = None
    del module.act
    module.act = made(module.fc2)
    fuse(module)
    module(X.float())
    kept = weakref.ref(module.fc2.weight)
    del module
    collect()
    assert kept() is None


def test_an_activation_met_first_among_fake_tensors():
    code = """
from torch._subclasses.fake_tensor import FakeTensorMode
from as_stock import X, check, fuse, pair
from blocks import Other
from forwards import MLP
module, stock = pair(MLP)
module.act = stock.act = Other()
with FakeTensorMode(allow_non_fake_inputs=True):
    module(X)
check(module, stock)
print(len(fuse(MLP(Other())).fused))
"""
    assert in_a_process(code) == "1"


@pytest.mark.parametrize("name", CHANGES)
def test_what_happens_later_is_as_stock(name):
    make, change = CHANGES[name]
    module, stock = pair(make)
    for m in (module, stock):
        torch.manual_seed(3)
        change(m)
    x = torch.randn(2, 16, 8).double() if "channel" in name else X
    check(module, stock, x)
    with torch.no_grad():
        assert_as_stock(module.eval(), stock.eval())
    if name == "a class derived":
        with pytest.raises(ValueError, match="made of a fused class; take that back first"):
            unfuse(module)
        return
    unfuse(module)
    check(module, stock, x)


def with_a_clamp(self, x):
    return self.fc2(self.act(self.fc1(x).clamp(-0.1, 0.1)))


PATCHES = {
    "the class": (MLP, MLP, "forward", with_a_clamp),
    "a parent": (Forwards.Scaled, MLP, "forward", with_a_clamp),
    "a grandparent": (Forwards.ParentTwice, MLP, "forward", with_a_clamp),
    "the residual class": (Res, Res, "forward", with_a_clamp),
    "nn.Sequential": (sequential, nn.Sequential, "forward", lambda self, x: self[0](x)),
    "torchvision's manner": (VisionMLP, VisionMLP, "forward", lambda self, x: self[0](x)),
    "the activation": (MLP, nn.GELU, "forward", lambda self, x: torch.tanh(x)),
    "the activation, residual": (Res, nn.GELU, "forward", lambda self, x: torch.tanh(x)),
    "the activation in an nn.Sequential": (sequential, nn.GELU, "forward", lambda self, x: torch.tanh(x)),
    "linear": (MLP, nn.Linear, "forward", lambda self, x: 2 * F.linear(x, self.weight)),
    "linear, residual": (Res, nn.Linear, "forward", lambda self, x: 2 * F.linear(x, self.weight)),
    "dropout": (Plain, nn.Dropout, "forward", lambda self, x: 2 * x),
    "linear's call": (MLP, nn.Linear, "__call__", lambda self, x: 2 * self.forward(x)),
    "a class attribute": (Forwards.Scaled, MLP, "scale", 0.0),
    "a global": (Forwards.ScaledByAGlobal, forwards, "SCALE", 3.0),
    "a global function": (Forwards.ActivatedByAGlobal, forwards, "activated", torch.tanh),
}


@pytest.mark.parametrize("name", PATCHES)
def test_what_is_patched_later_is_as_stock(name, monkeypatch):
    make, owner, attribute, value = PATCHES[name]
    module, stock = (m.eval() for m in pair(make))
    expected = run(stock)
    monkeypatch.setattr(owner, attribute, value)
    check(module, stock)
    monkeypatch.undo()
    assert_same(run(module), expected)


@pytest.mark.parametrize("act", [None, F.gelu], ids=["module", "function"])
def test_children_by_themselves(act):
    """The linear layer called by itself is the linear layer, within a call of the whole and after it."""
    module, stock = pair(lambda: Res(act))
    for _ in range(2):
        assert_same(run(module.fc1, X), run(stock.fc1, X))
        h = torch.randn(5, 16).double()
        assert_same(module.act(h), stock.act(h))
        assert_same(module.act(module.act(module.fc1(X))), stock.act(stock.act(stock.fc1(X))))
        check(module, stock)
    assert type(module.fc1) is nn.Linear
    assert type(module.act) is type(stock.act)


def test_two_owners_of_a_layer():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.third = Res(), Res(nn.Tanh()), nn.Sequential(nn.LayerNorm(8), nn.Identity())
            self.other.fc1 = self.third[1] = self.one.fc1

        def forward(self, x):
            return self.one(x) + self.other(x) + self.third(x).sum()

    check(*pair(Two))


@pytest.mark.parametrize("hooks", [False, True])
@pytest.mark.parametrize("make", MAKES)
def test_a_hook_sees_what_a_layer_returns(make, hooks):
    seen = ([], [])
    for module, found in zip((m.eval() for m in pair(make)), seen, strict=True):
        children = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.GELU))]
        for child in children:
            child.register_forward_hook(lambda _m, args, y, found=found: found.append((args, y.detach().clone())))
            if hooks:
                child.register_full_backward_hook(lambda _m, dx, dy, found=found: found.append((dx, dy)))
        run(module, X[None])
    assert seen[1]
    assert_same(*seen)


@pytest.mark.parametrize(
    ("make", "args"),
    [
        (Res, ()),
        (Res, (F.gelu,)),
        (MLP, ()),
        (MLP, (F.gelu,)),
        (GLU, ()),
        (Packed, ()),
        (sequential, ()),
        (Stacked, ()),
    ],
)
def test_symbolic_trace(make, args):
    module, stock = (m.eval() for m in pair(lambda: make(*args)))
    graph = torch.fx.symbolic_trace(module)
    check(graph, stock)
    check(copy.deepcopy(graph), stock)
    unfuse(module)
    check(graph, stock)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("make", MAKES)
def test_checkpoint(make, reentrant):
    found = [run(functools.partial(checkpoint, m, use_reentrant=reentrant), X[None], m) for m in pair(make)]
    assert_same(*found)


class Cast(MLP):
    def forward(self, x):
        return self.fc2(self.act(self.fc1(x).to(x.dtype)))


class CastRes(Res):
    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(self.n(x)).to(x.dtype)))


class CastByFloat(Res):
    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(x).float()).to(x.dtype))


class Clamped(Res):
    def forward(self, x):
        h = self.fc1(x)
        if h.dtype == torch.float16:
            h = h.clamp(-0.1, 0.1)
        return x + self.fc2(self.act(h))


class ClampedMLP(MLP):
    def forward(self, x):
        h = self.fc1(x)
        if h.dtype == torch.float16:
            h = torch.clamp(h, -0.1, 0.1)
        return self.fc2(self.act(h))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [Cast, CastRes, CastByFloat, Clamped, ClampedMLP, MLP, Res])
def test_casts_between(make, dtype, autocast):
    module, stock = (m.to(dtype) for m in pair(make))
    tolerance = 2e-2 if autocast or dtype == torch.bfloat16 else 3e-3 if dtype == torch.float16 else 1e-5
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = outcome(lambda: stock(X.to(dtype)))
        assert_same(outcome(lambda: module(X.to(dtype))), expected, tolerance)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("saved", "targets", "act"),
    [
        ([saved], targets, act)
        for targets in (["fc2"], ["fc1", "fc2"])
        for saved in ("fc1", "act", "n")
        for act in (None, F.gelu)
        if saved not in targets and not (act and saved == "act")
    ],
)
def test_modules_to_save(saved, targets, act):
    peft = pytest.importorskip("peft")
    results = []
    for m in pair(lambda: Res(act)):
        torch.manual_seed(3)
        model = peft.get_peft_model(
            m, peft.LoraConfig(target_modules=targets, modules_to_save=saved, init_lora_weights=False)
        ).double()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modules_to_save" in name:
                    parameter.mul_(2)
        found = run(model)
        with model.disable_adapter():
            results.append((found, model(X), model.merge_and_unload()(X)))
    assert_same(*results)
