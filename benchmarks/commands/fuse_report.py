"""Build a model on the meta device, where it takes no memory, and show what epilogue.nn.fuse would fuse in it, what it would not, and why.
Nothing is downloaded."""

import argparse
from pathlib import Path

from epilogue.benchmarks.commands import FILES, need

HELP = "what epilogue.nn.fuse finds in a model"
EXAMPLES = """\
  epilogue fuse-report config.json    what fuse finds in that transformers model; module:function for one of your own
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    target = parser.add_argument(
        "target", metavar="CONFIG.json | MODULE:FUNCTION",
        help="a local transformers config, or a function without arguments that returns a model, importable from here",
    )  # fmt: skip
    target.complete = FILES  # type: ignore[attr-defined]


def run(args: argparse.Namespace) -> int:
    if args.target.endswith(".json"):
        need("fuse-report", "demo", {"transformers": "transformers"})
        if not Path(args.target).is_file():
            raise SystemExit(f"epilogue fuse-report: there is no file {args.target}")
    elif not all(args.target.partition(":")):
        raise SystemExit(f"epilogue fuse-report: {args.target} is neither a .json file nor module:function")
    from epilogue.benchmarks.offline import fuse_report

    return fuse_report.main(args.target)
