"""Check the pointwise kernels of CuPy and Triton, forward and backward, against float64, then time them in turns with a device-to-device
copy that moves as many bytes. Exit status 1 where a result is wrong. Without a GPU: list what would be measured."""

import argparse
from pathlib import Path

from epilogue.benchmarks.commands import minutes, need

HELP = "the pointwise kernels against a copy of as many bytes"
EXAMPLES = """\
  epilogue bandwidth           hold the pointwise kernels against a copy of as many bytes, on a GPU
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to FILE, again after each case")
    parser.add_argument(
        "--minutes", type=minutes, metavar="N", default=10 / 3, help="after which no case begins (default 3.3)"
    )


def run(args: argparse.Namespace) -> int:
    need("bandwidth", "bench", {"tqdm": "tqdm"})
    from epilogue.benchmarks.machine import bandwidth

    return bandwidth.main(args.json, 60 * args.minutes)
