"""Every operation on CuPy arrays, forward and backward, as accurate as torch's own unfused layers of the same dtype."""

import numpy as np
import pytest
import torch

import checks
import epilogue
import epilogue.cupy
from checks import OPS, arguments, assert_accurate, each, keywords, leaves, unfused
from epilogue import ACTIVATIONS
from epilogue.cupy import epilogues
from epilogue.vocabulary import cos, erf, exp, rsqrt, sin, softplus

GPU = epilogue.cupy.missing() is None
ml_dtypes = pytest.importorskip("ml_dtypes")
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}


def tensor(array):
    """A NumPy or CuPy array as a tensor on the CPU, its bits unchanged."""
    array = np.ascontiguousarray(array.get() if hasattr(array, "get") else array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def run(op, args, dy, entry, values):
    """[y, gradients of all arrays in args and values] of the operation on arrays."""
    name, params = op.split()[0], keywords(entry, values)
    y = getattr(epilogue, name)(**args, activation=entry, **params)
    grads = getattr(epilogue, f"{name}_backward")(dy, **args, activation=entry, **params)
    return [y, *leaves(tuple(grads[:-1])), *grads.params.values()]


def torchs(op, args, dy, entry, values):
    """The same of the unfused layers, by autograd."""
    args = each(lambda t: t.requires_grad_(), args)
    values = tuple(v if isinstance(v, float) else v.requires_grad_() for v in values)
    y = unfused(op, args, entry, values)
    return [y, *torch.autograd.grad(y, [*leaves(args), *(v for v in values if not isinstance(v, float))], dy)]


def compare(cupy, op, args, dy, entry, values):
    """args, dy, values: NumPy arrays (values: or numbers). float64 against the reference, torch's own hardsigmoid rounds its sixth."""
    given = (
        each(cupy.asarray, args),
        cupy.asarray(dy),
        tuple(v if isinstance(v, float) else cupy.asarray(v) for v in values),
    )
    actual = run(op, given[0], given[1], entry, given[2])

    if dy.dtype == np.float64:
        for result, truth in zip(actual, run(op, args, dy, entry, values), strict=True):
            np.testing.assert_allclose(cupy.asnumpy(result), truth, rtol=1e-11, atol=1e-12)
        return

    def of(convert):
        return (
            each(convert, args),
            convert(dy),
            entry,
            tuple(v if isinstance(v, float) else convert(v) for v in values),
        )

    device = "cuda" if GPU else "cpu"  # where torch's own products round as those that it is compared with
    own = torchs(op, *of(lambda array: tensor(array).to(device)))
    exact = torchs(op, *of(lambda array: tensor(array).double()))
    for result, torch_result, truth in zip(actual, own, exact, strict=True):
        assert result.dtype == dy.dtype
        assert_accurate(tensor(result), torch_result, truth)


def draw(op, rng, dtype, sizes=(19, 29, 13), rows=37, **options):
    args = each(lambda array: array.astype(DTYPES[dtype]), arguments(op, rng, (rows,), sizes, **options))
    width = sizes[2] if "mlp" in op else sizes[1]
    return args, rng.standard_normal((rows, width)).astype(DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("op", "entry", "values"),
    [pytest.param(op, *case.values, id=f"{op}-{case.id}") for op in ("linear", "glu packed")
     for case in checks.cases(1 if op == "linear" else None, every=op == "linear")],
)  # fmt: skip
def test_every_activation(op, entry, values, dtype, cupy, rng):
    compare(cupy, op, *draw(op, rng, dtype), entry, values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("op", OPS)
def test_every_operation(op, bias, dtype, cupy, rng):
    compare(cupy, op, *draw(op, rng, dtype, bias=bias), ACTIVATIONS["silu"], ())


@pytest.mark.parametrize("sizes", [(1, 1, 1), (8, 8, 8), (5, 7, 9), (16, 264, 24), (3, 33, 2)])
@pytest.mark.parametrize("rows", [1, 2, 65])
@pytest.mark.parametrize("op", OPS)
def test_sizes(op, rows, sizes, cupy, rng):
    compare(cupy, op, *draw(op, rng, "float16", sizes, rows), ACTIVATIONS["silu"], ())


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("shape", [(), (1,), (29,)])
@pytest.mark.parametrize("name", [name for name, entry in ACTIVATIONS.items() if entry.learnable])
@pytest.mark.parametrize("op", OPS)
def test_learnable(op, name, shape, dtype, cupy, rng):
    slope = (0.5 + rng.random(shape)).astype(DTYPES[dtype]) if shape else np.array(0.7, DTYPES[dtype])
    args, dy = draw(op, rng, dtype)
    learned = len(ACTIVATIONS[name].learnable)
    values = (*[slope] * learned, *list(ACTIVATIONS[name].params.values())[learned:])
    compare(cupy, op, args, abs(dy), ACTIVATIONS[name], values)  # a sum whose terms cancel would measure luck


@pytest.mark.parametrize("sizes", [(16, 24, 8), (19, 29, 13), (24, 128, 32)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("name", "stem"), epilogues.STEMS.items())
@pytest.mark.parametrize("op", ["linear", "mlp"])
def test_by_cublaslt(op, name, stem, bias, dtype, sizes, cupy, rng, taken):
    """The epilogues that cuBLASLt has are its own where nvmath-python is: in every product that has something to fuse."""
    compare(cupy, op, *draw(op, rng, dtype, sizes, bias=bias), ACTIVATIONS[name], ())
    if not GPU:
        end = "_BIAS" if bias else ""
        forward = [f"{stem}{end}".strip("_"), *(["BIAS"] if bias else [])[: op == "mlp"]]
        kept = stem and (stem, dtype) != ("GELU", "float16")  # z might overflow there
        backward = [f"{stem}_AUX{end}", f"D{stem}_BGRAD" if bias else f"D{stem}"] if kept else []
        backward += ["BGRADB"] if bias else []
        assert taken == [name for name in forward + backward * (op == "mlp") if name]


@pytest.mark.parametrize("op", ["glu", "glu packed", "gated_mlp", "gated_mlp packed"])
def test_gated_layers_are_not_cublaslts(op, cupy, rng, taken):
    compare(cupy, op, *draw(op, rng, "bfloat16", (16, 24, 8)), ACTIVATIONS["relu"], ())
    assert taken == (["BIAS", "BGRADB"] if "mlp" in op else []) or GPU


@pytest.mark.parametrize("lead", [(), (1,), (0,), (2, 3), (2, 0, 3)])
@pytest.mark.parametrize("op", OPS)
def test_leading_axes(op, lead, cupy, rng):
    args = each(cupy.asarray, arguments(op, rng, lead))
    name = op.split()[0]
    y = getattr(epilogue, name)(**args)
    assert y.shape == (*lead, 3 if "mlp" in op else 6)
    grads = getattr(epilogue, f"{name}_backward")(cupy.asarray(np.ones(y.shape)), **args)
    assert grads.x.shape == args["x"].shape
    expected = getattr(epilogue, f"{name}_backward")(np.ones(y.shape), **each(lambda a: cupy.asnumpy(a), args))
    for actual, wanted in zip(leaves(tuple(grads[:-1])), leaves(tuple(expected[:-1])), strict=True):
        np.testing.assert_allclose(cupy.asnumpy(actual), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", [(0, 4, 3), (5, 0, 2), (5, 4, 0)])
@pytest.mark.parametrize("op", OPS)
def test_empty(op, sizes, cupy, rng):
    args = each(cupy.asarray, arguments(op, rng, (3,), sizes))
    name = op.split()[0]
    y = getattr(epilogue, name)(**args)
    grads = getattr(epilogue, f"{name}_backward")(cupy.asarray(np.ones(y.shape)), **args)
    numpys = each(lambda a: cupy.asnumpy(a), args)
    np.testing.assert_allclose(cupy.asnumpy(y), getattr(epilogue, name)(**numpys), rtol=1e-10)
    expected = getattr(epilogue, f"{name}_backward")(np.ones(y.shape), **numpys)
    for actual, wanted in zip(leaves(tuple(grads[:-1])), leaves(tuple(expected[:-1])), strict=True):
        np.testing.assert_allclose(cupy.asnumpy(actual), wanted, rtol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float16", 4e-3)])
@pytest.mark.parametrize("op", OPS)
def test_layouts_and_nothing_is_written_to(op, dtype, tolerance, cupy, rng):
    """Operands with gaps, transposed, with rows far apart, a gradient of stride 0; what was given is as it was."""
    args = each(lambda array: cupy.asarray(array.astype(dtype)), arguments(op, rng))

    def apart(array, step=2):
        """In memory that is NaN between the elements (step 2) or the rows (1)."""
        big = cupy.asarray(np.full([2 * size + 1 for size in array.shape], np.nan, dtype))
        view = big[tuple(slice(1, None, 2) for _ in array.shape[:-1])][..., 1 : 1 + step * array.shape[-1] : step]
        view[...] = array
        return view

    name = op.split()[0]
    y = getattr(epilogue, name)(**args)
    dy = cupy.broadcast_to(cupy.asarray(rng.standard_normal(y.shape[1]).astype(dtype)), y.shape)
    expected = [y, *leaves(tuple(getattr(epilogue, f"{name}_backward")(dy, **args)[:-1]))]
    for layout in (
        apart,
        lambda array: apart(array, 1),
        lambda array: array.T.copy().T,
        lambda array: apart(array.T, 1).T,
    ):
        given = each(layout, args)
        before = each(lambda a: a.copy(), given)
        actual = [getattr(epilogue, name)(**given)]
        actual += leaves(tuple(getattr(epilogue, f"{name}_backward")(layout(dy), **given)[:-1]))
        for found, wanted in zip(actual, expected, strict=True):
            scale = max(1.0, float(abs(cupy.asnumpy(wanted)).max()))
            np.testing.assert_allclose(
                cupy.asnumpy(found), cupy.asnumpy(wanted), rtol=tolerance, atol=tolerance * scale
            )
        for now, then in zip(leaves(given), leaves(before), strict=True):
            np.testing.assert_array_equal(cupy.asnumpy(now), cupy.asnumpy(then))


def test_biases_of_a_pair_may_be_missing(cupy, rng):
    args = each(cupy.asarray, arguments("gated_mlp", rng)) | {"up_bias": None}
    grads = epilogue.gated_mlp_backward(cupy.asarray(np.ones((7, 3))), **args)
    expected = epilogue.gated_mlp_backward(np.ones((7, 3)), **each(lambda a: cupy.asnumpy(a), args))
    assert grads.up_bias is None
    np.testing.assert_allclose(cupy.asnumpy(grads.gate_bias), expected.gate_bias, rtol=1e-10)


def test_a_users_own_activation(cupy, rng, own_activations):
    @epilogue.activation(oracle=lambda F, x, scale, shift: scale * x * torch.exp(-x * x) + shift)
    def bump(x, scale=1.0, shift=0.5):
        return scale * x * exp(-x * x) + shift

    @epilogue.derivative_of(bump)
    def bump_grad(x, scale, shift):
        return scale * exp(-x * x) * (1.0 - 2.0 * x * x)

    @epilogue.derivative_of(bump, "scale")
    def bump_grad_scale(x, scale, shift):
        return x * exp(-x * x)

    @epilogue.derivative_of(bump, "shift")
    def bump_grad_shift(x, scale, shift):
        return 1.0

    scale = rng.random(29).astype(np.float32)
    compare(cupy, "linear", *draw("linear", rng, "float32"), bump, (scale, 0.25))
    compare(cupy, "glu", *draw("glu", rng, "float32"), bump, (1.5, scale))
    args, dy = draw("gated_mlp", rng, "float32")
    compare(cupy, "gated_mlp", args, abs(dy), bump, (scale, rng.random(1).astype(np.float32)))


def test_a_formula_alone_with_two_arrays(cupy, rng, own_activations):
    """Of the primitives that no built-in formula has."""

    @epilogue.activation
    def wave(x, scale=1.0, shift=0.5):
        return erf(x) * cos(scale * x) + softplus(x) * sin(x + shift) * rsqrt(1.0 + x * x)

    scale, shift = rng.random(29), rng.random(29)
    for op in OPS:
        compare(cupy, op, *draw(op, rng, "float64"), wave, (scale, shift))


@pytest.mark.parametrize("op", OPS)
def test_what_does_not_belong_together(op, cupy, rng):
    args, name = each(cupy.asarray, arguments(op, rng)), op.split()[0]
    call, back = getattr(epilogue, name), getattr(epilogue, f"{name}_backward")
    dy = cupy.asarray(np.ones(call(**args).shape))
    with pytest.raises(TypeError, match=r"must be a cupy\.ndarray as x is, got ndarray"):
        call(**args | {list(args)[1]: each(lambda a: cupy.asnumpy(a), list(args.values())[1])})
    with pytest.raises(TypeError, match=r"must be a numpy\.ndarray as x is, got ndarray"):
        call(**args | {"x": cupy.asnumpy(args["x"])})
    with pytest.raises(ValueError, match=r"dy must be a floating cupy\.ndarray of the result's shape"):
        back(cupy.asnumpy(dy), **args)
    with pytest.raises(TypeError, match="must have the dtype of x"):
        call(**args | {"x": args["x"].astype(np.float32)})


def test_arrays_on_two_devices(cupy, rng):
    if not hasattr(cupy, "vectors"):
        pytest.skip("the stand-in alone has two devices for certain")
    args = each(cupy.asarray, arguments("linear", rng))
    other = args["weight"].copy()
    other.device = cupy.cuda.Device(1)
    with pytest.raises(
        TypeError, match="linear: weight must be on the device of x, <CUDA Device 0>; got <CUDA Device 1>"
    ):
        epilogue.linear(**args | {"weight": other})
    dy = cupy.asarray(np.ones((7, 6)))
    dy.device = cupy.cuda.Device(1)
    with pytest.raises(TypeError, match="dy must be on the device of x"):
        epilogue.linear_backward(dy, **args)
    slope = cupy.asarray(np.ones(6))
    slope.device = cupy.cuda.Device(1)
    with pytest.raises(TypeError, match="prelu's slope must be on the device of x"):
        epilogue.linear(**args, activation="prelu", slope=slope)


def test_dropout_is_for_tensors(cupy, rng):
    args = each(cupy.asarray, arguments("mlp", rng))
    with pytest.raises(ValueError, match="dropout in training needs torch tensors"):
        epilogue.mlp(**args, dropout_p=0.5, training=True)
    np.testing.assert_array_equal(cupy.asnumpy(epilogue.mlp(**args, dropout_p=0.5)), cupy.asnumpy(epilogue.mlp(**args)))
