"""Torch tensors on the CuPy kernels, through the same autograd operations as on the Triton kernels: values and all gradients, as accurate
as torch's own unfused layers of the same dtype.

On a GPU through the front door; without one the operations are called behind it, which sends CPU tensors elsewhere.
"""

import contextlib
import functools
import types

import pytest
import torch
import torch.nn.functional as F

import checks
import epilogue
import epilogue.cupy
from checks import OPS, arguments, assert_accurate, each, keywords, leaves, unfused
from epilogue import ACTIVATIONS, backends, functional
from epilogue.applied import Applied, Needs
from epilogue.autograd import KERNELS
from epilogue.benchmarks.train.layers import FUSED, STOCK
from epilogue.cupy import epilogues, tensors
from epilogue.lookup import resolve_call
from epilogue.operands import Dropout, draw_seed

GPU = epilogue.cupy.missing() is None
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def fused(op, args, entry, values, **options):
    """The operation on the CuPy kernels."""
    name, (x, *rest) = op.split()[0], args.values()
    if x.is_cuda:
        with epilogue.backend("cupy"):
            assert epilogue.backends.serving(x, x) == ("cupy", "cupy was chosen")
            training = {"training": True} if "dropout_p" in options else {}
            return getattr(epilogue, name)(**args, activation=entry, **keywords(entry, values), **options, **training)
    act, values = resolve_call(name, entry, keywords(entry, values), "gl" in name or "gated" in name)
    return getattr(KERNELS["cupy"], name)(x, *rest, act, values, **options)


def compare(op, args, dy, entry, values, **options):
    def function(args, values):
        return fused(op, args, entry, values, **options)

    checks.assert_trains(function, op, args, entry, values, dy)


def draw(op, rng, dtype, device, rows=37, sizes=(19, 29, 13), **options):
    args = each(lambda a: torch.as_tensor(a).to(device, dtype), arguments(op, rng, (rows,), sizes, **options))
    width = sizes[2] if "mlp" in op else sizes[1]
    return args, torch.as_tensor(rng.standard_normal((rows, width))).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("op", "entry", "values"),
    [pytest.param(op, *case.values, id=f"{op}-{case.id}") for op in ("linear", "mlp", "glu")
     for case in checks.cases(None if op == "glu" else 1, every=op == "linear")],
)  # fmt: skip
def test_every_activation_trains(op, entry, values, dtype, device, rng):
    compare(op, *draw(op, rng, dtype, device), entry, values)


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("sizes", [(16, 32, 8), (5, 9, 3)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("op", OPS)
def test_every_operation(op, bias, sizes, rows, device, rng):
    compare(op, *draw(op, rng, torch.bfloat16, device, rows, sizes, bias=bias), ACTIVATIONS["silu"], ())


@pytest.mark.parametrize("sizes", [(16, 24, 8), (19, 29, 13)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["relu", "gelu_tanh"])
@pytest.mark.parametrize("op", ["linear", "mlp"])
def test_by_cublaslt(op, name, bias, dtype, sizes, device, rng, taken):
    """The epilogues that cuBLASLt has are its own where nvmath-python is: gelu_tanh's derivative where z needs no filling up, and is no
    float16, which may have overflowed."""
    compare(op, *draw(op, rng, dtype, device, sizes=sizes, bias=bias), ACTIVATIONS[name], ())
    if not GPU:
        end, summed = ("_BIAS", "_BGRAD") if bias else ("", "")
        backward = [f"DGELU{summed}"] if op == "mlp" else []
        trains = [f"GELU_AUX{end}", *backward] if sizes[1] % 8 == 0 and dtype != torch.float16 else []
        assert taken == (trains if name == "gelu_tanh" else [f"RELU{end}"])


@pytest.mark.parametrize(
    ("op", "name", "options", "expected"),
    [
        ("glu", "gelu_tanh", {}, []),
        ("glu packed", "relu", {}, []),
        ("gated_mlp", "gelu_tanh", {}, []),
        ("mlp", "gelu_tanh", {"recompute": True}, ["GELU_BIAS", "GELU_AUX_BIAS", "DGELU_BGRAD"]),
        ("mlp", "relu", {"recompute": True}, ["RELU_BIAS"]),
        ("mlp", "gelu", {}, []),
    ],
)
def test_what_cublaslt_has_no_epilogue_for(op, name, options, expected, device, rng, taken):
    """Gated layers, and z of relu, of which it keeps bits."""
    compare(op, *draw(op, rng, torch.bfloat16, device, sizes=(16, 24, 8)), ACTIVATIONS[name], (), **options)
    assert taken == expected or GPU


@pytest.mark.parametrize(("name", "wanted"), [("relu", {"x"}), ("gelu_tanh", {"x", "up_bias"}), ("gelu_tanh", {"x"})])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_frozen_by_cublaslt(name, dropout_p, wanted, device, rng, taken):
    """A dropout and relu's signs are the kernels', and h is not computed again where nobody asks for it."""
    args, dy = draw("mlp", rng, torch.bfloat16, device, sizes=(16, 24, 8))
    options = {"dropout_p": dropout_p} if dropout_p else {}

    def gradients():
        given = {name: t.detach().clone().requires_grad_(name in wanted) for name, t in args.items()}
        torch.manual_seed(1)
        fused("mlp", given, ACTIVATIONS[name], (), **options).backward(dy)
        return [given[name].grad for name in wanted]

    found, served = gradients(), list(taken)
    assert (
        served
        == (
            ["GELU_AUX_BIAS", "DGELU_BGRAD" if "up_bias" in wanted else "DGELU"]
            if name == "gelu_tanh" and not dropout_p
            else []
        )
        or GPU
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epilogues, "serves", lambda *what, **more: False)
        expected = gradients()
    for actual, wanted_grad in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted_grad, rtol=2e-2, atol=2e-2)


def test_operands_of_any_layout_by_cublaslt(device, rng, taken):
    """A strided bias, a saved z that a user's hooks give back in another layout."""
    args, dy = draw("mlp", rng, torch.bfloat16, device, rows=40, sizes=(16, 24, 8))
    args["up_bias"] = torch.stack([args["up_bias"]] * 2, -1)[:, 0]
    args = each(lambda t: t.requires_grad_(), args)
    expected = torch.autograd.grad(fused("mlp", args, ACTIVATIONS["gelu_tanh"], ()), leaves(args), dy)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.t().contiguous().t() if t.dim() == 2 else t):
        y = fused("mlp", args, ACTIVATIONS["gelu_tanh"], ())
    for actual, wanted in zip(torch.autograd.grad(y, leaves(args), dy), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=2e-2, atol=2e-2)


def test_sums_are_float32_by_cublaslt(device, rng, taken):
    """As the operator's fake implementation says."""
    z, dy, weight = (
        torch.as_tensor(rng.standard_normal(s)).to(device, torch.bfloat16) for s in ((32, 24), (32, 16), (16, 24))
    )
    found = tensors.linear_dact(dy, weight, z, "input", Applied(ACTIVATIONS["gelu_tanh"]), Needs(dbias=True))
    assert [None if t is None else t.dtype for t in found] == [torch.bfloat16, None, torch.float32, None]


@pytest.mark.parametrize("shape", [(), (1,), (29,)])
@pytest.mark.parametrize("name", [name for name, entry in ACTIVATIONS.items() if entry.learnable])
@pytest.mark.parametrize("op", OPS)
def test_learnable(op, name, shape, device, rng):
    args, dy = draw(op, rng, torch.float16, device)
    slope = 0.5 + torch.rand(shape).to(device, torch.float16)
    learned = len(ACTIVATIONS[name].learnable)
    values = (*[slope] * learned, *list(ACTIVATIONS[name].params.values())[learned:])
    compare(op, args, dy.abs(), ACTIVATIONS[name], values)


@pytest.mark.parametrize("wanted", [{"x"}, {"down_weight"}, {"x", "up_bias"}, {"up_weight"}])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_frozen(name, dropout_p, wanted, device, rng):
    """What is kept is then z, h or a bit of h; the gradients are those of all."""
    args, dy = draw("mlp", rng, torch.float32, device)
    options = {"dropout_p": dropout_p} if dropout_p else {}

    def gradients(wanted):
        leaves = {name: t.detach().clone().requires_grad_(name in wanted) for name, t in args.items()}
        torch.manual_seed(1)
        fused("mlp", leaves, ACTIVATIONS[name], (), **options).backward(dy)
        return {name: t.grad for name, t in leaves.items()}

    whole, part = gradients(set(args)), gradients(wanted)
    for name, grad in part.items():
        assert (grad is not None) == (name in wanted)
        if grad is not None:
            torch.testing.assert_close(grad, whole[name])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["gelu", "relu", "tanh", "swiglu", "maxout"])
def test_dropout_is_one_mask(name, dtype, recompute, device, rng, monkeypatch):
    op = "gated_mlp" if name in ("swiglu", "maxout") else "mlp"
    entry = epilogue.resolve(name)[0]
    entry = entry.gate or entry
    args, dy = draw(op, rng, dtype, device)
    torch.manual_seed(3)
    mask = tensors.dropout_mask(Dropout(0.3, draw_seed(torch.device(device))), 37, 29)
    assert 0.15 < (mask == 0).double().mean() < 0.45
    monkeypatch.setattr(F, "dropout", lambda h, p: h * mask.to(h.dtype))
    plain = functools.partial(unfused, op, entry=entry, dropout_p=0.3)

    def kernels(args, values):
        torch.manual_seed(3)
        return fused(op, args, entry, values, dropout_p=0.3, recompute=recompute)

    own, exact = (
        checks.train(lambda args, _: plain(args=args), a, dy, ()) for a in (args, each(lambda t: t.double(), args))
    )
    for result, torchs, truth in zip(checks.train(kernels, args, dy, ()), own, exact, strict=True):
        assert_accurate(result, torchs, truth)


@pytest.mark.parametrize("op", ["linear", "glu", "mlp", "gated_mlp"])
def test_second_derivatives(op, device, rng):
    args, _ = draw(op, rng, torch.float32, device, 6, (5, 8, 3))
    entry = ACTIVATIONS["tanh"]

    def penalty(function, args):
        args = each(lambda t: t.detach().clone().requires_grad_(), args)
        torch.manual_seed(2)
        first = torch.autograd.grad(function(args).square().sum(), leaves(args), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves(args))

    exact = penalty(lambda args: unfused(op, args, entry), each(lambda t: t.double(), args))
    for result, truth in zip(penalty(lambda args: fused(op, args, entry, ()), args), exact, strict=True):
        torch.testing.assert_close(result.double(), truth, rtol=5e-4, atol=5e-4 * truth.abs().max().item())


@pytest.mark.parametrize("op", OPS)
def test_second_backward_is_the_first_and_nothing_is_written_to(op, device, rng):
    args, dy = draw(op, rng, torch.float16, device)
    args = each(lambda t: t.requires_grad_(), args)
    before = each(lambda t: t.detach().clone(), (args, dy))
    y = fused(op, args, ACTIVATIONS["gelu"], ())
    first = torch.autograd.grad(y, leaves(args), dy, retain_graph=True)
    second = torch.autograd.grad(y, leaves(args), dy)
    for a, b in zip([*first, *leaves((args, dy))], [*second, *leaves(before)], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layout", ["expanded", "transposed", "strided"])
@pytest.mark.parametrize("op", OPS)
def test_gradients_of_any_layout(op, layout, device, rng):
    args, dy = draw(op, rng, torch.float32, device)
    args = each(lambda t: t.requires_grad_(), args)
    y = fused(op, args, ACTIVATIONS["silu"], ())
    given = {
        "expanded": lambda: dy[:1].expand_as(dy),
        "transposed": lambda: dy.t().contiguous().t(),
        "strided": lambda: torch.stack([dy, dy], -1)[..., 0],
    }[layout]()
    expected = torch.autograd.grad(y, leaves(args), given.contiguous(), retain_graph=True)
    for actual, wanted in zip(torch.autograd.grad(y, leaves(args), given), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("size", [(0, 5, 4, 3), (3, 0, 4, 2), (3, 5, 0, 2), (3, 5, 4, 0)])
@pytest.mark.parametrize("op", OPS)
def test_empty(op, size, device, rng):
    args, dy = draw(op, rng, torch.float32, device, size[0], size[1:])
    exact = checks.train(
        lambda args, _: unfused(op, args, ACTIVATIONS["silu"]), each(lambda t: t.double(), args), dy, ()
    )
    for actual, truth in zip(
        checks.train(lambda args, _: fused(op, args, ACTIVATIONS["silu"], ()), args, dy, ()), exact, strict=True
    ):
        torch.testing.assert_close(actual.double(), truth, rtol=1e-5, atol=1e-5)


def test_inference_keeps_nothing(device, rng):
    args, _ = draw("linear", rng, torch.float32, device)
    y = fused("linear", args, ACTIVATIONS["relu"], ())
    assert not y.requires_grad
    torch.testing.assert_close(y, F.relu(F.linear(*args.values())))


def test_modules_train(device, monkeypatch):
    """A network of every module, a few steps of training: the weights that the stock layers come to."""
    if device == "cpu":  # the front door sends CPU tensors on to where the interpreter's go
        monkeypatch.setattr(functional._triton, "INTERPRET", True)
        monkeypatch.setattr(backends, "serving", lambda x, weight: ("cupy", "a test's"))

    def trained(layers):
        torch.manual_seed(0)
        model = torch.nn.Sequential(layers.linear(16, 24), layers.mlp(24, 40), layers.gated_mlp(24, 32)).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        x, before = 10.0 * torch.randn(50, 16).to(device), [p.detach().clone() for p in model.parameters()]
        for _ in range(4):
            optimizer.zero_grad()
            (model(x) - 1.0).square().mean().backward()
            optimizer.step()
        return [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]

    with epilogue.backend("cupy") if device == "cuda" else contextlib.nullcontext():
        moved = trained(FUSED)
    for actual, expected in zip(moved, trained(STOCK), strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_launches_go_to_torchs_stream():
    """CuPy's own stream of the pointer that torch gives; real CuPy, which needs no driver for it."""
    cupy = pytest.importorskip("cupy")
    assert cupy.cuda.Stream.from_external(tensors._Stream(1234)).ptr == 1234


def test_device_and_stream_are_the_tensors(cupy, monkeypatch):
    if GPU:
        pytest.skip("the other tests run on the GPU itself")
    entered = []

    @contextlib.contextmanager
    def enter(*what):
        entered.append(what)
        yield

    stream = types.SimpleNamespace(from_external=lambda stream: enter("stream", stream.__cuda_stream__()))
    monkeypatch.setattr(cupy, "cuda", types.SimpleNamespace(Device=lambda index: enter("CuPy", index), Stream=stream))
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: enter("torch", x.device.index))
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=70 + device.index)
    )
    with tensors._on_device(types.SimpleNamespace(device=torch.device("cuda", 3))):
        assert entered == [("torch", 3), ("CuPy", 3), ("stream", (0, 73))]
