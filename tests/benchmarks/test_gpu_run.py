"""The run on a GPU: its steps one by one, each with its limit, whatever becomes of them; here with steps that need no GPU."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from epilogue.benchmarks import cli, gpu_run
from epilogue.benchmarks.gpu_run import Step

SHORT = 0.005
"""Minutes."""


def python(name, code, minutes=1.0, needs=()):
    return Step(name, minutes, (sys.executable, "-c", code), needs)


def statuses(outcomes):
    return {outcome.step: outcome.status for outcome in outcomes}


GOOD = python("good", "import sys; print('out'); print('err', file=sys.stderr)")
BAD = python("bad", "import sys; print('reason'); sys.exit(3)")
ENDLESS = "import time; print('begun', flush=True); time.sleep(600)"


def test_a_failure_stops_no_other(tmp_path, capsys):
    outcomes = gpu_run.run([BAD, GOOD], 60, tmp_path / "new")
    assert statuses(outcomes) == {"bad": "failed: exit status 3", "good": "ok"}
    assert (tmp_path / "new" / "bad.log").read_text() == "reason\n"
    assert sorted((tmp_path / "new" / "good.log").read_text().split()) == ["err", "out"]
    summary = json.loads((tmp_path / "new" / "summary.json").read_text())
    assert [step["status"] for step in summary["steps"]] == ["failed: exit status 3", "ok"]
    assert {"minutes", "versions", "commit"} <= summary.keys()
    assert "good: ok" in capsys.readouterr().out


def test_a_step_over_its_limit_is_ended(tmp_path):
    outcomes = gpu_run.run([python("endless", ENDLESS, SHORT), GOOD], 60, tmp_path)
    assert statuses(outcomes) == {"endless": "failed: over its limit of 0.005 minutes", "good": "ok"}
    assert outcomes[0].seconds > 0


def test_a_step_that_is_ended_may_still_speak(tmp_path):
    code = "import time\ntry: time.sleep(600)\nexcept KeyboardInterrupt: print('what failed so far')"
    gpu_run.run([python("tests", code, 10 * SHORT)], 60, tmp_path)
    assert (tmp_path / "tests.log").read_text() == "what failed so far\n"


def test_one_that_will_not_end_is_killed_with_its_children(monkeypatch):
    monkeypatch.setattr(gpu_run, "PATIENCE", 0.1)
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print(child.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as process:
        state = Path(f"/proc/{int(process.stdout.readline())}/stat")
        assert state.exists()
        gpu_run.stop(process)
    assert process.returncode == -signal.SIGKILL
    for _ in range(1000):  # the kernel may take a moment
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.01)
    pytest.fail("the child goes on")


def test_the_run_is_over_in_the_midst_of_a_step(tmp_path):
    minutes = 1.5 * SHORT
    outcomes = gpu_run.run([python("endless", ENDLESS, 2 * SHORT), GOOD], minutes, tmp_path)
    assert outcomes[0].status == "stopped: the run's time was up"
    assert outcomes[1].status == "not run: 0.0 minutes left, it may need 1"


def test_a_long_step_leaves_its_time_to_a_shorter_one(tmp_path):
    outcomes = gpu_run.run([python("long", "1", minutes=100), GOOD], 40, tmp_path)
    assert statuses(outcomes) == {"long": "not run: 40.0 minutes left, it may need 100", "good": "ok"}
    assert not (tmp_path / "long.log").exists()


def test_what_a_step_needs(tmp_path):
    outcomes = gpu_run.run(
        [python("one", "1", needs=("no-such-tool", "nor-file")), python("two", "1", needs=("sh", str(tmp_path)))],
        60,
        tmp_path,
    )
    assert statuses(outcomes) == {"one": "not run: no-such-tool, nor-file not found here", "two": "ok"}


def test_a_step_may_plan_for_less_than_its_limit(tmp_path):
    planner = Step("planner", 10, (sys.executable, "-c", "import sys; print(sys.argv)", "--minutes", "{minutes}"))
    gpu_run.run([planner], 60, tmp_path)
    assert "'--minutes', '8'" in (tmp_path / "planner.log").read_text()
    gpu_run.run([planner], 5.5, tmp_path)
    assert "'--minutes', '5'" in (tmp_path / "planner.log").read_text()


def test_no_step_sees_the_folder_kernels(tmp_path):
    gpu_run.run([python("safe", "import os; print(os.environ['PYTHONSAFEPATH'])")], 60, tmp_path)
    assert (tmp_path / "safe.log").read_text() == "1\n"


@pytest.mark.parametrize(
    ("steps", "status"), [([GOOD], 0), ([GOOD, BAD], 1), ([python("none", "1", needs=("no-such-tool",))], 0)]
)
def test_the_exit_status(steps, status, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_run.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_run, "steps", lambda out: steps)
    assert cli.main(["gpu-run", "--minutes", "1", "--out", str(tmp_path)]) == status
    assert "  seconds  status" in capsys.readouterr().out


def test_without_a_gpu_the_steps_are_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_run.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_run, "run", None)
    assert cli.main(["gpu-run", "--out", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    for step in gpu_run.steps(tmp_path / "new"):
        assert f"{step.name} " in printed
        assert step.command[-1] in printed
    assert not (tmp_path / "new").exists()


def test_the_commands_are_understood(tmp_path):
    """Our own commands, by our own parser."""
    parser, understood = cli._parser(), set()
    for step in gpu_run.steps(tmp_path):
        if step.command[:3] == (sys.executable, "-m", "epilogue"):
            parser.parse_args([word.replace("{minutes}", "5") for word in step.command[3:]])
            understood.add(step.command[3])
    assert understood == {"doctor", "bench", "bandwidth", "tune", "training", "host-cost", "memory", "demo"}


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "many"])
def test_minutes_are_more_than_none(minutes, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["gpu-run", f"--minutes={minutes}"])
    assert stopped.value.code == 2
    assert "more than 0" in capsys.readouterr().err


def test_the_sanitizers_tools(tmp_path):
    steps = {step.name: step.command for step in gpu_run.steps(tmp_path)}
    for name, tool in {"memcheck": "memcheck", "memcheck-cupy": "memcheck", "racecheck": "racecheck"}.items():
        assert steps[name][steps[name].index("--tool") + 1] == tool
