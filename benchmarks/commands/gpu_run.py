"""Run the kernel tests, compute-sanitizer over them, the benchmarks, the tuning, the training step, each in a process of its own with its
own limit, the most valuable first. In the folder: summary.json, results.json, log.txt, demo.png, written again every few seconds. With the
same folder once more it goes on where it ended. Exit status 1 where a step failed. Without a GPU list the steps. To be called at the root
of the repository; needs no network."""

import argparse
from pathlib import Path

from epilogue.benchmarks.commands import minutes, need

HELP = "all that needs a GPU, in one command"
EXAMPLES = """\
  epilogue gpu-run --steps doctor,kernels,memcheck --minutes 9    on a machine with a GPU: tests, benchmarks, tuning, step by step
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--steps", type=lambda text: text.split(","), metavar="A,B", help="these alone, in this order (default: all)"
    )
    parser.add_argument(
        "--minutes", type=minutes, metavar="N", default=60.0, help="how long it may take altogether (default 60)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("out/gpu"), help="the folder (default %(default)s)"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="repeat the steps that came to their end in DIR, with the same code and GPU",
    )


def run(args: argparse.Namespace) -> int:
    need("gpu-run", "test", {"pytest": "pytest"})
    from epilogue.benchmarks.gpu_run import runner

    return runner.main(args.steps, args.minutes, args.out, args.force)
