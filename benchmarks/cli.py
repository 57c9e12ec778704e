"""The command line: `epilogue demo`, `epilogue doctor`, `epilogue memory`, … Each command is a module of commands/."""

import argparse
import difflib
import importlib
import io
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import epilogue
from epilogue import backends
from epilogue.benchmarks import commands
from epilogue.benchmarks.commands import FILES

COMMANDS = {
    module.name.replace("_", "-"): importlib.import_module(f"{commands.__name__}.{module.name}")
    for module in pkgutil.iter_modules(commands.__path__)
}


COMPLETION = """
tab completion, once the extra "bench" or "demo" is installed:
  eval "$(epilogue --print-completion bash)"    in ~/.bashrc; for zsh in ~/.zshrc, with zsh in place of bash
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; without one print what there is."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a line appears when it is printed, in a file or a pipe too
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        return _run(argv)
    except BrokenPipeError:  # `epilogue doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(argv: list[str]) -> int:
    parser = _parser()
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        parser.error(_unknown(argv[0]))
    args = parser.parse_args(argv or ["--help"], argparse.Namespace(argv=argv))
    try:
        backends.chosen()
    except ValueError as error:
        if args.run is not COMMANDS["doctor"].run:  # which says what is wrong itself, and all the rest
            raise SystemExit(f"epilogue: {error}; `epilogue doctor` says what runs here") from error
    return args.run(args)


def _unknown(command: str) -> str:
    if command in epilogue.__all__:
        return f"{command} is a function of Python: import epilogue; help(epilogue.{command})"
    close = difflib.get_close_matches(command.replace("_", "-"), COMMANDS, n=1)
    return f"there is no command {command!r}; " + (
        f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
    )


class _PrintCompletion(argparse.Action):
    """Print a shell's script, made of the parser as it is."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        commands.need("--print-completion", "bench", {"shtab": "shtab"})
        import shtab

        print(shtab.complete(parser, values))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "epilogue",
        description="Fused linear + activation kernels for PyTorch.",
        epilog="examples:\n" + "".join(command.EXAMPLES for command in COMMANDS.values()) + COMPLETION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"epilogue {epilogue.__version__}")
    parser.add_argument(
        "--print-completion", choices=("bash", "zsh"), action=_PrintCompletion,
        help="the shell's script for tab completion, which see below",
    )  # fmt: skip
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.HELP, description=command.__doc__)
        command.add_options(subparser)
        for option in subparser._actions:
            if option.type is Path:
                option.complete = FILES  # type: ignore[attr-defined]
        subparser.set_defaults(run=command.run)
    return parser
