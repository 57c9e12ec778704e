"""The runner on small cases: what it writes, whom it refuses a time, what it says without a GPU."""

import functools
import json
import math

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
from epilogue.benchmarks import cli, timing
from epilogue.benchmarks.bench import report, runner
from epilogue.benchmarks.bench.cases import BOTH, INFERENCE, MODES, SUITES, TRAINING, Case, Suite
from epilogue.benchmarks.bench.providers import PROVIDERS, TUNED, Provider
from epilogue.benchmarks.bench.results import load
from epilogue.benchmarks.machine import bandwidth
from epilogue.benchmarks.report import table

CASE = Case("mlp", BOTH, "tiny", 40, 32, 48, "relu", "bfloat16", "ieee", True)
SUITE = Suite(math.inf, 1, (CASE, CASE._replace(op="glu", mode=INFERENCE), CASE._replace(op="linear", mode=TRAINING)))
QUICK = {name: PROVIDERS[name] for name in ("eager", "epilogue", TUNED, "addmm_activation", "cublas")}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Little to time, and no compiler."""
    monkeypatch.setattr(timing, "measure", functools.partial(timing.measure, seconds=0.01))
    monkeypatch.setattr(runner, "ROOF_SIZE", 64)
    monkeypatch.setattr(runner, "ROOF_BYTES", 1 << 12)
    monkeypatch.setattr(runner, "PROVIDERS", {**QUICK, TUNED: QUICK["eager"]})


def wrong(provider, share=1.1):
    """The provider, with a result that is off."""

    def call(case, operands):
        right = provider.call(case, operands)

        def run():
            result = right()
            return tuple(share * part for part in result) if isinstance(result, tuple) else share * result

        return run

    return provider._replace(call=call)


def broken(case, operands):
    raise RuntimeError("no such kernel\nand a long story")


def test_a_run_is_written(tmp_path, device, capsys):
    result = runner.run("tiny", SUITE, device, tmp_path / "new")
    (path,) = (tmp_path / "new").iterdir()
    assert path.name == f"bench-tiny-{runner.slug(result['gpu'] or result['cpu'])}.json"
    assert json.loads(path.read_text()) == result
    assert {"date", "cpu", "gpu", "driver", "versions", "commit", "suite", "roof", "rows", "not_run"} == result.keys()
    assert {"torch", "triton", "liger_kernel"} <= result["versions"].keys()
    assert result["roof"].keys() == {"product_tflops", "copy_gbps"}
    assert min(result["roof"].values()) >= 0
    assert result["not_run"] == []
    assert [row["op"] for row in result["rows"]] == ["mlp", "glu", "linear"]
    row = result["rows"][0]
    assert {**CASE._asdict(), "flops": CASE.flops, "bytes": CASE.bytes, "providers": row["providers"]} == row
    assert [*row["providers"]] == [*QUICK]
    for name in ("eager", "epilogue", "cublas", TUNED):
        found = row["providers"][name]
        low, median, high = found["us"]
        assert 0 < low <= median <= high
        assert found["host_us"] > 0
        assert (found["peak_bytes"] is None) == (device == "cpu")
    assert row["providers"]["addmm_activation"] == {"skipped": "inference only"}
    assert "first 1 cases" in result["rows"][1]["providers"][TUNED]["skipped"]
    assert str(path) in capsys.readouterr().out


def test_the_report_reads_what_a_run_writes(tmp_path, monkeypatch):
    head = runner.machine() | {"gpu": "none, in a test"}
    monkeypatch.setattr(runner, "machine", lambda: head)
    monkeypatch.setattr(runner, "PROVIDERS", {**runner.PROVIDERS, "epilogue": wrong(QUICK["epilogue"])})
    runner.run("wrong", SUITE._replace(cases=SUITE.cases[:1]), "cpu", tmp_path)
    monkeypatch.setattr(runner, "PROVIDERS", QUICK)
    runner.run("tiny", SUITE._replace(tuned=0, cases=SUITE.cases[1:]), "cpu", tmp_path)
    (results,), left_out = load(tmp_path)
    assert left_out == []
    assert results.rows.keys() == {*SUITE.cases}
    assert results.rows[CASE].absent["epilogue"].startswith("failed: ")
    assert all(row.ratio("eager") and row.of_roof() for case, row in results.rows.items() if case != CASE)
    text = report.text(results, table)
    assert "ours failed in 1 more" in text
    assert str(SUITE.cases[0]) in text


@pytest.mark.parametrize("mode", MODES)
def test_who_is_wrong_gets_no_time(mode, device, capsys):
    case = CASE._replace(mode=mode)
    providers = {**QUICK, "epilogue": wrong(QUICK["epilogue"]), TUNED: Provider(lambda case: None, broken)}
    row = runner.measured(case, device, providers)
    found = row["providers"]
    assert found["epilogue"]["failed"].startswith("y: ")
    assert found[TUNED] == {"failed": "RuntimeError: no such kernel"}
    assert all("us" in found[name] for name in ("eager", "cublas"))
    assert runner.status({"rows": [row], "not_run": []}) == 1
    assert "1 cases: 1 failed; 0 more" in capsys.readouterr().out
    found["epilogue"] = found["eager"]
    assert runner.status({"rows": [row], "not_run": ["later"]}) == 0
    assert "1 cases: 0 failed; 1 more" in capsys.readouterr().out


def test_without_eager_nobody_is_judged(device):
    row = runner.measured(CASE, device, {**QUICK, "eager": Provider(lambda case: None, broken)})
    assert row["providers"]["eager"] == {"failed": "RuntimeError: no such kernel"}
    assert "eager failed" in row["providers"]["epilogue"]["skipped"]
    assert "us" in row["providers"]["cublas"]


def test_what_the_time_does_not_suffice_for_is_listed(tmp_path, device):
    result = runner.run("tiny", SUITE._replace(seconds=-1), device, tmp_path)
    assert result["rows"] == []
    assert result["not_run"] == [str(case) for case in SUITE.cases]
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text()) == result


def test_each_case_has_its_precision(device, monkeypatch):
    seen = []

    def call(case, operands):
        seen.append(torch.get_float32_matmul_precision())
        return QUICK["eager"].call(case, operands)

    before = torch.get_float32_matmul_precision()
    for precision in ("tf32", "ieee"):
        case = CASE._replace(dtype="float32", precision=precision)
        runner.measured(case, device, {"eager": Provider(lambda case: None, call)})
    assert seen == ["high", "highest"]
    with pytest.raises(RuntimeError), runner.float32_products("tf32"):
        raise RuntimeError
    assert torch.get_float32_matmul_precision() == before


def test_the_summary_says_the_ratios():
    results = {"eager": {"us": [9.0, 12.0, 13.0]}, "epilogue": {"us": [9.0, 10.0, 11.0]}, "quack": {"failed": "x"}}
    assert runner.summary(results) == "10.0 us; relative to it: eager 1.20, quack failed"
    assert runner.summary({"epilogue": {"failed": "y: wrong"}}) == "failed: y: wrong"


def test_without_a_gpu_the_plan_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(runner, "PROVIDERS", PROVIDERS)
    assert cli.main(["bench", "--suite", "smoke", "--op", "glu", "mlp"]) == 0
    printed = capsys.readouterr().out
    cases = [case for case in SUITES["smoke"].cases if case.op in ("glu", "mlp")]
    assert f"{len(cases)} cases, of which those run that begin within 2.5 minutes" in printed
    assert all(f"{case}: eager, epilogue" in printed for case in cases)
    assert not any(str(case) in printed for case in SUITES["smoke"].cases if case not in cases)
    assert "inference only" in printed


def test_the_command_knows_every_suite_and_operation(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    printed = capsys.readouterr().out
    assert f"{{{','.join(SUITES)}}}" in printed
    assert all(case.op in printed for case in SUITES["smoke"].cases)


@pytest.mark.parametrize("arguments", ["--plot", "--readme README.md"])
def test_what_has_no_result_is_said(arguments):
    with pytest.raises(SystemExit, match=r"give --(json|report) DIR"):
        cli.main(["bench", *arguments.split()])


def test_the_minutes_are_the_suites_or_the_callers(monkeypatch):
    asked = []
    monkeypatch.setattr(runner, "main", lambda name, ops, directory, seconds: asked.append(seconds) or 0)
    monkeypatch.setattr(bandwidth, "main", lambda path, seconds: asked.append(seconds) or 0)
    for command in ("bench", "bench --minutes 1.5", "bandwidth", "bandwidth --minutes 2"):
        assert cli.main(command.split()) == 0
    assert asked == [None, 90, pytest.approx(200), 120]


def test_the_report_is_asked_for(monkeypatch, tmp_path):
    calls = []
    (tmp_path / "bench-smoke.json").touch()
    monkeypatch.setattr(report, "main", lambda *arguments: calls.append(arguments) or 3)
    monkeypatch.setattr(runner, "main", lambda name, ops, directory, seconds: 0)
    assert cli.main(["bench", "--report", str(tmp_path), "--readme", "README.md"]) == 3
    assert cli.main(["bench", "--json", str(tmp_path), "--plot"]) == 3
    assert [(directory, readme and str(readme), plots) for directory, readme, plots in calls] == [
        (tmp_path, "README.md", False),
        (tmp_path, None, True),
    ]
