"""Measure the host's cost of one 4x8 float32 call, eager F.gelu(F.linear(x, w, b)) against epilogue.linear(x, w, b), and of an MLP stock
and after epilogue.nn.fuse, without grad and forward + backward."""

import argparse
from pathlib import Path

HELP = "what one tiny call costs the host"
EXAMPLES = """\
  epilogue host-cost           what one tiny call costs the host, against plain torch
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurement and what it ran on to FILE")


def run(args: argparse.Namespace) -> int:
    from epilogue.benchmarks.machine import host_cost

    return host_cost.main(args.json)
