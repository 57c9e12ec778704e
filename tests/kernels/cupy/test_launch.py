"""The launchers on sizes, strides and addresses of every kind: right, within bounds, by 16-byte vectors where that is allowed."""

import itertools
import sys
import types

import numpy as np
import pytest

from checks import philox
from epilogue import ACTIVATIONS
from epilogue.applied import Applied, Needs
from epilogue.cupy import launch
from epilogue.cupy.launch import Gradients, Matrices

WIDTHS = (1, 7, 8, 9, 16, 31, 64, 257)
ROWS = (1, 3, 300)
DTYPES = ("float32", "float16", "float64")
SILU, RELU = ACTIVATIONS["silu"], ACTIVATIONS["relu"]


class Memory:
    """Matrices in memory that holds a pattern around them, at a chosen distance from a multiple of 16 bytes."""

    def __init__(self, cupy, dtype, off, spare):
        self.cupy, self.dtype, self.off, self.spare, self.held = cupy, np.dtype(dtype), off, spare, []

    def matrix(self, rows, cols, values=None):
        stride, lead = cols + self.spare, 16 // self.dtype.itemsize
        whole = self.cupy.asarray(np.full(lead + 16 + self.off + rows * stride + 16, 77.0, self.dtype))
        start = (-whole.data.ptr % 16) // self.dtype.itemsize + lead + self.off
        view = whole[start : start + rows * stride].reshape(rows, stride)[:, :cols]
        view[...] = self.cupy.asarray(np.full((rows, cols), np.nan, self.dtype) if values is None else values)
        self.held.append((whole, view))
        return view

    def untouched(self):
        """Around every matrix the pattern still stands."""
        for whole, view in self.held:
            view[...] = self.cupy.asarray(np.full(view.shape, 77.0, self.dtype))
            assert (self.cupy.asnumpy(whole) == 77.0).all()


def vectors():
    """16-byte accesses of the last launch; None on a GPU, which does not count them."""
    return getattr(sys.modules["cupy"], "vectors", lambda: None)()


@pytest.mark.parametrize(("off", "spare"), [(0, 0), (0, 16), (1, 0), (0, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [False, True])
def test_every_size_at_every_address(gated, dtype, off, spare, cupy, library, rng):
    tolerance = {"float16": 2e-3, "float32": 2e-6, "float64": 1e-13}[dtype]
    for m, n in itertools.product(ROWS, WIDTHS):
        memory = Memory(cupy, dtype, off, spare)
        z, up, dy = (rng.standard_normal((m, n)).astype(dtype) for _ in range(3))
        bias, up_bias = (rng.standard_normal(n).astype(dtype) for _ in range(2))
        both = (z + bias.astype(np.float64), up + up_bias.astype(np.float64))
        given = [memory.matrix(m, n, a) for a in (z, up)]
        matrices = Matrices(
            given[0], given[1] if gated else None, cupy.asarray(bias), cupy.asarray(up_bias) if gated else None
        )
        y, dz, dup = memory.matrix(m, n), memory.matrix(m, n), memory.matrix(m, n) if gated else None
        launch.forward(library, matrices, y, None, Applied(SILU))
        aligned = off == 0 and (m == 1 or (n + spare) * dz.itemsize % 16 == 0)
        if vectors() is not None:
            assert (vectors() > 0) == (aligned and n >= 8)
        entry, operands = (SILU.gated, both) if gated else (SILU, both[:1])
        exact = entry.value(*operands)
        np.testing.assert_allclose(cupy.asnumpy(y), exact, rtol=0, atol=tolerance * max(1, np.abs(exact).max()))
        into = Gradients(dz, dup)
        found = launch.backward(
            library, memory.matrix(m, n, dy), matrices, None, "input", Applied(SILU), into, Needs(dbias=True)
        )
        grads = [dy * entry.derivatives[name](*operands) for name in entry.operands]
        for result, truth in zip((dz, dup), grads, strict=False):
            np.testing.assert_allclose(
                cupy.asnumpy(result), truth, rtol=0, atol=tolerance * max(1, np.abs(truth).max())
            )
        sums = np.concatenate([truth.sum(0) for truth in grads])
        assert found.dbias.dtype == (np.float64 if dtype == "float64" else np.float32)
        np.testing.assert_allclose(
            cupy.asnumpy(found.dbias), sums, rtol=0, atol=max(tolerance, 1e-12) * max(1, m) ** 0.5 * 4
        )
        memory.untouched()


@pytest.mark.parametrize("n", WIDTHS)
def test_signs_are_bits(n, cupy, library, rng):
    """The lowest bit first, and those past the last column 0; backward reads them as 1 and 0."""
    z = rng.standard_normal((5, n)).astype(np.float32)
    y, signs = cupy.asarray(np.full_like(z, np.nan)), cupy.asarray(np.full((5, -(-n // 8)), 255, np.uint8))
    launch.forward(library, Matrices(cupy.asarray(z)), y, signs, Applied(RELU))
    np.testing.assert_array_equal(cupy.asnumpy(signs), np.packbits(z > 0, axis=1, bitorder="little"))
    dz = cupy.asarray(np.full_like(z, np.nan))
    launch.backward(library, cupy.asarray(z), Matrices(None), signs, "sign", Applied(RELU), Gradients(dz), Needs())
    np.testing.assert_array_equal(cupy.asnumpy(dz), np.where(z > 0, z, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_is_philox(dtype, cupy, library):
    """The mask that the Triton kernels draw, in forward, in h and in dz."""
    number, threshold, (m, n) = 0x123456789ABCDEF, round(0.3 * 2**32) - 2**31, (3, 21)
    words = np.array([[philox(number, col // 4, row, 7)[col % 4] for col in range(n)] for row in range(m)], np.uint32)
    kept = np.where(words.view(np.int32) >= threshold, 2.0, 0.0).astype(dtype)
    argument = (cupy.asarray(np.array([number])), threshold, 2.0)
    dropout = types.SimpleNamespace(argument=lambda: argument)
    ones = cupy.asarray(np.ones((m, n), dtype))
    y, dz, h = (cupy.asarray(np.full((m, n), np.nan, dtype)) for _ in range(3))
    dropped = Applied(ACTIVATIONS["identity"], dropout=dropout)
    launch.forward(library, Matrices(ones), y, None, dropped)
    launch.backward(library, ones, Matrices(ones), None, "input", dropped, Gradients(dz, h=h), Needs(h=True))
    factors = cupy.asarray(np.full((m, n), np.nan, np.float32))
    launch.mask(library, factors, dropout)
    for result in (y, dz, h, factors):
        np.testing.assert_array_equal(cupy.asnumpy(result), kept)


def test_in_place(cupy, library, rng):
    """y may be z, and dz may be dy."""
    z, dy = (rng.standard_normal((6, 20)).astype(np.float32) for _ in range(2))
    y, dz = cupy.asarray(z.copy()), cupy.asarray(dy.copy())
    launch.forward(library, Matrices(y), y, None, Applied(SILU))
    launch.backward(library, dz, Matrices(cupy.asarray(z)), None, "input", Applied(SILU), Gradients(dz), Needs())
    np.testing.assert_allclose(cupy.asnumpy(y), SILU.value(z), rtol=1e-6)
    np.testing.assert_allclose(cupy.asnumpy(dz), dy * SILU.derivatives["x"](z), rtol=1e-5, atol=1e-7)


def test_a_gradient_of_one_row_for_all(cupy, library, rng):
    z, row = rng.standard_normal((40, 24)), rng.standard_normal((1, 24))
    dz = cupy.asarray(np.full_like(z, np.nan))
    dy = cupy.broadcast_to(cupy.asarray(row), z.shape)
    launch.backward(library, dy, Matrices(cupy.asarray(z)), None, "input", Applied(SILU), Gradients(dz), Needs())
    np.testing.assert_allclose(cupy.asnumpy(dz), row * SILU.derivatives["x"](z), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("blocks", [1, 100, 1056])
def test_the_grid_covers_what_is_there(blocks, cupy, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(launch, "_blocks", lambda kernel, device: blocks)
        for m, n in itertools.product((1, 5, 4097, 2**31, 2**40), (1, 8, 9, 250, 4096, 2**20, 2**27)):
            (rows, columns), (across, down) = launch._geometry(None, m, n)
            assert across * down == launch.BLOCK
            assert 1 <= rows <= max(1, blocks // columns)
            assert rows == max(1, min(blocks // columns, -(-m // down)))
            assert columns == min(-(-n // (launch.WIDTH * across)), 2**16 - 1)


def test_blocks_are_those_that_run_at_a_time(cupy, library):
    kernel = launch._kernel(
        "act_fwd", np.empty((1, 1), np.float32), Matrices(None), Applied(RELU), {"value": RELU.value}
    )
    found = launch._blocks(kernel, 0)
    assert found > 0
    assert found % cupy.cuda.Device(0).attributes["MultiProcessorCount"] == 0
