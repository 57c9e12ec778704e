"""The steps of the run on a GPU: what each runs, that its command is understood, and that together they fit into their minutes."""

import math
import sys
from pathlib import Path

import pytest

from epilogue.benchmarks import cli
from epilogue.benchmarks.gpu_run import runner
from epilogue.benchmarks.gpu_run.folder import LOG
from epilogue.benchmarks.gpu_run.steps import TENSORS, VALUABLE, Step, allowance, command_of, named, refusal, steps


def test_what_can_plan_shares_what_is_left():
    planner = Step("planner", 8, ("run", "{minutes}"))
    fixed, last = Step("fixed", 4, ("run",)), Step("last", 4, ("run", "{minutes}"))
    assert allowance(planner, 8, [fixed, last]) == 4  # 8 of 16 minutes' worth
    assert allowance(planner, 100, [fixed, last]) == 8
    assert allowance(fixed, 4, [last]) == 3  # and a minute for the last
    assert allowance(fixed, 2.5, [last]) == 2  # the first come first
    assert allowance(last, -1, []) == 0
    assert refusal(planner, 1.0) is None
    assert refusal(planner, 0.9) == "0.9 minutes left for it, it needs 1"
    assert refusal(fixed, 1.9) == "1.9 minutes left for it, it needs 2"


@pytest.mark.parametrize("minutes", [9, 9.5, 30])
@pytest.mark.parametrize(
    "names",
    ["doctor,kernels,memcheck", "bench-smoke,bench-headline", "tune,training,bandwidth,demo"],
)
def test_a_set_of_steps_fits_into_a_call(names, minutes, monkeypatch):
    """Each begins, though every one takes all that it is allowed."""
    monkeypatch.setattr("epilogue.benchmarks.gpu_run.steps.found", lambda need: True)
    todo = named(names.split(","), steps())
    left = float(minutes)
    for index, step in enumerate(todo):
        allowed = allowance(step, left, todo[index + 1 :])
        assert refusal(step, allowed) is None
        left -= allowed
    assert left > -1e-9


def test_all_logs_together_are_small():
    assert len(steps()) * (LOG + 4096) < 16 << 20


def test_any_steps_in_any_order(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner.torch.cuda, "is_available", lambda: False)
    assert cli.main(["gpu-run", "--steps", "memcheck,doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:]] == ["memcheck", "doctor"]
    with pytest.raises(
        SystemExit, match="gpu-run: no step is called 'kernel', ''; there are doctor, kernels, memcheck, "
    ):
        cli.main(["gpu-run", "--steps", "kernel,doctor,"])


def test_without_a_gpu_the_steps_are_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(runner, "run", None)
    monkeypatch.setattr("epilogue.benchmarks.gpu_run.steps.found", lambda need: need != "compute-sanitizer")
    assert cli.main(["gpu-run", "--out", str(tmp_path / "new")]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for step in steps():
        assert step.command[-1] in lines[step.name]
        assert ("compute-sanitizer  " in lines[step.name]) == ("compute-sanitizer" in step.needs)
    assert not (tmp_path / "new").exists()


def test_the_commands_are_understood(tmp_path):
    """Our own commands, by our own parser."""
    parser, understood = cli._parser(), set()
    for step in steps():
        command = command_of(step, math.pi, str(tmp_path))
        if command[:3] == [sys.executable, "-m", "epilogue"]:
            parser.parse_args(command[3:])
            understood.add(command[3])
        else:
            assert {"--minutes", "--failures", "epilogue.benchmarks.gpu_run.failures"} <= set(command)
    assert understood == {"doctor", "bench", "bandwidth", "tune", "training", "host-cost", "memory", "demo"}


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "many"])
def test_minutes_are_more_than_none(minutes, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["gpu-run", f"--minutes={minutes}"])
    assert stopped.value.code == 2
    assert "more than 0" in capsys.readouterr().err


def test_the_sanitizers_tools():
    commands = {step.name: step.command for step in steps()}
    for name, tool in {"memcheck": "memcheck", "memcheck-cupy": "memcheck", "racecheck": "racecheck"}.items():
        assert commands[name][commands[name].index("--tool") + 1] == tool


@pytest.mark.parametrize("path", [*VALUABLE, TENSORS])
def test_the_tests_that_a_step_names_are_there(path):
    assert (Path(__file__).parents[3] / path).is_file()
