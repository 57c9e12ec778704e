"""The pointwise kernels' bandwidth: bytes by hand, who gets no time, what is written and said; with plain torch in place of kernels.

The backends' own kernels are in tests/kernels/cupy and tests/kernels/triton, under this file's name.
"""

import functools
import json
import types

import pytest
import torch

pytest.importorskip("tqdm")
from epilogue import eager
from epilogue.backends import Backend
from epilogue.benchmarks import cli, timing
from epilogue.benchmarks.machine import bandwidth
from epilogue.benchmarks.machine.bandwidth import BACKWARD, FORWARD, MLP, PASSES, PointwiseCase

CASE = PointwiseCase(MLP, "gelu", "bfloat16", 24, 10)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(timing, "measure", functools.partial(timing.measure, seconds=0.01))


def act_fwd(z, y, signs, applied):
    act, values, gated, dropout = applied
    assert (signs, dropout) == (None, None)
    operands = z.chunk(2, 1) if gated else (z,)
    y.copy_(eager.apply(act.gated if gated else act, values, *operands))


def act_bwd(dy, saved, keep, applied, needs):
    """With the kept y of relu in place of z, since relu'(y) = relu'(z)."""
    act, values, gated, _ = applied
    assert keep == ("output" if act.name == "relu" else "input")
    z = saved.float().requires_grad_()
    h = eager.apply(act.gated if gated else act, values, *(z.chunk(2, 1) if gated else (z,)))
    (dz,) = torch.autograd.grad(h, z, dy.float())
    results = (dz.to(dy.dtype), h.detach().to(dy.dtype), dz.sum(0), None)
    return tuple(result if needed else None for result, needed in zip(results, needs, strict=True))


PLAIN = types.SimpleNamespace(act_fwd=act_fwd, act_bwd=act_bwd)


@pytest.mark.parametrize(
    ("case", "count"),
    [
        (PointwiseCase(FORWARD, "gelu", "bfloat16", 8192, 4096), 134_217_728),  # z, y
        (PointwiseCase(FORWARD, "swiglu", "float32", 8192, 14336), 1_409_286_144),  # gate, up, y
        (PointwiseCase(BACKWARD, "gelu", "bfloat16", 8192, 4097), 201_375_744),  # dy, z, dz
        (PointwiseCase(BACKWARD, "relu", "float16", 8192, 4096), 201_326_592),  # dy, y, dz
        (PointwiseCase(MLP, "gelu", "float16", 8192, 4096), 268_451_840),  # dy, z, dz, h and 4096 sums of 4 bytes
        (PointwiseCase(MLP, "relu", "bfloat16", 8192, 4096), 201_342_976),  # dy, h, dz and the sums
        (
            PointwiseCase(MLP, "swiglu", "float32", 8192, 14336),
            2_818_686_976,
        ),  # dy, gate, up, dgate, dup, h and 28672 sums
    ],
)
def test_the_bytes_by_hand(case, count):
    assert case.bytes == count


def test_every_kind_is_measured():
    kinds = {(case.what, case.activation, case.dtype, case.columns % 8 == 0) for case in bandwidth.CASES}
    assert len(kinds) == len(PASSES) * len(bandwidth.CLASSES) * 3 * 2
    assert bandwidth.CASES[0].dtype == "bfloat16"  # the time may not suffice for all


@pytest.mark.parametrize("activation", bandwidth.CLASSES)
@pytest.mark.parametrize("what", PASSES)
def test_who_is_right_is_timed_beside_the_copy(what, activation, device, monkeypatch):
    monkeypatch.setattr(bandwidth, "STRIP", 4)
    case = CASE._replace(what=what, activation=activation)
    row = bandwidth.measured(case, {"one": PLAIN, "other": PLAIN}, device)
    assert row == {**case._asdict(), "bytes": case.bytes, "results": row["results"]}
    assert row["results"].keys() == {"copy", "one", "other"}
    assert row["results"]["copy"]["of_copy"] == 1
    for found in row["results"].values():
        low, median, high = found["us"]
        assert 0 < low <= median <= high
        assert found["gbps"] == round(case.bytes / median / 1e3, 1)


def test_the_copy_moves_as_many_bytes(device, monkeypatch):
    sizes = []

    def measure(calls, device):
        target = calls["copy"]()
        sizes.append(2 * target.numel() * target.element_size())  # read and written
        return {name: timing.Timing(1.0, 2.0, 3.0) for name in calls}

    monkeypatch.setattr(timing, "measure", measure)
    found = bandwidth.measured(CASE, {"one": PLAIN}, device)
    assert sizes == [CASE.bytes] == [4 * 2 * 24 * 10 + 4 * 10]
    assert found["results"]["one"] == {"us": (1.0, 2.0, 3.0), "gbps": round(CASE.bytes / 2000, 1), "of_copy": 1.0}


def spoilt(which, change):
    """The kernels with one result changed."""

    def forward(z, y, *arguments):
        act_fwd(z, y, *arguments)
        y.copy_(change(y))

    def backward(*arguments):
        found = list(act_bwd(*arguments))
        found[which] = change(found[which])
        return found

    return types.SimpleNamespace(act_fwd=forward, act_bwd=backward)


def last_column(tensor):
    """The last column never written, as by a kernel that stops at a multiple of its vectors."""
    tensor = tensor.clone()
    tensor[..., -1] = torch.nan
    return tensor


@pytest.mark.parametrize("change", [lambda t: 1.1 * t, last_column], ids=["scaled", "unfinished"])
@pytest.mark.parametrize(
    ("what", "which", "message"),
    [(FORWARD, 0, "y: "), (MLP, 0, "the gradient of z: "), (MLP, 1, "y: "), (MLP, 2, "the gradient of bias: ")],
)
def test_who_is_wrong_gets_no_time(what, which, message, change, device):
    case = CASE._replace(what=what, dtype="float32")
    row = bandwidth.measured(case, {"right": PLAIN, "wrong": spoilt(which, change)}, device)
    assert row["results"]["wrong"].keys() == {"failed"}
    assert row["results"]["wrong"]["failed"].startswith(message)
    assert {"us", "gbps", "of_copy"} == row["results"]["right"].keys()


def test_every_strip_of_columns_is_checked(device, monkeypatch):
    monkeypatch.setattr(bandwidth, "STRIP", 4)
    row = bandwidth.measured(CASE, {"one": spoilt(0, last_column)}, device)
    assert row["results"]["one"]["failed"].startswith("the gradient of z: ")


def test_a_result_that_is_missing_is_wrong(device):
    row = bandwidth.measured(CASE, {"one": spoilt(1, lambda h: None)}, device)
    assert "NoneType" in row["results"]["one"]["failed"]


def test_a_backend_that_breaks_stops_no_other(device):
    def breaks(*arguments):
        raise RuntimeError("no such kernel\nand a long story")

    broken = types.SimpleNamespace(act_bwd=breaks)
    row = bandwidth.measured(CASE, {"broken": broken, "one": PLAIN}, device)
    assert row["results"]["broken"] == {"failed": "RuntimeError: no such kernel"}
    assert "us" in row["results"]["one"]


def test_a_run_is_written(tmp_path, device):
    path, cases = tmp_path / "new" / "bandwidth.json", (CASE, CASE._replace(what=FORWARD))
    rows = bandwidth.run(cases, {"one": PLAIN}, device, path, 60)
    written = json.loads(path.read_text())
    assert {"date", "cpu", "gpu", "driver", "versions", "commit", "target", "rows", "not_run"} == written.keys()
    assert (written["target"], written["not_run"]) == (0.85, [])
    assert [row["what"] for row in rows] == [row["what"] for row in written["rows"]] == [MLP, FORWARD]
    assert written["rows"][0]["results"]["one"]["us"] == list(rows[0]["results"]["one"]["us"])


def test_what_the_time_does_not_suffice_for_is_listed(tmp_path, device, monkeypatch):
    ticks = iter([0.0, 0.0, 9.0])
    monkeypatch.setattr(bandwidth, "time", types.SimpleNamespace(monotonic=lambda: next(ticks)))
    path = tmp_path / "bandwidth.json"
    assert len(bandwidth.run((CASE, CASE._replace(what=FORWARD)), {"one": PLAIN}, device, path, 5)) == 1
    assert json.loads(path.read_text())["not_run"] == ["forward, gelu, bfloat16, 24 x 10"]


def made_up(activation, **results):
    copy = {"us": (9.0, 10.0, 11.0), "gbps": 3000.4, "of_copy": 1.0}
    case = PointwiseCase(FORWARD, activation, "bfloat16", 8192, 4096)
    return {**case._asdict(), "bytes": case.bytes, "results": {"copy": copy, **results}}


def timed(us, gbps, share):
    return {"us": (us - 1, us, us + 1), "gbps": gbps, "of_copy": share}


ROWS = [
    made_up("relu", cupy=timed(11.0, 2727.6, 0.909), triton=timed(12.0, 2500.3, 0.849)),
    made_up("gelu", cupy=timed(11.8, 2542.7, 0.85), triton={"failed": "y: largest error 1.0e+00, eager's 1.0e-03"}),
]


def test_the_table_says_what_is_below():
    heading, relu, gelu = bandwidth.cells(ROWS, ["cupy", "triton"])
    assert heading[4:] == ("copy, GB/s", "cupy, us", "GB/s", "of the copy", "triton, us", "GB/s", "of the copy")
    shared = ("bfloat16", "8192 x 4096", "3000")
    assert relu == (FORWARD, "relu", *shared, "11.0", "2728", "90.9%", "12.0", "2500", "84.9%, below")
    assert gelu[:8] == (FORWARD, "gelu", *shared, "11.8", "2543", "85.0%")
    assert gelu[8:] == ("FAILED: y: largest error 1.0e+00, eager's 1.0e-03", "", "")


def test_the_verdict():
    assert bandwidth.verdict(ROWS, "cupy") == "cupy: 2 of 2 cases reach 85% of the copy, the lowest 85.0%"
    assert bandwidth.verdict(ROWS, "triton") == "triton: 0 of 2 cases reach 85% of the copy, the lowest 0.0%"


@pytest.fixture
def pretended(monkeypatch):
    """Makes the command believe in a GPU, in these refusals of the backends, and in what it measures there."""

    def pretend(**refusals):
        def run(cases, backends, device, path, seconds):
            assert (cases, device, path) == (bandwidth.CASES, "cuda", None)
            return [{**row, "results": {n: row["results"][n] for n in ("copy", *backends)}} for row in ROWS]

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch, "empty", lambda *size, **options: None)
        monkeypatch.setattr(bandwidth, "run", run)
        monkeypatch.setattr(bandwidth, "BACKENDS", tuple(refusals))
        backends = {name: Backend(None, lambda *of, reason=reason: reason, object) for name, reason in refusals.items()}
        monkeypatch.setattr(bandwidth, "kernels", backends.__getitem__)

    return pretend


def test_a_wrong_result_is_the_exit_status(pretended, capsys):
    pretended(cupy=None, triton=None)
    assert cli.main(["bandwidth"]) == 1
    printed = capsys.readouterr().out
    assert "84.9%, below" in printed
    assert "cupy: 2 of 2 cases" in printed
    assert "triton: 0 of 2 cases" in printed
    assert f"2 cases, {len(bandwidth.CASES) - 2} more for which there was no time" in printed


def test_a_backend_that_is_not_there_is_said(pretended, capsys):
    pretended(cupy=None, triton="triton is not installed")
    assert cli.main(["bandwidth"]) == 0
    assert "\ntriton: triton is not installed\n" in capsys.readouterr().out
    pretended(cupy="CuPy is not installed", triton="triton is not installed")
    with pytest.raises(SystemExit, match="no kernel runs here, CuPy is not installed; triton is not installed"):
        cli.main(["bandwidth"])


def test_without_a_gpu_the_cases_are_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bandwidth", "--json", str(tmp_path / "bandwidth.json")]) == 0
    first, *cases = capsys.readouterr().out.splitlines()
    assert first.startswith("There is no GPU here.")
    assert cases == [str(case) for case in bandwidth.CASES]
    assert not (tmp_path / "bandwidth.json").exists()
