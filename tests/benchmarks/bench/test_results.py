"""Result files as they are read, and the numbers derived of a row, against arithmetic done by hand. All data is made up."""

import json

import pytest

pytest.importorskip("tqdm")
import made_up
from epilogue.benchmarks.bench.providers import PROVIDERS
from epilogue.benchmarks.bench.results import LIBRARIES, OURS, PRODUCT, TORCH, Roof, load, row_of
from made_up import provider, row

ROOF = Roof(product_tflops=800.0, copy_gbps=4000.0)
H200 = Roof(product_tflops=780.0, copy_gbps=4300.0)
"""Which PERFORMANCE.md's shares are computed with."""


def read(roof=ROOF, **fields):
    return row_of(row(**fields), roof)


def test_ratios_are_ours_over_theirs():
    slow = provider(200.0, peak=400)
    found = read(providers={"epilogue": provider(100.0, peak=300), "eager": slow, "cublas": provider(80.0)})
    assert found.ratio("eager") == 0.5
    assert found.of_roof() == 0.8
    assert found.peak_ratio() == 0.75
    assert found.ratio("liger") is None


def test_every_provider_has_its_place():
    assert {OURS, PRODUCT, *TORCH, *LIBRARIES} == PROVIDERS.keys()


def test_the_best_of_those_that_ran():
    found = read(
        providers={
            "epilogue": provider(90.0), "eager": provider(200.0), "torch.compile": provider(100.0), "quack": {"failed": "it"},
            "liger": provider(60.0),
        }
    )  # fmt: skip
    assert found.best(("eager", "torch.compile", "quack")) == "torch.compile"
    assert found.ratio_to_best(("eager", "torch.compile", "quack")) == 0.9
    assert found.ratio_to_best(("quack",)) is None
    assert found.absent == {"quack": "failed: it"}


def test_without_our_number_nothing_is_compared():
    found = read(providers={"epilogue": {"failed": "it"}, "eager": provider(200.0), "cublas": provider(80.0)})
    assert found.ratio("eager") is found.ratio_to_best(("eager",)) is found.of_roof() is found.lost_to() is None
    assert found.peak_ratio() is None


@pytest.mark.parametrize(
    ("spread", "lost"),
    [(4.0, "addmm_activation"), (5.0, None), (6.0, None)],  # 104 < 106; 105 = 105; 106 > 104
)
def test_lost_is_what_the_spread_does_not_cover(spread, lost):
    ours, theirs = provider(110.0, spread), provider(100.0, spread)
    found = read(
        providers={"epilogue": ours, "addmm_activation": theirs, "eager": provider(300.0), "cublas": provider(50.0)}
    )
    assert found.lost_to() == lost


@pytest.mark.parametrize(
    ("op", "d", "hidden", "limit"),
    [
        # 780 / 4.3 = 181.395 operations per byte. Gated: (16 F + 6 d) / (18 F d) of it, plain: 10 / (12 d).
        ("gated_mlp", 4096, 14336, 0.0435830),
        ("gated_mlp", 1024, 2816, 0.178933),
        ("mlp", 4096, 16384, 0.0369050),
        ("mlp", 1024, 4096, 0.147620),
    ],
)
def test_what_the_limit_allows(op, d, hidden, limit):
    products = 9 if op == "gated_mlp" else 6
    flops = products * 2 * 8192 * d * hidden
    assert read(H200, op=op, d=d, hidden=hidden, flops=flops).gain_limit() == pytest.approx(limit, rel=1e-5)


def test_the_later_of_two_files_counts(tmp_path):
    case = {"providers": {"epilogue": provider(100.0)}}
    again = {"providers": {"epilogue": provider(70.0)}}
    later = made_up.bench(row(**again), date="2001-02-01T00:00:00+00:00", not_run=["one"])
    made_up.save(tmp_path, bench__b=made_up.bench(row(**case), row(tokens=1, **case)), bench__a=later)
    (results,), left_out = load(tmp_path)
    assert left_out == []
    assert [found.measured["epilogue"].median for found in results.rows.values()] == [70.0, 100.0]
    assert [head["file"] for head in results.heads] == ["bench-b.json", "bench-a.json"]
    assert results.not_run == ["one"]


def test_each_gpu_has_its_own_results(tmp_path):
    other = made_up.bench(row(), gpu="NVIDIA Test 200")
    step = made_up.training_row("stock", False, 2000.0)
    host = {**made_up.HEAD, "costs_us": [{"device": "cpu", "mode": "no grad", "ratio": 9}]}
    host["costs_us"].append({"device": "cuda", "mode": "no grad", "ratio": 1.25})
    made_up.save(tmp_path, bench__1=made_up.bench(row()), bench__2=other, host_cost_gpu=host)
    made_up.save(tmp_path, training__1={**made_up.HEAD, "rows": [step]}, bench=made_up.bench(), memory={})
    (first, second), left_out = load(tmp_path)
    assert (first.gpu, second.gpu, left_out) == (made_up.GPU, "NVIDIA Test 200", [])
    assert (len(first.rows), len(second.rows)) == (1, 1)
    assert first.host == {"no grad": 1.25}
    assert [trained.us for trained in first.steps] == [(1000.0, 2000.0, 3000.0)]


def test_other_files_are_left_out_and_said(tmp_path):
    made_up.save(tmp_path, bench__good=made_up.bench(row()), bench__cpu=made_up.bench(gpu=None), bench__list=[])
    made_up.save(tmp_path, bench__old={**made_up.HEAD, "rows": []}, bench__row=made_up.bench({"op": "linear"}))
    made_up.save(tmp_path, bench__us=made_up.bench(row(providers={"epilogue": {"us": [1, 2]}})))
    made_up.save(tmp_path, bench__why=made_up.bench(row(providers={"epilogue": {}})))
    no_stock = {**made_up.HEAD, "rows": [made_up.training_row("epilogue", False, 2000.0)]}
    made_up.save(tmp_path, training__half=no_stock, training__old={**made_up.HEAD, "rows": [{"model": "llama"}]})
    (tmp_path / "bench-torn.json").write_text(json.dumps(made_up.bench())[:50])
    (results,), left_out = load(tmp_path)
    assert [head["file"] for head in results.heads] == ["bench-good.json"]
    assert [message.split(".json")[0] for message in left_out] == [
        *(f"left out: bench-{name}" for name in ("cpu", "list", "old", "row", "torn", "us", "why")),
        *(f"left out: training-{name}" for name in ("half", "old")),
    ]
    assert left_out[0].endswith("bench-cpu.json was measured without a GPU")
    assert "KeyError: 'roof'" in left_out[2]


def test_no_folder_is_no_result(tmp_path):
    assert load(tmp_path / "nowhere") == ([], [])


def test_what_a_gpu_run_joined_is_read(tmp_path):
    """As the files themselves; what is no result for this report is passed over."""
    good, strange = made_up.bench(row(providers={"epilogue": provider(90.0)})), {"rows": "none"}
    made_up.save(tmp_path, bench__smoke=good)
    (apart,), _ = load(tmp_path)
    (tmp_path / "bench-smoke.json").unlink()
    steps = {
        "bench-smoke": {"bench-smoke.json": good},
        "training": {"training-x.json": strange},
        "tune": {"tuned.json": 1},
    }
    made_up.save(tmp_path, results=steps)
    (joined,), left_out = load(tmp_path)
    assert (joined.rows, joined.heads) == (apart.rows, apart.heads)
    assert [line.split(" is no")[0] for line in left_out] == ["left out: training-x.json"]
