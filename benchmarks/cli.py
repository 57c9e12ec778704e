"""The command line: `epilogue demo`, `epilogue doctor`, `epilogue memory`, … Each command is a module of commands/."""

import argparse
import importlib
import io
import pkgutil
import sys
from collections.abc import Sequence

import epilogue
from epilogue.benchmarks import commands

COMMANDS = {
    module.name.replace("_", "-"): importlib.import_module(f"{commands.__name__}.{module.name}")
    for module in pkgutil.iter_modules(commands.__path__)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; without one print what there is."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a line appears when it is printed, in a file or a pipe too
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser().parse_args(argv or ["--help"], argparse.Namespace(argv=argv))
    return args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "epilogue",
        description="Fused linear + activation kernels for PyTorch.",
        epilog="examples:\n" + "".join(command.EXAMPLES for command in COMMANDS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"epilogue {epilogue.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.HELP, description=command.__doc__)
        command.add_options(subparser)
        subparser.set_defaults(run=command.run)
    return parser
