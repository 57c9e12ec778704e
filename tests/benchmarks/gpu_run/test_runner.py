"""The run on a GPU: its steps one by one, each with its limit, whatever becomes of them; here with steps that need no GPU.

The clock is the tests' own.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from epilogue.benchmarks import cli
from epilogue.benchmarks.gpu_run import runner
from epilogue.benchmarks.gpu_run.folder import Folder, Outcome
from epilogue.benchmarks.gpu_run.steps import Step, command_of


def python(name, code, minutes=1.0, needs=(), *arguments):
    return Step(name, minutes, (sys.executable, "-c", code, *arguments), needs)


def statuses(outcomes):
    return {outcome.step: outcome.status for outcome in outcomes}


def log(out, name):
    """The text that the step printed."""
    return Folder(out).logs[name]


GOOD = python("good", "import sys; print('out'); print('err', file=sys.stderr)")
BAD = python("bad", "import sys; print('reason'); sys.exit(3)")
ENDLESS = "import time; print('begun', flush=True); time.sleep(600)"
WRITES = python(
    "writes", "import sys, pathlib; pathlib.Path(sys.argv[1], 'a.json').write_text('[1]')", 1.0, (), "{out}"
)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Stands still, however slow the machine; its `now` may be set."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(runner, "time", clock)
    return clock


@pytest.fixture
def over(monkeypatch, clock):
    """The first step's time is up as soon as it has printed something, however long that takes."""

    class Process(subprocess.Popen):
        def __init__(self, command, **kwargs):
            self.log = kwargs["stdout"]
            super().__init__(command, **kwargs)

        def wait(self, timeout=None):
            if clock.now or timeout is None:
                return super().wait(timeout)
            while not os.fstat(self.log.fileno()).st_size and self.poll() is None:
                time.sleep(0.01)
            clock.now = 1e6
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(runner.subprocess, "Popen", Process)


def test_a_failure_stops_no_other(tmp_path, capsys):
    outcomes = runner.run([BAD, GOOD], 60, tmp_path / "new")
    assert statuses(outcomes) == {"bad": "failed: exit status 3", "good": "ok"}
    assert log(tmp_path / "new", "bad") == "reason\n"
    assert sorted(log(tmp_path / "new", "good").split()) == ["err", "out"]
    summary = json.loads((tmp_path / "new" / "summary.json").read_text())
    assert [step["status"] for step in summary["steps"]] == ["failed: exit status 3", "ok"]
    assert {"minutes", "versions", "commit", "gpu", "driver", "date"} <= summary.keys()
    assert "good: ok" in capsys.readouterr().out


@pytest.mark.usefixtures("over")
def test_a_step_over_its_limit_is_ended(tmp_path):
    (outcome,) = runner.run([python("endless", ENDLESS)], 60, tmp_path)
    assert outcome.status == "failed: over its limit of 1 minutes"
    assert outcome.seconds > 0
    assert not outcome.finished


@pytest.mark.usefixtures("over")
def test_the_run_is_over_in_the_midst_of_a_step(tmp_path):
    outcomes = runner.run([python("endless", ENDLESS, 2), GOOD], 1.5, tmp_path)
    assert outcomes[0].status == "stopped: its time was up"
    assert outcomes[1].status == "not run: 0.0 minutes left for it, it needs 0.5"


@pytest.mark.usefixtures("over")
@pytest.mark.parametrize("of_the_run", [signal.default_int_handler, signal.SIG_IGN], ids=["", "under nohup"])
def test_a_step_that_is_ended_may_still_speak(of_the_run, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "PATIENCE", 600)
    before = signal.signal(signal.SIGINT, of_the_run)
    code = "import time\ntry: print('begun', flush=True); time.sleep(600)\nexcept KeyboardInterrupt: print('ended')"
    try:
        runner.run([python("tests", code)], 60, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert log(tmp_path, "tests") == "begun\nended\n"


def test_one_that_will_not_end_is_killed_with_its_children(monkeypatch):
    monkeypatch.setattr(runner, "PATIENCE", 0.1)
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print(child.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as process:
        state = Path(f"/proc/{int(process.stdout.readline())}/stat")
        assert state.exists()
        runner.stop(process)
    assert process.returncode == -signal.SIGKILL
    while state.exists() and state.read_text().split()[2] != "Z":  # for ever if the child goes on
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (runner.STOPPED, "stopped: its time was up"),
        (runner.STOPPED_FAILED, "failed: some tests, until its time was up"),
        (None, "stopped: its time was up"),
    ],
)
def test_what_stopped_in_time_is_not_finished(code, status):
    assert runner.verdict(code, GOOD, 0.5) == status
    assert not Outcome("good", 1.0, status, "", "", "").finished


def test_a_long_step_leaves_its_time_to_a_shorter_one(tmp_path):
    outcomes = runner.run([python("long", "1", minutes=100), GOOD], 40, tmp_path)
    assert statuses(outcomes) == {"long": "not run: 40.0 minutes left for it, it needs 50", "good": "ok"}
    assert "long" not in Folder(tmp_path).logs


def test_what_a_step_needs(tmp_path):
    outcomes = runner.run(
        [
            python("one", "1", needs=("no-such-tool", "nor-file", "nosuchpackage")),
            python("two", "1", needs=("sh", str(tmp_path), "pytest")),
        ],
        60,
        tmp_path,
    )
    assert statuses(outcomes) == {"one": "not run: no-such-tool, nor-file, nosuchpackage not found here", "two": "ok"}


def test_a_step_may_plan_for_less_than_its_limit(tmp_path):
    planner = Step("planner", 10, (sys.executable, "-c", "import sys; print(sys.argv)", "--minutes", "{minutes}"))
    runner.run([planner], 60, tmp_path)
    assert "'--minutes', '8.00'" in log(tmp_path, "planner")
    assert command_of(planner, 5.5, "")[-1] == "4.40"


def test_no_step_sees_the_folder_kernels(tmp_path):
    runner.run([python("safe", "import os; print(os.environ['PYTHONSAFEPATH'])")], 60, tmp_path)
    assert log(tmp_path, "safe") == "1\n"


def test_results_are_joined(tmp_path):
    code = (
        "import json, pathlib, sys; out = pathlib.Path(sys.argv[1]); (out / 'a.json').write_text('{\"x\": 1}'); "
        "(out / 'b.json').write_text('[2]'); (out / 'demo.png').write_bytes(b'png')"
    )
    outcomes = runner.run([python("one", code, 1.0, (), "{out}"), BAD, WRITES], 60, tmp_path)
    assert statuses(outcomes) == {"one": "ok", "bad": "failed: exit status 3", "writes": "ok"}
    found = json.loads((tmp_path / "results.json").read_text())
    assert found == {"one": {"a.json": {"x": 1}, "b.json": [2]}, "writes": {"a.json": [1]}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.png", "log.txt", "results.json", "summary.json"]
    assert (tmp_path / "demo.png").read_bytes() == b"png"
    assert outcomes[2].command.endswith(" '{out}'")  # the same in every run


def test_what_is_no_json_is_said(tmp_path):
    code = "import sys, pathlib; pathlib.Path(sys.argv[1], 'a.json').write_text('[1')"
    runner.run([python("one", code, 1.0, (), "{out}")], 60, tmp_path)
    assert Folder(tmp_path).results["one"]["a.json"].startswith("no JSON: ")


def test_a_finished_step_is_not_repeated(tmp_path, capsys):
    first = runner.run([WRITES, BAD], 60, tmp_path)
    capsys.readouterr()
    assert runner.run([WRITES, BAD, GOOD], 60, tmp_path)[:2] == first
    said = capsys.readouterr().out
    assert "writes: ok, from an earlier run; --force repeats it" in said
    assert "bad: failed: exit status 3, from an earlier run" in said
    assert "good: ok" in said
    folder = Folder(tmp_path)
    assert [*folder.outcomes] == ["writes", "bad", "good"]
    assert folder.results == {"writes": {"a.json": [1]}}
    assert folder.logs["bad"] == "reason\n"
    runner.run([WRITES], 60, tmp_path, force=True)
    assert "from an earlier run" not in capsys.readouterr().out
    assert [*Folder(tmp_path).outcomes] == ["bad", "good", "writes"]


@pytest.mark.parametrize("change", ["command", "code", "unfinished"])
def test_what_changed_is_repeated(change, tmp_path, monkeypatch, capsys):
    runner.run([BAD], 60, tmp_path)
    step = BAD
    if change == "command":
        step = python("bad", "print('other')")
    elif change == "code":
        monkeypatch.setattr(runner, "identity", lambda: "another")
    else:
        summary = json.loads((tmp_path / "summary.json").read_text())
        summary["steps"][0]["status"] = "running"  # as a run leaves it that was killed
        (tmp_path / "summary.json").write_text(json.dumps(summary))
    runner.run([step], 60, tmp_path)
    assert "from an earlier run" not in capsys.readouterr().out


def test_no_time_takes_nothing_away(tmp_path, monkeypatch):
    runner.run([WRITES], 60, tmp_path)
    monkeypatch.setattr(runner, "identity", lambda: "another")
    (outcome,) = runner.run([WRITES], 0.001, tmp_path)
    assert outcome.status == "ok"
    assert Folder(tmp_path).results == {"writes": {"a.json": [1]}}


def test_the_folder_is_written_while_a_step_runs(tmp_path, monkeypatch):
    """A run that is killed leaves the files of the steps before, and those of the running one so far."""
    seen = []
    monkeypatch.setattr(runner, "SAVED", 0.01)
    save = Folder.save

    def saved(self):
        save(self)
        seen.append((statuses(self.outcomes.values()), dict(self.results)))
        if self.results.get("endless"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Folder, "save", saved)
    code = (
        "import os, sys, time; path = sys.argv[1] + '/a.json'; open(path + '.partial', 'w').write('[2]'); "
        "os.replace(path + '.partial', path); time.sleep(600)"
    )
    with pytest.raises(KeyboardInterrupt):
        runner.run([WRITES, python("endless", code, 1.0, (), "{out}")], 60, tmp_path)
    assert ({"writes": "ok", "endless": "running"}, {"writes": {"a.json": [1]}, "endless": {"a.json": [2]}}) in seen
    assert statuses(Folder(tmp_path).outcomes.values())["endless"] == "stopped: the run was ended"


def test_a_long_log_keeps_its_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("epilogue.benchmarks.gpu_run.folder.LOG", 400)
    runner.run([python("long", "print('head' + 'x' * 1000 + 'tail', end='')")], 60, tmp_path)
    text = log(tmp_path, "long")
    assert text == f"head{'x' * 96}\n[608 bytes left out]\n{'x' * 296}tail"


def test_a_log_may_hold_anything(tmp_path):
    code = "import sys; sys.stdout.buffer.write(b'a\\xff\\fb: c\\n')"
    runner.run([python("one", code), GOOD], 60, tmp_path)
    assert log(tmp_path, "one") == "a\nb: c\n"
    assert [*Folder(tmp_path).logs] == ["one", "good"]


@pytest.mark.parametrize(
    ("steps", "status"), [([GOOD], 0), ([GOOD, BAD], 1), ([python("none", "1", needs=("no-such-tool",))], 0)]
)
def test_the_exit_status(steps, status, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runner.torch.cuda, "get_device_name", lambda: "a test's")
    monkeypatch.setattr(runner.signal, "signal", lambda *what: None)
    monkeypatch.setattr(runner, "steps", lambda: steps)
    assert cli.main(["gpu-run", "--minutes", "60", "--out", str(tmp_path)]) == status
    printed = capsys.readouterr().out
    assert "  seconds  status" in printed
    assert f"log.txt, results.json, summary.json in {tmp_path}" in printed


def test_an_old_wheel_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.torch.cuda, "is_available", lambda: True)
    monkeypatch.chdir(tmp_path)
    assert runner.stale() is None  # no checkout here
    (tmp_path / "nn").mkdir()
    package = Path(runner.epilogue.__file__).parent
    (tmp_path / "nn" / "mlp.py").write_bytes((package / "nn" / "mlp.py").read_bytes())
    assert runner.stale() is None
    (tmp_path / "nn" / "linear.py").write_text("changed")
    with pytest.raises(SystemExit, match=r"nn/linear\.py is not what is installed"):
        cli.main(["gpu-run", "--out", str(tmp_path)])


def test_code_and_tests_have_one_identity(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without = runner.identity()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text("1")
    one = runner.identity()
    (tmp_path / "tests" / "test_one.py").write_text("2")
    assert len({without, one, runner.identity()}) == 3
    monkeypatch.setattr(runner, "versions", lambda: {"triton": "another"})
    assert runner.identity() != one
