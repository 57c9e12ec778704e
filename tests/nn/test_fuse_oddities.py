"""`fuse` never raises for what it finds, nor under the modes that it is called in."""

import functools
import inspect
import threading

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from as_stock import X, assert_as_stock, check, in_a_process, pair
from blocks import Packed
from epilogue.nn import Report, fuse, unfuse
from forwards import GLU, MLP, Res, raising, sequential, swished


def with_child(change, act=None):
    def make():
        m = MLP(act)
        change(m)
        return m

    return make


def of_class(**attributes):
    return lambda: type("Made", (MLP,), attributes)()


def executed():
    space = {"MLP": MLP}
    exec("class Executed(MLP):\n    def forward(self, x): return 2 * self.fc2(self.act(self.fc1(x)))", space)
    return space["Executed"]()


class Generator(MLP):
    def forward(self, x):
        yield self.fc2(self.act(self.fc1(x)))


class Async(MLP):
    async def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Called:
    def __call__(self, *args):
        return 2 * args[-1]


class RaisingGetattr(MLP):
    def __getattr__(self, name):
        if name in ("fc1", "fc2", "act", "drop"):
            return super().__getattr__(name)
        raise RuntimeError(f"no {name}")


class Sealed(MLP):
    def __init_subclass__(cls, **kwargs):
        raise TypeError("no subclasses")


class Frozen(MLP):
    ready = False

    def __init__(self):
        super().__init__()
        self.ready = True

    def __setattr__(self, name, value):
        if self.ready:
            raise AttributeError(f"{name} is frozen")
        super().__setattr__(name, value)


class Slotted(MLP):
    __slots__ = ("more",)


class Odd:
    """An attribute that can be neither compared, copied nor asked."""

    def __bool__(self):
        raise RuntimeError("neither true nor false")

    def __eq__(self, other):
        raise RuntimeError("not comparable")

    __hash__ = None

    def __deepcopy__(self, memo):
        raise RuntimeError("not copied")

    def __call__(self, *args):
        raise RuntimeError("not called")


class RaisingParameters(nn.Linear):
    def parameters(self, recurse=True):
        raise RuntimeError("no parameters")


def with_weight(weight):
    def change(layer):
        layer.weight = weight(layer.weight)
        return layer

    return change


LAYERS = {
    "pruned": lambda layer: prune.identity(prune.l1_unstructured(layer, "weight", amount=0.5), "bias"),
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of old": nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm of old": nn.utils.spectral_norm,
    "scripted": torch.jit.script,
    "traced": lambda layer: torch.jit.trace(layer, torch.ones(1, layer.in_features, dtype=layer.weight.dtype)),
    "lazy": lambda layer: nn.LazyLinear(layer.out_features),
    "another dtype": nn.Linear.half,
    "meta": lambda layer: layer.to("meta"),
    "nothing out": lambda layer: nn.Linear(layer.in_features, 0),
    "nothing in": lambda layer: nn.Linear(0, layer.out_features),
    "flat": with_weight(lambda w: nn.Parameter(w.detach().flatten())),
    "empty": with_weight(lambda w: nn.Parameter(torch.empty(0))),
    "a scalar": with_weight(lambda w: nn.Parameter(torch.tensor(1.0))),
    "stacked": with_weight(lambda w: nn.Parameter(torch.stack([w.detach()] * 2))),
    "none": with_weight(lambda w: None),
    "integers": with_weight(lambda w: nn.Parameter(torch.ones_like(w, dtype=torch.int8), requires_grad=False)),
    "deleted": lambda layer: (layer.__delattr__("weight"), layer)[1],
    "gone": lambda layer: None,
    "parameters that raise": lambda layer: RaisingParameters(layer.in_features, layer.out_features),
}


def changed(make, path, change):
    def made():
        m = make()
        m._modules[path] = change(m._modules[path])
        return m

    return made


ODDITIES = {
    **{
        f"{name}, {path} of {make.__name__}": changed(make, path, change)
        for name, change in LAYERS.items()
        for make, path in ((MLP, "fc1"), (MLP, "fc2"), (Res, "fc1"), (sequential, "0"), (sequential, "2"))
    },
    "nothing hidden": with_child(lambda m: (setattr(m, "fc1", nn.Linear(8, 0)), setattr(m, "fc2", nn.Linear(0, 8)))),
    "nothing hidden in a sequential": lambda: nn.Sequential(nn.Linear(8, 0), nn.GELU(), nn.Linear(0, 8)),
    "a scripted activation": with_child(lambda m: setattr(m, "act", torch.jit.script(m.act))),
    "a scripted model": lambda: torch.jit.script(MLP()),
    "an activation that is None": with_child(lambda m: setattr(m, "act", None)),
    "a property that raises": of_class(width=property(raising), gelu=property(raising)),
    "a descriptor": of_class(fc3=functools.cached_property(raising)),
    "__getattr__ that raises": RaisingGetattr,
    "an odd attribute": with_child(lambda m: setattr(m, "odd", Odd())),
    "an odd attribute named as an activation": with_child(lambda m: setattr(m, "activation", Odd())),
    "a lock": with_child(lambda m: setattr(m, "lock", threading.Lock())),
    "no subclasses": Sealed,
    "frozen": Frozen,
    "slots": Slotted,
    "itself": with_child(lambda m: setattr(m, "me", [m])),
    "executed": executed,
    "a partial": of_class(forward=functools.partial(raising, 1)),
    "a partialmethod": of_class(forward=functools.partialmethod(lambda self, n, x: n * MLP.forward(self, x), 2)),
    "a C function": of_class(forward=staticmethod(torch.tanh)),
    "a static function": of_class(forward=staticmethod(lambda x: 2 * x)),
    "a class method": of_class(forward=classmethod(lambda cls, x: 2 * x)),
    "a lambda": of_class(forward=lambda self, x: self.fc2(self.act(self.fc1(x))) + 1),
    "an object": of_class(forward=Called()),
    "a property": of_class(forward=property(lambda self: lambda x: 2 * MLP.forward(self, x))),
    "no forward": of_class(forward=nn.Module.forward),
    "a generator": Generator,
    "async": Async,
    "a graph": lambda: torch.fx.symbolic_trace(MLP()),
    "compiled": lambda: torch.compile(MLP(), backend="eager"),
    "parallel": lambda: nn.DataParallel(MLP()),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ODDITIES)
def test_fuse_never_raises(name):
    torch.manual_seed(0)
    stock = ODDITIES[name]()
    torch.manual_seed(0)
    module = ODDITIES[name]()
    if name != "frozen":
        (stock.double(), module.double())

    def results(m):
        torch.manual_seed(3)
        y = m(X)
        return "coroutine" if inspect.iscoroutine(y) and y.close() is None else list(y)

    names = [n for n, _ in module.named_modules()]
    for verify in (True, False):
        assert isinstance(fuse(module, verify=verify), Report)
        assert_as_stock(module, stock, results)
        unfuse(module)
        assert_as_stock(module, stock, results)
    assert [n for n, _ in module.named_modules()] == names


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "path"), [(MLP, "fc1"), (MLP, "fc2"), (Res, "fc1"), (GLU, "up"), (sequential, "0"), (sequential, "2")]
)
@pytest.mark.parametrize("name", LAYERS)
def test_what_becomes_of_layers_later(name, make, path):
    module, stock = pair(make)
    for m in (module, stock):
        torch.manual_seed(3)
        m._modules[path] = LAYERS[name](m._modules[path])
    assert_as_stock(module.eval(), stock.eval())
    unfuse(module)
    assert_as_stock(module, stock)


MODES = {
    "meta": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "fake": FakeTensorMode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "flops": lambda: FlopCounterMode(display=False),
    "skip_init": torch.nn.utils.parametrize.cached,
    "profiled": torch.profiler.profile,
    "anomalies": lambda: torch.autograd.detect_anomaly(check_nan=False),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
@pytest.mark.parametrize("make", [MLP, Res, GLU, Packed, sequential, lambda: MLP(swished(1.702))])
@pytest.mark.parametrize("mode", MODES)
def test_fuse_under_a_mode(mode, make):
    module, stock = (m.eval() for m in pair(make))
    rows = fuse(stock, dry_run=True).fused
    unfuse(module)
    with MODES[mode]():
        report = fuse(module)
    assert report.fused == rows
    check(module, stock)


def test_a_class_that_is_first_seen_in_inference_mode():
    """What a trial finds is kept for the class, so the one in this mode must not find that nothing works."""

    class Fresh(MLP):
        def forward(self, x):
            return self.fc2(self.act(self.fc1(x)))

    with torch.inference_mode():
        assert len(fuse(Fresh()).fused) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_fuse_with_another_default_dtype(dtype):
    module, stock = pair(MLP)
    unfuse(module)
    torch.set_default_dtype(dtype)
    try:
        assert len(fuse(module).fused) == 1
    finally:
        torch.set_default_dtype(torch.float32)
    check(module, stock)


@pytest.mark.parametrize("mode", ["torch.device('meta')", "torch.inference_mode()", "FakeTensorMode()"])
def test_imported_under_a_mode(mode):
    code = f"""
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
with {mode}:
    import epilogue.nn
import blocks
module = torch.nn.ModuleList([blocks.Plain().eval(), blocks.Gated(blocks.Other())])
x = torch.randn(3, 8)
expected = [m(x) for m in module]
report = epilogue.nn.fuse(module)
print(len(report.fused), all(torch.allclose(m(x), y, atol=1e-6) for m, y in zip(module, expected)))
print(epilogue.linear(x, module[0].fc1.weight, activation="gelu").device)
"""
    assert in_a_process(code) == "2 True\ncpu"
