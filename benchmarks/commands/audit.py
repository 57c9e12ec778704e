"""Compile every shipped kernel and config, and every activation in the largest ones, for architectures that need not be here. Prints
registers, stack, spills, shared memory, matrix and TMA instructions, and the epilogue's instructions per element. Exit status 1 where a
kernel is not clean. Takes minutes; a second run finds the compiled kernels in Triton's cache."""

import argparse

from epilogue.benchmarks.commands import need, need_triton

HELP = "compile every kernel without a GPU and show what became of it"
EXAMPLES = """\
  epilogue audit               compile every kernel without a GPU: registers, spills, instructions per element
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    architectures = ("sm_80", "sm_90", "sm_100")
    parser.add_argument(
        "--arch", nargs="+", choices=architectures, default=architectures, metavar="ARCH",
        help="sm_80, sm_90, sm_100 (default: all)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a list of rows instead of tables")


def run(args: argparse.Namespace) -> int:
    need("audit", "bench", {"tqdm": "tqdm"})
    need_triton("audit")
    from epilogue.triton import INTERPRET

    if INTERPRET:
        raise SystemExit("epilogue audit: with TRITON_INTERPRET set Triton compiles nothing; unset it")
    from epilogue.benchmarks.offline import audit

    return audit.main(args.arch, args.json)
