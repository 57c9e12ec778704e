"""Count the bytes per token that the feed-forward blocks of public models keep for backward: with stock torch.nn, with torch.compile and
with epilogue. Exact, from the tensors that autograd saves. Without a GPU the kernels run in Triton's interpreter, which takes about four
minutes; --from shows an earlier result at once."""

import argparse
import os
from pathlib import Path

from epilogue.benchmarks.commands import need, need_triton, restart_interpreted

HELP = "the bytes that models' feed-forward blocks keep for backward"
EXAMPLES = """\
  epilogue memory              the bytes that models' feed-forward blocks keep for backward: torch.nn, torch.compile, epilogue
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts and what they ran on to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them relative to eager's")
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="put the table into this README's part about memory"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="count nothing, read what --json wrote"
    )


def run(args: argparse.Namespace) -> int:
    need("memory", "bench", {"matplotlib": "matplotlib", "tqdm": "tqdm"})
    if args.source is None:
        need_triton("memory")
        import torch

        if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
            restart_interpreted("memory", args.argv)
    elif not args.source.is_file():
        raise SystemExit(f"epilogue memory: there is no file {args.source}; --json writes one")
    from epilogue.benchmarks.train import memory

    return memory.main(args.source, args.json, args.plot, args.readme)
