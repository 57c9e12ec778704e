"""Build a model on the meta device, where it takes no memory, and show what epilogue.nn.fuse would fuse in it, what it would not, and why.
Nothing is downloaded."""

import argparse

from epilogue.benchmarks.commands import need

HELP = "what epilogue.nn.fuse finds in a model"
EXAMPLES = """\
  epilogue fuse-report config.json    what fuse finds in that transformers model; module:function for one of your own
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", metavar="CONFIG.json | MODULE:FUNCTION",
        help="a local transformers config, or a function without arguments that returns a model, importable from here",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.target.endswith(".json"):
        need("fuse-report", "demo", {"transformers": "transformers"})
    from epilogue.benchmarks.offline import fuse_report

    return fuse_report.main(args.target)
