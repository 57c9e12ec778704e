"""Which way a product takes: the model of time, and what was measured, which comes first."""

import json
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import epilogue
from epilogue.approximations import APPROXIMATIONS
from epilogue.operands import Layer
from epilogue.saving import library_serves
from epilogue.triton.plan import model, tuned
from epilogue.triton.plan.chips import CHIPS, INTERPRETER, precision
from epilogue.triton.plan.configs import TABLE, Config, shared_bytes
from epilogue.triton.plan.cost import ALIKE, WEIGHTS, formula_cost
from epilogue.triton.plan.dispatch import candidates, choose
from epilogue.triton.plan.model import fused_time, multiply_adds, unfused_time
from epilogue.triton.plan.problem import DACT, DROPPED, GLU, LINEAR, Problem
from epilogue.unfused import library_fwd
from epilogue.vocabulary import PRIMITIVES, exp
from measured import products

H200 = CHIPS["H200"]
TFLOPS = {
    "A10": 125, "A100": 312, "A100 PCIe": 312, "A100 40GB": 312, "L4": 121, "L40S": 362, "RTX 3090": 71, "RTX 4090": 165.2,
    "RTX 5090": 209.5, "H100": 989, "H200": 989, "B200": 2250, "GB200": 2500,
}  # fmt: skip
"""Of the data sheets: dense bfloat16, summed in float32."""


@pytest.mark.parametrize("name", CHIPS)
def test_the_chips_rate_is_its_data_sheets(name):
    """Within a tenth: three of the chips' sheets count a lower clock than the highest."""
    chip = CHIPS[name]
    rate = 2 * multiply_adds(chip) * chip.processors * chip.clock / 1e3
    assert rate == pytest.approx(TFLOPS[name], rel=0.1 if name in ("H100", "H200", "B200") else 0.02)


GELU = Problem(LINEAR, 8192, 14336, 4096, torch.bfloat16, "tf32", True, "gelu", gated=False, keeps=True)
SWIGLU_BACKWARD = GELU._replace(family=DACT, activation="silu", gated=True)
IEEE = GELU._replace(dtype=torch.float32, precision="ieee", tma=False)


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch, tmp_path):
    """The user's cache is a folder of the test's; returns the path of the H200's file in it."""
    monkeypatch.setattr(tuned, "user_path", lambda chip: tmp_path / "tuned" / tuned.file_name(chip))
    monkeypatch.setattr(tuned, "SHIPPED", tmp_path / "shipped")
    caches = tuned.load, choose
    for cache in caches:
        cache.cache_clear()
    yield tmp_path / "tuned" / tuned.file_name(H200)
    for cache in caches:
        cache.cache_clear()


def test_configs_fit_the_chip():
    small = CHIPS["H100"]._replace(processors=46, shared_bytes=99 * 1024)
    for family, tma, itemsize in TABLE:
        dtype = torch.float32 if itemsize == 4 else torch.float16
        for m in (1, 64, 1000, 100_000):
            problem = Problem(family, m, 4096, 4096, dtype, "tf32", tma, "silu", family is not LINEAR, True)
            for choice, *_ in candidates(problem, small):
                assert choice == "unfused" or shared_bytes(choice, family, itemsize) <= small.shared_bytes
    found = candidates(GELU, small._replace(shared_bytes=1))
    assert {choice for choice, *_ in found} == {TABLE[LINEAR, True, 2][-1], "unfused"}  # the least there is


def test_tiles_grow_with_the_product():
    for family, width in ((LINEAR, 128), (DACT, 256)):
        problem = GELU._replace(family=family)
        large, few = (
            next(c.choice for c in candidates(sized, H200) if isinstance(c.choice, Config))
            for sized in (problem._replace(m=16384, n=8192), problem._replace(m=64, n=512))
        )
        assert large.BLOCK_M == 128
        assert width == large.BLOCK_N
        assert few.BLOCK_M == 64


def test_what_cublas_does_better():
    """Without matrix instructions the kernels are far from cuBLAS."""
    assert choose(IEEE, H200) == "unfused"


@pytest.mark.parametrize(("name", "problem", "bare", "times"), [*products()])
def test_the_model_chooses_as_was_measured(name, problem, bare, times):
    """The choice is the fastest shipped way or nearly so, and a large product takes as long as predicted, to a tenth."""
    shipped = TABLE[problem.family, True, 2]
    times = {way: us for way, us in times.items() if way == "unfused" or way in shipped}
    assert times[choose(problem, H200)] <= min(times.values()) * (1.08 if max(times.values()) < 30 else 1.03)
    if problem.m <= 16:  # memory decides, and the predictions are equal
        tiles = next(found.choice for found in candidates(problem, H200) if found.choice != "unfused")
        assert times[tiles] == min(us for way, us in times.items() if way != "unfused")
    if problem.m * problem.k >= 1 << 23:
        assert fused_time(problem, shipped[0], H200) == pytest.approx(times[shipped[0]], rel=0.1)
        assert unfused_time(problem, H200) == pytest.approx(times["unfused"], rel=0.1)


def test_the_model_meets_what_was_measured():
    """An 8192³ product at 780 TFLOP/s and a copy at 4.3 TB/s on one H200."""
    cube = GELU._replace(m=8192, n=8192, k=8192)
    waves = -(-(64 * 32) // 132) / (64 * 32 / 132)
    microseconds = model._cublas_cycles(cube, 128, 256, H200) / H200.clock / 1e3 / waves
    assert 2 * 8192**3 / microseconds / 1e6 == pytest.approx(780, rel=0.01)
    assert model._longer(0.0, 4.3e9, H200) == pytest.approx(1000, rel=0.01)


def test_the_model_by_hand():
    """One tile on one processor, all numbers written out."""
    config = Config(64, 64, 64, 4, 4, True)
    chip = H200._replace(processors=1, clock=2.0, bandwidth=1e9)
    problem = GELU._replace(m=64, n=64, k=1000, activation="identity")
    arithmetic, loads = 64 * 64 / (2048 * 0.855), (64 + 64) * 2 / 60
    loop = 1000 * (max(arithmetic, loads) + min(arithmetic, loads) / 4) / (1.01 * 0.7)  # 64 rows alone
    epilogue_cycles = 64 * 64 * max(6 * 2 / 128, 2 * 2 / 60)  # y and z: 6 instructions, 2 bytes each
    assert fused_time(problem, config, chip) == pytest.approx(2.0 + (loop + epilogue_cycles) / 2.0 / 1e3)
    assert fused_time(problem._replace(m=65), config, chip) == pytest.approx(
        2.0 + 2 * (loop + epilogue_cycles) / 2.0 / 1e3
    )
    loop *= 0.7
    assert fused_time(problem, replace(config, blocks=2), chip) == pytest.approx(
        2.0 + (loop + epilogue_cycles) / 2.0 / 1e3
    )
    backward = problem._replace(family=DACT)  # reads z, writes dz and h, sums dz
    instructions = formula_cost(epilogue.ACTIVATIONS["identity"], True, torch.bfloat16)[0] + 6 * 3 + 28 + 17
    expected = pytest.approx(2.0 + (loop / 0.7 + 64 * 64 * instructions / 128) / 2.0 / 1e3)
    assert fused_time(backward, config, chip) == expected


def test_the_model_of_other_kernels_by_hand(monkeypatch):
    """A gated one, whose second weight counts twice over, and one without matrix instructions; special functions that bound."""
    chip = H200._replace(processors=1, clock=2.0, bandwidth=1e9)

    def microseconds(arithmetic, loads, pipeline, epilogue):
        loop = 1000 * (max(arithmetic, loads) + min(arithmetic, loads) / 4) / pipeline
        return pytest.approx(2.0 + (loop + 64 * 64 * epilogue) / 2.0 / 1e3)

    monkeypatch.setattr(model, "formula_cost", lambda *of: (1.0, 4.0))
    gated = GELU._replace(family=GLU, m=64, n=64, k=1000, gated=True, keeps=False)
    config = Config(64, 64, 64, 4, 3, True)
    expected = microseconds(64 * 128 / (2048 * 0.855), (64 + 128) * 2 / 60, 1.01 * 0.7, 4 / 16)
    assert fused_time(gated, config, chip) == expected
    bound = chip._replace(bandwidth=1.0)
    assert fused_time(gated, config, bound) == pytest.approx(2.0 + ((64 + 128) * 1000 + 64 * 64) * 2 / 0.84 / 1e3)
    ieee = IEEE._replace(m=64, n=64, k=1000)
    expected = microseconds(64 * 64 / 128, (64 + 64) * 4 / 60, 0.6, 4 / 16)
    assert fused_time(ieee, Config(64, 64, 16, 4, 3), chip) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_model_of_cublas_by_hand(dtype, monkeypatch):
    """Tiles of one size on four processors: five are two waves, one is split over all; then the pointwise kernel's instructions."""
    monkeypatch.setattr(model, "CUBLAS_TILES", ((128, 128),))
    chip = H200._replace(processors=4, clock=2.0, bandwidth=1e9)
    problem = GELU._replace(n=128, k=1000, activation="identity", dtype=dtype)
    size = dtype.itemsize  # TF32 has half the rate of 16 bits
    arithmetic, loads = 128 * 128 / (4096 / size * 0.855), (128 + 128) * size / 60
    tile = 1000 * (max(arithmetic, loads) + min(arithmetic, loads) / 4)
    for m, waves in ((640, 2), (128, 1 / 4)):
        pointwise = m * 128 * (6 * 2 / 128) / 4  # reads z, writes y
        expected = 2 * 2.0 + (waves * tile + pointwise) / 2.0 / 1e3
        assert unfused_time(problem._replace(m=m), chip) == pytest.approx(expected)
    gated = problem._replace(
        family=GLU, gated=True, activation="bilinear", m=256
    )  # four tiles; reads gate and up, writes y
    instructions = formula_cost(epilogue.ACTIVATIONS["bilinear"], False, dtype)[0]
    expected = 2 * 2.0 + (tile + 256 * 128 * (instructions + 6 * 3) / 128 / 4) / 2.0 / 1e3
    assert unfused_time(gated, chip) == pytest.approx(expected)


def test_what_fits_into_l2_is_not_read_again():
    bound = H200._replace(bandwidth=1.0)
    size, operands = 8192 * 14336 * 2, (8192 + 14336) * 4096 * 2
    for l2, passes in ((2 * size, 2), (2 * size - 1, 3)):
        expected = 2 * 2.0 + ((operands + size) / 0.9 + (passes - 1) * size / 0.75) / 1e3
        assert unfused_time(GELU, bound._replace(l2_bytes=l2)) == pytest.approx(expected, rel=1e-6)


def test_memory_is_a_floor():
    """One row: the weight must come through memory once."""
    row = GELU._replace(m=1, keeps=False)
    floor = 14336 * 4096 * 2 / 4800 / 1e3
    assert all(floor < candidate.microseconds < 2 * floor for candidate in candidates(row, H200)[:2])


def test_what_is_read_and_written():
    inference = GELU._replace(keeps=False)
    assert [(p.reads, p.writes) for p in (inference, GELU)] == [(0, 1), (0, 2)]
    gated = GELU._replace(family=GLU, gated=True)
    assert [(p.reads, p.writes) for p in (gated._replace(keeps=False), gated)] == [(0, 1), (0, 3)]
    plain = GELU._replace(family=DACT)
    assert [(p.reads, p.writes) for p in (plain._replace(keeps=False), plain, SWIGLU_BACKWARD)] == [
        (1, 1),
        (1, 2),
        (2, 3),
    ]
    bound = H200._replace(bandwidth=1.0)  # so slow a memory that bytes are all that counts
    size, operands = 8192 * 14336 * 2, (8192 + 14336) * 4096 * 2
    config = TABLE[LINEAR, True, 2][0]
    assert fused_time(GELU, config, bound) == pytest.approx((operands + 2 * size) / 0.84 / 1e3, rel=1e-3)
    product = (operands + size) / 0.9
    assert unfused_time(GELU, bound) == pytest.approx((product + 2 * size / 0.75) / 1e3, rel=1e-3)
    assert unfused_time(SWIGLU_BACKWARD, bound) == pytest.approx((product + 6 * size / 0.75) / 1e3, rel=1e-3)


@pytest.mark.usefixtures("own_activations")
def test_what_an_activation_costs():
    relu, gelu = (epilogue.ACTIVATIONS[name] for name in ("relu", "gelu"))
    assert formula_cost(relu, False, torch.bfloat16) < formula_cost(gelu, False, torch.bfloat16)
    assert formula_cost(gelu, False, torch.bfloat16) < formula_cost(gelu, True, torch.bfloat16)
    assert formula_cost(gelu, False, torch.bfloat16) < formula_cost(gelu, False, torch.float32)

    @epilogue.activation(oracle=lambda F, x, steep: x * F.sigmoid(steep * x))
    def unheard_of(x, steep=1.0):
        return x / (1.0 + exp(-steep * x)) * (1.0 / steep)

    # In 32 bits: -steep once for all elements, a product, exp, a sum, a division, and a product by what is computed once.
    instructions, special = formula_cost(unheard_of, False, torch.float32)
    assert instructions == pytest.approx(0.95 + 5.3 + 0.95 + 6.6 + 0.95)
    assert special == 2

    silu = epilogue.ACTIVATIONS["silu"]
    assert formula_cost(silu.gated, False, torch.bfloat16) == formula_cost(silu, False, torch.bfloat16)
    exact = GELU._replace(activation="mish")
    config = choose(GELU, H200)
    assert fused_time(exact, config, H200) > fused_time(GELU._replace(activation="relu"), config, H200)


def test_every_primitive_has_a_cost():
    assert {ALIKE.get(name, name) for name in (*PRIMITIVES, *APPROXIMATIONS)} <= WEIGHTS.keys()


def test_the_interpreter_runs_the_kernels():
    assert all(isinstance(candidate.choice, Config) for candidate in candidates(IEEE, INTERPRETER))


def test_precision_follows_torch():
    assert precision(torch.bfloat16) == "tf32"
    assert precision(torch.float32) == "ieee"
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert precision(torch.float32) == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


# --- what was measured

TILE = Config(64, 64, 64, 4, 4, True, GROUP_M=16)


def test_the_driver_is_asked_without_torch(monkeypatch):
    """torch 2.11 has no query of it."""

    def query(number):
        number._obj.value = 13000
        return 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tuned.ctypes, "CDLL", lambda name: SimpleNamespace(cuDriverGetVersion=query))
    assert tuned._driver.__wrapped__() == "13000"


def test_measured_comes_first(nothing_measured):
    entries = {GELU: (TILE, 1234.0), SWIGLU_BACKWARD._replace(family=DROPPED): ("unfused", 5.0)}
    tuned.save(entries, H200, nothing_measured)
    assert tuned.load(H200) == entries
    first, *others = candidates(GELU, H200)
    assert first == (TILE, 1234.0, True)
    assert {candidate.choice for candidate in others} == {*TABLE[LINEAR, True, 2], "unfused"}
    assert choose(GELU, H200) == TILE
    assert choose(SWIGLU_BACKWARD._replace(family=DROPPED), H200) == "unfused"
    assert [c.choice for c in candidates(SWIGLU_BACKWARD._replace(family=DROPPED), H200)].count("unfused") == 1
    assert not candidates(SWIGLU_BACKWARD, H200)[0].measured


def test_measured_for_up_to_as_many_rows(nothing_measured):
    tuned.save({GELU: (TILE, 1.0)}, H200, nothing_measured)
    assert [m for m in (1, 4096, 4097, 5000, 8192, 8193) if choose(GELU._replace(m=m), H200) == TILE] == [
        4097,
        5000,
        8192,
    ]
    assert tuned.key_of(GELU._replace(m=1)).m == 1
    assert choose(GELU._replace(n=14344), H200) != TILE


def test_gelu_and_silu_stand_for_all(nothing_measured):
    tuned.save({GELU: (TILE, 1.0), SWIGLU_BACKWARD: ("unfused", 1.0)}, H200, nothing_measured)
    assert choose(GELU._replace(activation="mish"), H200) == TILE
    assert choose(SWIGLU_BACKWARD._replace(activation="maxout"), H200) == "unfused"
    assert choose(GELU._replace(activation="mish", dtype=torch.float16), H200) != TILE


def test_a_librarys_epilogue_stands_for_itself(nothing_measured):
    tuned.save({GELU: ("library", 1.0)}, H200, nothing_measured)
    assert choose(GELU._replace(library=True), H200) == "library"
    assert isinstance(choose(GELU, H200), Config)  # of a call that it does not serve, one without a bias for instance
    assert choose(GELU._replace(activation="mish"), H200) != "library"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: "{", "Expecting"),
        (lambda text: text.replace('"driver": "', '"driver": "9'), "it was measured with driver 9"),
        (lambda text: text.replace("NVIDIA H200", "NVIDIA H20"), "it was measured with gpu NVIDIA H20,"),
        (lambda text: text.replace('"BLOCK_M"', '"BLOCK_Q"'), "BLOCK_Q"),
        (lambda text: text.replace('"unfused"', '"elsewhere"'), "unknown choice 'elsewhere'"),
        (lambda text: text.replace('"entries"', '"rows"'), "entries"),
        (lambda text: "[]", "list"),
    ],
)
def test_a_file_of_another_kind_is_ignored(spoil, message, nothing_measured):
    tuned.save({GELU: (TILE, 1.0), IEEE: ("unfused", 1.0)}, H200, nothing_measured)
    nothing_measured.write_text(spoil(nothing_measured.read_text()))
    with pytest.warns(RuntimeWarning, match=message) as warned:
        expected = choose(GELU, H200)
    assert len(warned) == 1
    assert expected != TILE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose(IEEE, H200)  # said once


def test_a_shipped_file_needs_the_gpu_alone(tmp_path, nothing_measured):
    shipped = tmp_path / "shipped" / tuned.file_name(H200)
    tuned.save({GELU: (TILE, 1.0), IEEE: (TILE, 1.0)}, H200, shipped)
    shipped.write_text(shipped.read_text().replace(f'"torch": "{torch.__version__}"', '"torch": "1.0"'))
    tuned.save({IEEE: ("unfused", 2.0)}, H200, nothing_measured)
    assert choose(GELU, H200) == TILE
    assert choose(IEEE, H200) == "unfused"  # the user's own goes before


def test_saving_is_one_move(nothing_measured, monkeypatch):
    tuned.save({GELU: (TILE, 1.0)}, H200, nothing_measured)
    before = nothing_measured.read_text()
    monkeypatch.setattr(tuned.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        tuned.save({}, H200, nothing_measured)
    assert nothing_measured.read_text() == before
    assert [path.name for path in nothing_measured.parent.iterdir()] == [nothing_measured.name]


def test_the_users_file():
    path = tuned.file_name(H200._replace(name="NVIDIA GeForce RTX 4090 (a/b)"))
    assert path == "NVIDIA_GeForce_RTX_4090_a_b.json"


def test_a_file_says_what_it_was_measured_on(nothing_measured):
    tuned.save({GELU: (replace(TILE, GROUP_M=4), 1.5)}, H200, nothing_measured)
    contents = json.loads(nothing_measured.read_text())
    assert set(contents) == {"gpu", "driver", "torch", "triton", "entries"}
    (entry,) = contents["entries"]
    assert (entry["problem"]["family"], entry["problem"]["dtype"], entry["us"]) == ("linear", "bfloat16", 1.5)


# --- cuBLASLt's own epilogue


def test_what_the_library_serves():
    act = epilogue.ACTIVATIONS["relu"]
    layer = Layer(torch.randn(2, 5, 8), torch.randn(6, 8), bias=torch.randn(6))
    assert library_serves(act, "nothing", gated=False, bias=True, dropout=False)
    assert library_serves(act, "output", gated=False, bias=True, dropout=False)
    assert not library_serves(act, "input", gated=False, bias=True, dropout=False)
    assert not library_serves(act, "sign", gated=False, bias=True, dropout=False)
    assert not library_serves(act, "nothing", gated=False, bias=False, dropout=False)
    assert not library_serves(act, "nothing", gated=True, bias=True, dropout=False)
    assert not library_serves(act, "nothing", gated=False, bias=True, dropout=True)
    assert not library_serves(epilogue.ACTIVATIONS["silu"], "nothing", gated=False, bias=True, dropout=False)
    expected = torch.nn.functional.linear(layer.x, layer.weight, layer.bias).relu()
    torch.testing.assert_close(library_fwd(layer, act), expected)
