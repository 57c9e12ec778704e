"""What of cuBLASLt is taken, and what is refused: faults that its stand-in is given, sizes that it does not serve, other memory layouts."""

import types

import numpy as np
import pytest
import torch

import checks
import epilogue
import epilogue.cupy
from epilogue import ACTIVATIONS
from epilogue.applied import Applied, Needs
from epilogue.cupy import cublaslt, epilogues, launch, tensors

GPU = epilogue.cupy.missing() is None
without_gpu = pytest.mark.skipif(GPU, reason="the stand-in's faults")
M, N, K = 24, 40, 16


def draw(cupy, rng, *shapes):
    return [cupy.asarray(rng.standard_normal(shape).astype(np.float16)) for shape in shapes]


@pytest.mark.parametrize("dtype", cublaslt.DTYPES)
def test_a_trial_passes_what_computes_as_the_reference(dtype, nvmath):
    for name in epilogues.STEMS:
        for backward in (False, True):
            assert epilogues.refusal(name, dtype, 0, backward) is None or GPU


@without_gpu
@pytest.mark.parametrize("dtype", cublaslt.DTYPES)
@pytest.mark.parametrize(
    ("fault", "name", "backward", "epilogue_name"),
    [
        ("relu drops NaN", "relu", False, "RELU"),
        ("no NaN in relu's bits", "relu", True, "DRELU"),
        ("erf", "gelu_tanh", False, "GELU"),
        ("bias twice", "identity", False, "BIAS"),
        ("bias twice", "relu", False, "RELU_BIAS"),
        ("another z kept", "gelu_tanh", False, "GELU_AUX"),
        ("another z where it is kept", "gelu_tanh", False, "GELU_AUX"),
        ("wrong sums", "relu", True, "DRELU_BGRAD"),
        ("wrong sums", "gelu_tanh", True, "DGELU_BGRAD"),
        ("wrong sums", "identity", True, "BGRADB"),
    ],
)
def test_a_trial_finds(fault, name, backward, epilogue_name, dtype, nvmath):
    nvmath.quirks.add(fault)
    found = epilogues.refusal(name, dtype, 0, backward)
    assert found == f"cuBLASLt's {epilogue_name} computes something else"
    if backward:
        assert epilogues.refusal(name, dtype, 0, False) is None


@without_gpu
def test_a_refused_epilogue_is_computed_by_the_kernels(cupy, nvmath, rng):
    nvmath.quirks.add("relu drops NaN")
    x, weight, bias = draw(cupy, rng, (M, K), (N, K), N)
    x[2, 3] = np.nan
    nvmath.calls.clear()
    y = cupy.asnumpy(epilogue.linear(x, weight, bias, activation="relu"))
    assert np.isnan(y[2]).all()
    assert (np.isnan(y).sum(1) > 0).sum() == 1
    assert set(nvmath.calls) == {"RELU"}  # the trial's


@without_gpu
@pytest.mark.parametrize(
    ("fault", "calls"),
    [("no NaN in relu's bits", ["RELU_BIAS", "BIAS", "BGRADB"]), ("wrong sums", ["RELU_BIAS", "BIAS"])],
)
def test_backward_is_taken_by_its_own_trial(fault, calls, cupy, nvmath, rng):
    nvmath.quirks.add(fault)
    args = checks.each(lambda a: cupy.asarray(a.astype(np.float16)), checks.arguments("mlp", rng, (M,), (K, N, 8)))
    for served in (False, True):
        del nvmath.calls[:]  # the first time, the trials'
        y = epilogue.mlp(**args, activation="relu")
        epilogue.mlp_backward(y, **args, activation="relu")
        assert served is False or nvmath.calls == calls


@without_gpu
def test_a_derivative_of_tensors_is_taken_by_its_own_trial(nvmath, rng):
    nvmath.quirks.add("wrong sums")
    dy, weight, z = (torch.as_tensor(rng.standard_normal(shape)).half() for shape in ((M, K), (K, N), (M, N)))
    call = (Applied(ACTIVATIONS["gelu_tanh"]), Needs(dbias=True))
    _, _, dbias, _ = tensors.linear_dact(dy, weight, z, "input", *call)
    dz = (dy.double() @ weight.double()) * torch.as_tensor(
        ACTIVATIONS["gelu_tanh"].derivatives["x"](z.double().numpy())
    )
    torch.testing.assert_close(dbias.double(), dz.sum(0), rtol=1e-2, atol=1e-1)


@without_gpu
def test_without_the_library(nvmath):
    nvmath.quirks.add("no library")
    assert "cuBLASLtError: CUBLAS_STATUS_NOT_INITIALIZED" in epilogues.refusal("relu", "float16", 0, False)


@without_gpu
def test_without_the_package(cupy):
    assert epilogues.refusal("relu", "bfloat16", 0, False) == "nvmath-python is not installed"
    x = cupy.asarray(np.zeros((M, K), np.float16))
    assert not epilogues.serves(launch.cupy_library(), x, ACTIVATIONS["relu"], False)


@without_gpu
def test_a_trial_that_cannot_be_held_now_is_held_later(cupy, nvmath, monkeypatch):
    """While a CUDA graph is captured, and where there is no memory for it."""
    stream = types.SimpleNamespace(ptr=0, is_capturing=lambda: True)
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: stream)
    assert "capture" in epilogues.refusal("relu", "float16", 0, False)
    assert not nvmath.calls
    stream.is_capturing = lambda: False

    def full(*what):
        raise MemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(epilogues, "_multiply", full)
        assert epilogues.refusal("relu", "float16", 0, False) == "out of memory"
    assert epilogues.refusal("relu", "float16", 0, False) is None
    stream.is_capturing = lambda: True
    assert epilogues.refusal("relu", "float16", 0, False) is None


@without_gpu
@pytest.mark.parametrize("fault", ["none found", "a bad state", "fails"])
def test_what_cublaslt_cannot_compute_the_kernels_do(fault, cupy, nvmath, taken, rng):
    nvmath.quirks.add(fault)
    x, weight, bias = draw(cupy, rng, (M, K), (N, K), N)
    y = epilogue.linear(x, weight, bias, activation="gelu_tanh")
    expected = epilogue.linear(*(cupy.asnumpy(a).astype(np.float64) for a in (x, weight, bias)), activation="gelu_tanh")
    np.testing.assert_allclose(cupy.asnumpy(y), expected, rtol=2e-3, atol=2e-3)
    assert not taken


@pytest.mark.parametrize("sizes", [(1, N, K), (M, 1, K), (M, N, 1)])
def test_sizes_of_1_are_the_kernels(sizes, cupy, taken, rng):
    m, n, k = sizes
    epilogue.linear(*draw(cupy, rng, (m, k), (n, k), n), activation="relu")
    assert not taken


def test_a_bias_off_16_bytes_is_the_kernels(cupy, taken, rng):
    x, weight, bias = draw(cupy, rng, (M, K), (N, K), N + 1)
    y = epilogue.linear(x, weight, bias[1:], activation="relu")
    expected = epilogue.linear(*(cupy.asnumpy(a).astype(np.float64) for a in (x, weight, bias[1:])), activation="relu")
    np.testing.assert_allclose(cupy.asnumpy(y), expected, rtol=2e-3, atol=2e-3)
    assert not taken


@without_gpu
def test_sizes_without_an_algorithm_are_the_kernels(cupy, nvmath, taken, rng):
    nvmath.quirks.add("nothing odd")
    x, odd, even = draw(cupy, rng, (M, K), (N + 1, K), (N, K))
    for weight in (odd, even):
        y = epilogue.linear(x, weight, activation="gelu_tanh")
        expected = epilogue.linear(*(cupy.asnumpy(a).astype(np.float64) for a in (x, weight)), activation="gelu_tanh")
        np.testing.assert_allclose(cupy.asnumpy(y), expected, rtol=2e-3, atol=2e-3)
    assert taken == ["GELU"]


@pytest.mark.parametrize("op", ["linear", "mlp"])
@pytest.mark.parametrize("name", epilogues.STEMS)
def test_layouts(name, op, cupy, taken, rng):
    """Rows far apart, transposed and expanded operands, elements apart: the same results, and what was given is as it was."""
    args = checks.each(lambda a: cupy.asarray(a.astype(np.float16)), checks.arguments(op, rng, (M,), (K, N, 8)))
    dy = cupy.asarray(rng.standard_normal((M, 8 if op == "mlp" else N)).astype(np.float16))

    def results(convert):
        given, gradient = checks.each(convert, args), convert(dy)
        before = checks.each(lambda a: a.copy(), given)
        y = getattr(epilogue, op)(**given, activation=name)
        grads = getattr(epilogue, f"{op}_backward")(gradient, **given, activation=name)
        for now, then in zip(checks.leaves(given), checks.leaves(before), strict=True):
            np.testing.assert_array_equal(cupy.asnumpy(now), cupy.asnumpy(then))
        return [cupy.asnumpy(a).astype(np.float64) for a in (y, *checks.leaves(tuple(grads[:-1])))]

    def padded(array):
        wide = cupy.asarray(np.full([size + 8 for size in array.shape], np.nan, np.float16))
        view = wide[tuple(slice(0, size) for size in array.shape)]
        view[...] = array
        return view

    def apart(array):
        wide = cupy.asarray(np.full([2 * size for size in array.shape], np.nan, np.float16))
        view = wide[tuple(slice(0, None, 2) for _ in array.shape)]
        view[...] = array
        return view

    expected = results(lambda array: array)

    def vectors_apart(array):
        return apart(array) if array.ndim == 1 else array

    for convert in (padded, apart, vectors_apart, lambda array: array.T.copy().T, lambda array: padded(array.T).T):
        for found, wanted in zip(results(convert), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=4e-3, atol=4e-3 * max(1.0, abs(wanted).max()))


@pytest.mark.parametrize("sizes", [(0, N, K), (M, 0, K), (M, N, 0)])
def test_empty(sizes, cupy, taken, rng):
    m, n, k = sizes
    x, weight, bias = draw(cupy, rng, (m, k), (n, k), n)
    y = cupy.asnumpy(epilogue.linear(x, weight, bias, activation="relu"))
    np.testing.assert_array_equal(y, np.broadcast_to(np.maximum(cupy.asnumpy(bias), 0), (m, n)))
    assert not taken


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_wider_arrays_are_the_kernels(dtype, cupy, taken, rng):
    x, weight = (cupy.asarray(rng.standard_normal(shape).astype(dtype)) for shape in ((M, K), (N, K)))
    epilogue.linear(x, weight, activation="relu")
    assert not taken
    assert not epilogues.serves(launch.cupy_library(), x, ACTIVATIONS["relu"], False)


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((3, 5), (5, 1), (5, True)),
        ((3, 5), (9, 1), (9, True)),
        ((3, 5), (1, 3), (3, False)),
        ((3, 5), (1, 4), (4, False)),
        ((3, 5), (1, 2), None),
        ((3, 5), (1, 0), None),
        ((1, 5), (0, 1), (5, True)),
        ((3, 1), (1, 0), (3, False)),
        ((3, 5), (0, 1), None),  # a row given again and again
        ((3, 5), (10, 2), None),
        ((3, 5), (0, 0), None),
    ],
)
def test_how_a_matrix_is_stored(shape, strides, expected):
    assert cublaslt.stored(shape, strides) == expected


def test_an_address_of_the_same_alignment():
    product = cublaslt.Product("BIAS", "float16", *(cublaslt.Matrix(p, 8, 8, 8, True) for p in (4096, 4098, 48)), 8, 0)
    aligned = cublaslt._aligned(product)
    assert [matrix.pointer for matrix in aligned[2:5]] == [256, 2, 16]
    assert (aligned.bias, aligned.aux) == (8, 0)


def test_the_names_are_nvmath_pythons(bindings):
    """The package itself, which needs no GPU for this: attributes have the sizes and epilogues the numbers that the stand-in has."""
    lt = pytest.importorskip("nvmath.bindings.cublasLt")
    for name in bindings.NAMES:
        assert hasattr(lt, name)
    for kind in (
        bindings.Epilogue,
        bindings.ReductionScheme,
        bindings.MatmulDescAttribute,
        bindings.MatmulPreferenceAttribute,
    ):
        for member in kind:
            assert getattr(lt, kind.__name__)[member.name] == member.value
    for kind, size_of in (
        (bindings.MatmulDescAttribute, lt.get_matmul_desc_attribute_dtype),
        (bindings.MatmulPreferenceAttribute, lt.get_matmul_preference_attribute_dtype),
    ):
        for attribute, size in bindings.SIZES[kind].items():
            assert np.dtype(size_of(attribute)).itemsize == size
    assert lt.matmul_heuristic_result_dtype == bindings.matmul_heuristic_result_dtype
