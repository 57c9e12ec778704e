"""The report on results that are made up here: its verdicts, its tables, where it says that we lose, what it writes."""

import pytest

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
import made_up
from epilogue.benchmarks.bench import report
from epilogue.benchmarks.bench.results import load
from epilogue.benchmarks.report import markdown
from made_up import provider, row

BOTH = "forward+backward"


def forward(ours, product, **fields):
    return row(
        providers={"epilogue": provider(ours), "cublas": provider(product), **fields.pop("others", {})}, **fields
    )


def results_of(tmp_path, *rows, **documents):
    made_up.save(tmp_path, bench__smoke__test=made_up.bench(*rows), **documents)
    (results,), left_out = load(tmp_path)
    assert left_out == []
    return results


def measured(results):
    """Target -> what was measured of it."""
    return {what: text for what, _, text in report.targets(results)[1:]}


def starting(lines, what):
    (text,) = (text for name, text in lines.items() if name.startswith(what))
    return text


def test_without_results_nothing_is_claimed():
    lines = report.targets(None)
    assert lines[0] == ("what", "target", "measured")
    assert len(lines) == 8
    assert {text for _, _, text in lines[1:]} == {"not measured yet"}


def test_the_fused_forward_over_the_bare_product(tmp_path):
    results = results_of(
        tmp_path,
        forward(102.0, 100.0),
        forward(108.0, 100.0, op="glu"),
        forward(300.0, 100.0, tokens=2048),  # too few tokens
        forward(300.0, 100.0, tokens=32768),
        forward(300.0, 100.0, d=1024),
        forward(300.0, 100.0, op="mlp"),
        forward(99.0, 100.0, mode="training"),
    )
    lines = measured(results)
    # sqrt(1.02 * 1.08) = 1.0496
    expected = (
        "missed: worst 1.080 (glu inference, Testnet, 8192 tokens, silu, bfloat16), geometric mean 1.050, 2 cases"
    )
    assert starting(lines, "fused forward, inference") == expected
    assert starting(lines, "fused forward, training").startswith("met: worst 0.990 (linear training,")


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ((101.0, 80.0), "met: worst 1.010"),  # sqrt(1.01 * 0.8) = 0.899
        ((101.0, 81.0), "missed: worst 1.010"),  # 0.904
        ((103.0, 50.0), "missed: worst 1.030"),
    ],
)
def test_any_call_over_the_best_of_torch(tmp_path, ours, verdict):
    one, other = (
        row(
            tokens=tokens,
            providers={"epilogue": provider(us), "torch.compile": provider(100.0), "eager": provider(400.0)},
        )
        for us, tokens in zip(ours, (1, 2), strict=True)
    )
    unmatched = row(tokens=3, providers={"epilogue": provider(900.0), "cublas": provider(1.0), "liger": provider(1.0)})
    assert starting(measured(results_of(tmp_path, one, other, unmatched)), "any call").startswith(verdict)


def test_a_failure_of_ours_misses_every_target(tmp_path):
    failed = row(tokens=1, providers={"epilogue": {"failed": "wrong"}, "eager": provider(100.0)})
    good = row(providers={"epilogue": provider(50.0), "eager": provider(100.0)})
    both = starting(measured(results_of(tmp_path, good, failed)), "any call")
    assert both.startswith("missed: worst 0.500")
    assert both.endswith("1 case, ours failed in 1 more")
    assert starting(measured(results_of(tmp_path, failed)), "any call") == "missed: ours failed in 1 case"


def trained(ours, compiled, **fields):
    """A plain MLP with d 2000: at 800 TFLOP/s and 4000 GB/s the limit is 10 / 12 * 200 / 2000 = 1 / 12."""
    fields = {"op": "mlp", "mode": BOTH, "d": 2000, "hidden": 4000, "flops": 12 * 8192 * 2000 * 4000} | fields
    return row(providers={"epilogue": provider(ours), "torch.compile": provider(compiled)}, **fields)


def test_training_reaches_a_share_of_the_limit(tmp_path):
    results = results_of(
        tmp_path,
        trained(100.0, 105.0),  # 0.05 * 12 = 60 %
        trained(100.0, 107.5, activation="relu"),  # 90 %
        trained(100.0, 50.0, tokens=1024),  # the formula is not for so few
        trained(100.0, 50.0, dtype="float32"),
        trained(100.0, 50.0, d=512),
    )
    share = starting(measured(results), "MLP forward + backward over torch.compile")
    assert share.startswith(
        "missed: least 60% (mlp forward+backward, Testnet, 8192 tokens, silu, bfloat16), median 75%, 2 cases"
    )


def test_other_libraries(tmp_path):
    block = {"op": "gated_mlp", "mode": BOTH}
    results = results_of(
        tmp_path,
        row(
            **block,
            providers={"epilogue": provider(90.0), "liger": provider(100.0), "quack": {"skipped": "not installed"}},
        ),
        row(**block, tokens=1, providers={"epilogue": provider(95.0), "liger": provider(100.0)}),
    )
    lines = measured(results)
    assert starting(lines, "MLP forward + backward over liger").startswith("met: worst 0.950")
    assert starting(lines, "MLP forward + backward over quack") == "not measured yet"


def test_host_cost(tmp_path):
    costs = [{"device": "cuda", "mode": mode, "ratio": ratio} for mode, ratio in (("no grad", 1.6), (BOTH, 1.1))]
    results = results_of(tmp_path, row(), host_cost_gpu={**made_up.HEAD, "costs_us": costs})
    assert starting(measured(results), "host time") == "missed: no grad 1.60, forward+backward 1.10"


EAGER = {"eager": provider(200.0, peak=4 << 20)}
LOST = forward(110.0, 100.0, tokens=1, others={"quack": provider(100.0), "eager": provider(150.0)})
MORE = forward(150.0, 100.0, tokens=2, others={"addmm_activation": provider(100.0)})
WON = row(providers={"epilogue": provider(100.0, 2.0, 33.0, 3 << 20), **EAGER, "cublas": provider(90.0)})
FAILED = row(
    tokens=4,
    providers={"epilogue": {"failed": "wrong by\n0.5"}, "eager": provider(1.0), "liger": {"skipped": "not installed"}},
)


def test_a_line_for_each_case(tmp_path):
    results = results_of(tmp_path, WON, FAILED)
    heading, won, failed = report.by_shape(list(results.rows.values()))
    cells = dict(zip(heading, won, strict=True))
    assert cells == {
        "operation": "linear", "mode": "inference", "model": "Testnet", "tokens": "8192", "activation": "silu",
        "dtype": "bfloat16", "us": "100.0", "quartiles": "98.0 - 102.0", "host us": "33.0",
        "TFLOP/s": "20",  # 2e9 in 100 us
        "GB/s": "1000",  # 1e8 in 100 us
        "of the roof": "90%", "eager": "0.500", "peak MiB": "3", "peak / eager's": "0.750",
    }  # fmt: skip
    assert failed[6] == "failed: wrong by 0.5"
    assert report.absences(results)[1:] == [
        ("epilogue", "failed: wrong by 0.5", "1"),
        ("liger", "skipped: not installed", "1"),
    ]


def test_where_we_lose(tmp_path):
    results = results_of(tmp_path, LOST, WON, MORE, FAILED)
    assert [line[1:] for line in report.losses(results.rows.values())] == [
        ("faster is", "its us", "ours", "ours / its"),
        ("addmm_activation", "100.0", "150.0", "1.500"),
        ("quack", "100.0", "110.0", "1.100"),
    ]


def test_what_another_suite_has_run_is_not_missing(tmp_path):
    later = made_up.bench(not_run=["linear inference, Testnet, 8192 tokens, silu, bfloat16", "another"])
    results = results_of(tmp_path, WON, bench__full__test=later)
    assert report.absences(results)[1:] == [("all", "the time was up", "1")]


def test_geometric_means_by_operation(tmp_path):
    slow = row(tokens=1, providers={"epilogue": provider(100.0), "eager": provider(50.0), "cublas": provider(40.0)})
    tf32 = row(dtype="float32", precision="tf32", providers={"epilogue": provider(100.0)})
    lines = report.by_operation(list(results_of(tmp_path, WON, slow, tf32).rows.values()))
    assert lines == [
        ("operation", "mode", "dtype", "cases", "of the roof", "eager", "peak / eager's"),
        ("linear", "inference", "bfloat16", "2", "60%", "1.000", "0.750"),  # sqrt(0.9 * 0.4), sqrt(0.5 * 2)
        ("linear", "inference", "float32 tf32", "1", "", "", ""),
    ]


def test_everything_is_written(tmp_path, capsys):
    results = tmp_path / "results"
    results.mkdir()
    steps = [made_up.training_row("stock", True, 20_000.0, 1000), made_up.training_row("epilogue", True, 10_000.0, 500)]
    made_up.save(results, training__test={**made_up.HEAD, "rows": steps}, bench__old={})
    made_up.save(results, bench__test=made_up.bench(WON, LOST, MORE, FAILED, not_run=["a case"]))
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- speed -->\n<!-- /speed -->\nafter\n")
    for _ in range(2):
        assert report.main(results, document, plots=True) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("left out: bench-old.json")
    assert "Where we lose, by more than the spread: 2 of 4 cases\n" in printed
    assert "the time was up" in printed
    pictures = {path.name for path in results.glob("*.png")}
    assert pictures == {f"{kind}-nvidia-test-100.png" for kind in ("speed", "roof", "peak")}
    readme = document.read_text()
    assert readme.startswith(
        "before\n<!-- speed -->\n**NVIDIA Test 100**\n\n- bench-test.json: 2001-01-01, torch 9.9, triton 8.8, driver 1.2"
    )
    assert "\nNo number of ours: linear inference, Testnet, 4 tokens, silu, bfloat16, failed: wrong by 0.5\n" in readme
    assert "roof 800 TFLOP/s, 4000 GB/s" in readme
    assert all(f"](results/{name})" in readme for name in pictures)
    assert (
        "| llama | 2 M | 1000 | epilogue, torch.compile | 10.00 | 9.00 - 11.00 | 100,000 | 0 | 0.500 | 0.500 |"
        in readme
    )
    assert readme.endswith("Every case: [speed.md](results/speed.md).\n<!-- /speed -->\nafter\n")
    assert "| linear | inference | Testnet | 2 | silu | bfloat16 | 150.0 |" in (results / "speed.md").read_text()


def test_the_readme_names_the_worst_alone(tmp_path):
    lost = [forward(100.0 + tokens, 100.0, tokens=tokens, others={"eager": provider(50.0)}) for tokens in range(1, 13)]
    results = results_of(tmp_path, *lost)
    text = report.readme([results], tmp_path, tmp_path / "README.md")
    assert "by more than the spread: 12 of 12 cases, the worst 10 of them" in text
    assert "12 tokens, silu, bfloat16 | eager | 50.0 | 112.0 | 2.240 |" in text
    assert "Testnet, 2 tokens" not in text.split("Where we lose")[1]


def test_an_empty_folder(tmp_path, capsys):
    document = tmp_path / "README.md"
    document.write_text("<!-- speed -->\n<!-- /speed -->\n")
    assert report.main(tmp_path, document, plots=True) == 0
    assert "No result of `epilogue bench` on a GPU is here yet." in capsys.readouterr().out
    expected = f"No result of `epilogue bench` on a GPU is here yet.\n\n{markdown(report.targets(None))}"
    assert document.read_text() == f"<!-- speed -->\n{expected}\n<!-- /speed -->\n"
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_readme_without_its_place_is_said_first(tmp_path, capsys):
    with pytest.raises(SystemExit, match="no lines <!-- speed --> and"):
        report.main(tmp_path, tmp_path / "README.md", plots=False)
    assert capsys.readouterr().out == ""
