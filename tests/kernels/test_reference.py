"""The NumPy reference against torch and its autograd in float64, for every operation."""

import copy

import numpy as np
import pytest
import torch

import epilogue
from checks import OPS, arguments, each, keywords, leaves, op_cases, unfused
from epilogue import ACTIVATIONS, reference
from epilogue.reference import rounded

ml_dtypes = pytest.importorskip("ml_dtypes")

DTYPES = {
    np.float16: torch.float16,
    ml_dtypes.bfloat16: torch.bfloat16,
    np.float32: torch.float32,
    np.float64: torch.float64,
}


def forward(op, args, entry, values):
    return getattr(epilogue, op.split()[0])(**args, activation=entry, **keywords(entry, values))


def backward(op, dy, args, entry, values):
    return getattr(epilogue, f"{op.split()[0]}_backward")(dy, **args, activation=entry, **keywords(entry, values))


def torchs(op, args, entry, values, dy):
    """(result, gradients of the arguments, gradients of learnable arrays) from autograd in float64."""
    args = each(lambda array: torch.tensor(array, requires_grad=True), args)
    values = tuple(torch.tensor(v, requires_grad=True) if isinstance(v, np.ndarray) else v for v in values)
    y = unfused(op, args, entry, values)
    y.backward(torch.tensor(dy))
    params = {name: v.grad.numpy() for name, v in zip(entry.params, values, strict=True) if isinstance(v, torch.Tensor)}
    return y.detach().numpy(), each(lambda tensor: tensor.grad.numpy(), args), params


def check(op, args, entry, values, rng):
    y = forward(op, args, entry, values)
    dy = rng.standard_normal(y.shape)
    expected, expected_grads, expected_params = torchs(op, args, entry, values, dy)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-13)
    assert y.shape == expected.shape
    *grads, params = backward(op, dy, args, entry, values)
    coarse = 2e-7 * (entry.name == "hardsigmoid")  # torch's derivative of it has 1/6 as a float32 number
    for name, actual, gradient in zip(args, grads, expected_grads.values(), strict=True):
        assert (actual is None) == (gradient is None), name
        for part, of in zip(leaves(actual), leaves(gradient), strict=True):
            assert part.shape == of.shape
            np.testing.assert_allclose(part, of, rtol=1e-11, atol=coarse or 1e-12, err_msg=name)
    assert params.keys() == expected_params.keys()
    for name, gradient in params.items():
        assert gradient.shape == expected_params[name].shape
        np.testing.assert_allclose(gradient, expected_params[name], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("op", "entry", "values"), op_cases())
def test_every_activation(op, entry, values, rng):
    check(op, arguments(op, rng), entry, values, rng)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (1,), (0,), (4,), (2, 3), (2, 0, 3), (2, 1, 3)])
@pytest.mark.parametrize("op", OPS)
def test_leading_axes(op, lead, bias, rng):
    check(op, arguments(op, rng, lead=lead, bias=bias), ACTIVATIONS["silu"], (), rng)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (0, 4, 3), (5, 0, 3), (5, 4, 0), (17, 13, 11)])
@pytest.mark.parametrize("op", OPS)
def test_sizes(op, sizes, rng):
    check(op, arguments(op, rng, sizes=sizes), ACTIVATIONS["gelu"], (), rng)


def test_one_bias_of_a_pair_may_be_missing(rng):
    args = arguments("gated_mlp", rng)
    check("gated_mlp", {**args, "gate_bias": None}, ACTIVATIONS["silu"], (), rng)
    check("gated_mlp", {**args, "up_bias": None, "down_bias": None}, ACTIVATIONS["silu"], (), rng)
    args = arguments("glu", rng)
    check("glu", {**args, "bias": (None, args["bias"][1])}, ACTIVATIONS["silu"], (), rng)


@pytest.mark.parametrize("shape", [(), (1,), (6,)])
@pytest.mark.parametrize("name", ["prelu", "swish"])
@pytest.mark.parametrize("op", OPS)
def test_learnable_parameters(op, name, shape, rng):
    check(op, arguments(op, rng, lead=(2, 3)), ACTIVATIONS[name], (np.asarray(rng.standard_normal(shape)),), rng)


def test_numpys_scalars_are_numbers_and_learn_nothing(rng):
    args, slope = arguments("linear", rng), np.float64(0.3)
    np.testing.assert_array_equal(
        epilogue.linear(**args, activation="prelu", slope=slope),
        epilogue.linear(**args, activation="prelu", slope=0.3),
    )
    assert epilogue.linear_backward(np.ones((7, 6)), **args, activation="prelu", slope=slope).params == {}


@pytest.mark.parametrize("spelling", ["swiglu", "geglu", "reglu", "glu", "geglu_tanh", "silu"])
@pytest.mark.parametrize("op", ["glu", "gated_mlp"])
def test_gated_variants_by_name(op, spelling, rng):
    args = arguments(op, rng)
    entry = epilogue.resolve(spelling)[0]
    y = getattr(epilogue, op)(**args, activation=spelling)
    np.testing.assert_array_equal(y, forward(op, args, entry.gate or entry, ()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_computes_in_float64_and_rounds_once(op, dtype, rng):
    args = each(lambda array: array.astype(dtype), arguments(op, rng))
    exact = each(lambda array: array.astype(np.float64), args)
    entry = ACTIVATIONS["gelu"]
    y = forward(op, args, entry, ())
    np.testing.assert_array_equal(y, rounded(forward(op, exact, entry, ()), dtype))
    assert y.dtype == dtype
    dy = rng.standard_normal(y.shape).astype(dtype)
    grads = backward(op, dy, args, entry, ())
    expected = backward(op, dy.astype(np.float64), exact, entry, ())
    for actual, of in zip(leaves(tuple(grads[:-1])), leaves(tuple(expected[:-1])), strict=True):
        assert actual.dtype == dtype
        np.testing.assert_array_equal(actual, rounded(of, dtype))


def nearest(array: np.ndarray, dtype: type) -> np.ndarray:
    """The numbers of that dtype that are nearest to those of a float64 array; of two the even one. As float64, by exact arithmetic."""
    limits = ml_dtypes.finfo(dtype)
    _, exponent = np.frexp(array)
    unit = 2.0 ** (np.maximum(exponent, limits.minexp + 1) - limits.nmant - 1.0)
    with np.errstate(invalid="ignore"):
        found = np.rint(array / unit) * unit
        return np.where(abs(found) > float(limits.max), np.copysign(np.inf, found), found)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_tie_is_rounded_once(dtype):
    """Halfway between every two neighbours, a hair on either side, what overflows and what is no number."""
    with np.errstate(invalid="ignore"):
        positive = np.arange(2**15, dtype=np.uint16).view(dtype).astype(np.float64)
    numbers = positive[np.isfinite(positive)]
    ties = (np.append(numbers[1:], 2 * numbers[-1] - numbers[-2]) + numbers) / 2
    hair = np.concatenate(
        [np.nextafter(ties, side) for side in (0.0, np.inf)] + [ties * (1 - 2.0**-40), ties * (1 + 2.0**-40)]
    )
    x = np.concatenate([positive, ties, hair, [5e-324, 1e300, np.finfo(np.float32).max]])
    x = np.concatenate([x, -x])
    with np.errstate(all="ignore"):
        found, twice = (cast.astype(np.float64) for cast in (rounded(x, dtype), x.astype(dtype)))
    expected = nearest(x, dtype)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found[~np.isnan(x)]), np.signbit(x[~np.isnan(x)]))
    if dtype is ml_dtypes.bfloat16:
        assert (twice != expected).sum() > 2**16  # ml_dtypes' own, by way of float32


@pytest.mark.parametrize("op", OPS)
def test_a_sum_beside_a_tie_of_bfloat16(op):
    """1 + 2⁻⁸ is a tie, 2⁻³⁰ the hair above it that float32 does not hold. Value and gradients, of every operand that meets such a sum."""
    x = np.array([[1.0, 2.0**-8, 2.0**-30]]).astype(ml_dtypes.bfloat16)
    ones, above = np.ones((1, 3), x.dtype), 1.0078125
    if op == "linear":
        assert epilogue.linear(x, ones, activation="identity") == above
        grads = epilogue.linear_backward(
            x.T, np.ones((3, 2), x.dtype), np.ones((1, 2), x.dtype), np.ones(1, x.dtype), "identity"
        )
        assert grads.bias == above
        assert (grads.weight == above).all()
        grads = epilogue.linear_backward(
            x, np.ones((1, 2), x.dtype), np.ones((3, 2), x.dtype), activation="prelu", slope=np.ones(1, x.dtype)
        )
        assert (grads.x == above).all()
        grads = epilogue.linear_backward(
            x, -np.ones((1, 1), x.dtype), np.ones((3, 1), x.dtype), activation="prelu", slope=np.ones(1, x.dtype)
        )
        assert grads.params["slope"] == -above
    elif op.startswith("glu"):
        weight = np.concatenate([ones, ones]) if "packed" in op else (ones, ones)
        assert epilogue.glu(x, weight, activation="step") == above
    elif op == "mlp":
        assert epilogue.mlp(x, ones, np.ones((1, 1), x.dtype), activation="identity") == above
    else:
        gate, up = (np.concatenate([ones, ones]), None) if "packed" in op else (ones, ones)
        assert epilogue.gated_mlp(x, gate, up, np.ones((1, 1), x.dtype), activation="step") == above


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("op", OPS)
def test_computes_in_the_inputs_own_precision_if_asked(op, dtype, rng):
    args = each(lambda array: array.astype(dtype), arguments(op, rng, sizes=(64, 48, 32)))
    entry, name = ACTIVATIONS["silu"], op.split()[0]
    x, *rest = args.values()
    if op == "gated_mlp":
        rest = list(args.values())[1:]
    y = getattr(reference, name)(x, *rest, entry, compute_dtype=None)
    exact = getattr(reference, name)(x, *rest, entry)
    assert y.dtype == exact.dtype == dtype
    assert (y != exact).any() or dtype is ml_dtypes.bfloat16  # which NumPy promotes to float32 before it computes
    eps = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(y.astype(np.float64), exact.astype(np.float64), rtol=0, atol=20 * eps)
    dy = rng.standard_normal(y.shape).astype(dtype)
    grads = getattr(reference, f"{name}_backward")(dy, x, *rest, entry, compute_dtype=None)
    precise = getattr(reference, f"{name}_backward")(dy, x, *rest, entry)
    for actual, of in zip(leaves(tuple(grads[:-1])), leaves(tuple(precise[:-1])), strict=True):
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual.astype(np.float64), of.astype(np.float64), rtol=0, atol=60 * eps)


def test_a_learnable_array_gets_its_gradient_in_its_own_dtype(rng):
    args = each(lambda array: array.astype(np.float16), arguments("linear", rng))
    slope = rng.standard_normal(6).astype(np.float32)
    grads = epilogue.linear_backward(np.ones((7, 6), np.float16), **args, activation="prelu", slope=slope)
    assert (grads.x.dtype, grads.params["slope"].dtype) == (np.float16, np.float32)


@pytest.mark.parametrize("op", OPS)
def test_inputs_are_left_as_they_were(op, rng):
    args = {**arguments(op, rng), "slope": rng.standard_normal(6)}
    before = copy.deepcopy(args)
    y = getattr(epilogue, op.split()[0])(**args, activation="prelu")
    dy = rng.standard_normal(y.shape)
    dy_before = dy.copy()
    getattr(epilogue, f"{op.split()[0]}_backward")(dy, **args, activation="prelu")
    for actual, of in zip(leaves((args, dy)), leaves((before, dy_before)), strict=True):
        np.testing.assert_array_equal(actual, of)


def test_the_result_shares_no_memory_with_the_input():
    x, weight = np.eye(3), np.eye(3)
    y = epilogue.linear(x, weight, activation="identity")
    assert not np.shares_memory(y, x)
    assert not np.shares_memory(y, weight)


def test_infinities_make_no_warnings():
    x = np.array([[np.inf, 1.0], [-np.inf, 1.0], [np.nan, 1.0], [1e300, 1e300]])
    y = epilogue.linear(x, np.ones((2, 2)) * 1e10, activation="silu")
    assert np.isinf(y[0]).all()
    assert np.isnan(y[1:3]).all()
    epilogue.linear_backward(np.ones_like(y), x, np.ones((2, 2)), activation="silu")


@pytest.mark.parametrize("op", OPS)
def test_gradients_come_in_named_fields(op, rng):
    args = arguments(op, rng)
    grads = backward(op, forward(op, args, ACTIVATIONS["tanh"], ()), args, ACTIVATIONS["tanh"], ())
    assert grads._fields == (*args, "params")
