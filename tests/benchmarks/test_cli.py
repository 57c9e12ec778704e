"""The command line: help, early imports, messages for what is missing, the restart for Triton's interpreter."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from epilogue.benchmarks import cli
from epilogue.triton import interpreter_refusal


def run(*command, cwd):
    """A fresh Python, outside the repository, whose folder `kernels` it must not see."""
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def lacks(monkeypatch):
    """Makes a module look uninstalled."""
    find_spec = importlib.util.find_spec

    def uninstall(*names):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else find_spec(name))

    return uninstall


def test_help_needs_no_torch(tmp_path):
    result = run("-c", "import sys, epilogue.benchmarks.cli; assert 'torch' not in sys.modules", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_package_runs_as_a_module(tmp_path):
    result = run("-m", "epilogue", "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "epilogue demo --interpret" in result.stdout


def test_without_a_command_the_commands_are_listed(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"\n    {command}" in printed for command in cli.COMMANDS)


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"epilogue {importlib.metadata.version('epilogue')}\n"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    assert "usage: epilogue" in capsys.readouterr().out


@pytest.mark.parametrize("steps", ["0", "-1", "many"])
def test_steps_must_be_a_positive_number(steps, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo", f"--steps={steps}"])
    assert stopped.value.code == 2
    assert "1 or more" in capsys.readouterr().err


def test_a_missing_extra_is_named(lacks):
    lacks("sklearn", "tqdm", "transformers")
    with pytest.raises(SystemExit, match=r'scikit-learn, tqdm not installed; pip install ".\[demo\]"'):
        cli.main(["demo"])
    with pytest.raises(SystemExit, match=r'transformers, tqdm not installed; pip install ".\[demo\]"'):
        cli.main(["demo", "--model", "bert"])
    with pytest.raises(SystemExit, match=r'epilogue memory: tqdm not installed; pip install ".\[bench\]"'):
        cli.main(["memory"])
    with pytest.raises(SystemExit, match=r'epilogue audit: tqdm not installed; pip install ".\[bench\]"'):
        cli.main(["audit"])
    with pytest.raises(SystemExit, match=r'epilogue bench: tqdm not installed; pip install ".\[bench\]"'):
        cli.main(["bench"])
    with pytest.raises(SystemExit, match=r'epilogue bandwidth: tqdm not installed; pip install ".\[bench\]"'):
        cli.main(["bandwidth"])


def test_the_interpreter_needs_triton(lacks):
    lacks("triton")
    for command in (["demo", "--interpret"], ["audit"], ["memory"]):
        with pytest.raises(SystemExit, match=f"epilogue {' '.join(command)} needs Triton"):
            cli.main(command)


def test_the_interpreter_runs_on_the_cpu():
    with pytest.raises(SystemExit, match="runs on the CPU"):
        cli.main(["demo", "--interpret", "--device", "cuda"])


def test_the_command_restarts_with_tritons_switch(monkeypatch):
    def execve(path, command, environment):
        assert path == command[0] == sys.executable
        assert command[1:3] == ["-m", "epilogue"]
        assert environment["TRITON_INTERPRET"] == "1"
        raise SystemExit(" ".join(command[3:]))

    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr("epilogue.triton.interpreter_refusal", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments in ("demo --interpret --steps 2", "memory --json kept.json"):
        with pytest.raises(SystemExit, match=arguments):
            cli.main(arguments.split())


def test_an_interpreter_that_does_not_work_is_said(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(os, "execve", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(importlib.metadata, "version", {"triton": "3.6.0", "numpy": "2.10.1"}.get)
    for arguments in ("demo --interpret", "memory"):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments.split())
        assert str(stopped.value) == (
            f"epilogue {arguments}: the interpreter of Triton 3.6 does not work with NumPy 2.10; "
            "it needs numpy<2.4, or triton>=3.7"
        )


@pytest.mark.parametrize(
    ("triton", "numpy", "works"),
    [("3.6.0", "2.3.5", True), ("3.6.0", "2.4.0", False), ("3.7.1", "2.5.2", True), ("3.10.0", "2.4.0rc1", True)],
)
def test_which_interpreters_work(triton, numpy, works, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", {"triton": triton, "numpy": numpy}.get)
    assert (interpreter_refusal() is None) == works


def without(module, *arguments, cwd):
    """The command in a Python that lacks the module."""
    call = f"sys.modules[{module!r}] = None; from epilogue.benchmarks import cli; sys.exit(cli.main({arguments!r}))"
    return run("-c", f"import sys; {call}", cwd=cwd)


def test_doctor_speaks_without_torch(tmp_path):
    result = without("torch", "doctor", cwd=tmp_path)
    assert result.returncode == 1
    assert "torch     not installed" in result.stdout
    assert "FAILED: torch is not installed; pip install torch. Until then epilogue serves NumPy arrays" in result.stdout
    assert result.stderr == ""


def test_doctor_speaks_without_triton(tmp_path):
    result = without("triton", "doctor", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "triton    not installed" in result.stdout
    assert re.search("torch.Tensor, CPU, float32 +plain torch operations +triton is not installed", result.stdout)


def test_a_backend_that_does_not_exist(tmp_path, monkeypatch):
    """Doctor says it, and all the rest too; other commands say it in place of a traceback."""
    monkeypatch.setenv("EPILOGUE_BACKEND", "cupi")
    message = "EPILOGUE_BACKEND must be one of triton, cupy, eager; got 'cupi'"
    result = run("-m", "epilogue", "doctor", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.startswith(f"FAILED: {message}. Without that variable:\n\npackage")
    assert "numpy.ndarray" in result.stdout
    result = run("-m", "epilogue", "host-cost", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"epilogue: {message}; `epilogue doctor` says what runs here\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--report", "absent"], "epilogue bench: absent is not there"),
        (["bench", "--report", "file.json"], "epilogue bench: file.json is a file; give the folder that it is in"),
        (["bench", "--report", "."], "epilogue bench: . holds no result, no file called bench-*.json, "),
        (["fuse-report", "nope"], "epilogue fuse-report: nope is neither a .json file nor module:function"),
        (["fuse-report", "nope:"], "epilogue fuse-report: nope: is neither"),
        (["fuse-report", "nope.json"], "epilogue fuse-report: there is no file nope.json"),
    ],
)
def test_nothing_to_report_is_said_before_torch_is_imported(arguments, message, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.json").touch()
    monkeypatch.delitem(sys.modules, "epilogue.benchmarks.bench.report", raising=False)
    monkeypatch.delitem(sys.modules, "epilogue.benchmarks.offline.fuse_report", raising=False)
    with pytest.raises(SystemExit, match=re.escape(message)):
        cli.main(arguments)
    assert not {"epilogue.benchmarks.bench.report", "epilogue.benchmarks.offline.fuse_report"} & {*sys.modules}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_of_the_shell(shell, capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--print-completion", shell])
    assert stopped.value.code in (None, 0)
    script = capsys.readouterr().out
    assert all(command in script for command in cli.COMMANDS)
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("words", "completed"),
    [("epilogue de", "demo"), ("epilogue demo --model l", "llama"), ("epilogue fuse-report con", "config.json")],
)
def test_bash_completes(words, completed, tmp_path, capsys):
    pytest.importorskip("shtab")
    (tmp_path / "config.json").touch()
    with pytest.raises(SystemExit):
        cli.main(["--print-completion", "bash"])
    script = f"""{capsys.readouterr().out}
        COMP_WORDS=({words}) COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
        function=$(complete -p epilogue | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function epilogue "${{COMP_WORDS[-1]}}" "${{COMP_WORDS[-2]}}"
        echo "${{COMPREPLY[@]}}"
    """
    result = subprocess.run(["bash"], input=script, text=True, cwd=tmp_path, capture_output=True, check=True)
    assert result.stdout.split() == [completed]


def test_completion_without_shtab(lacks):
    lacks("shtab")
    with pytest.raises(SystemExit, match=r'--print-completion: shtab not installed; pip install ".\[bench\]"'):
        cli.main(["--print-completion", "bash"])


def test_a_line_is_out_as_soon_as_it_is_printed(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    code = """
import os
from epilogue.benchmarks import cli
cli.COMMANDS["doctor"].run = lambda args: print("one") or os._exit(0)  # without what is in a buffer
cli.main(["doctor"])
"""
    assert run("-c", code, cwd=tmp_path).stdout == "one\n"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("dcotor", "there is no command 'dcotor'; did you mean doctor?"),
        ("fuse_report", "did you mean fuse-report?"),
        ("explain", "explain is a function of Python: import epilogue; help(epilogue.explain)"),
        ("qqq", f"there are {', '.join(cli.COMMANDS)}"),
    ],
)
def test_an_unknown_command(command, says, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([command])
    assert says in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error():
    """As in `epilogue doctor | head -1`."""
    code = "import sys; from epilogue.benchmarks import cli; cli._run = lambda argv: print('x' * 10**6); cli.main([])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
