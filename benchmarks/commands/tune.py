"""Measure the ways to compute a product with its activation: the fused kernel with each of its tiles, cuBLAS with a pointwise kernel,
cuBLASLt's own epilogue. The fastest is saved after each product, in the user's cache directory, and taken by every later call on this GPU
with this driver, torch and Triton, for up to as many rows. Without a GPU: prints what it would measure."""

import argparse
from pathlib import Path

from epilogue.benchmarks.commands import need, need_triton
from epilogue.explanation import OPS

HELP = "measure on this GPU which way to compute a product is fastest"
EXAMPLES = """\
  epilogue tune --model-dims 4096 14336    measure this model's products on this GPU; later calls take the fastest way
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--shapes", nargs="+", type=_shape, metavar="OP:MxKxN",
        help="rows, features in, features out (an MLP's hidden ones): linear:8192x4096x14336",
    )  # fmt: skip
    what.add_argument(
        "--model-dims", nargs=2, type=_count, metavar=("D", "HIDDEN"),
        help="a model's width and its MLP's: 1 to 16384 rows of a gated MLP, or of --op",
    )  # fmt: skip
    parser.add_argument("--op", choices=OPS, default="gated_mlp", help="with --model-dims")
    parser.add_argument(
        "--activation", metavar="NAME", help="default: gelu, or silu when gated; they stand for all others too"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="N", help="when to stop (default %(default)g)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="save there rather than in the cache")


def run(args: argparse.Namespace) -> int:
    need("tune", "bench", {"tqdm": "tqdm"} if args.out else {"platformdirs": "platformdirs", "tqdm": "tqdm"})
    need_triton("tune")
    from epilogue.benchmarks.machine import tune

    shapes = args.shapes or [(args.op, tokens, *args.model_dims) for tokens in tune.TOKENS]
    try:
        return tune.main(shapes, args.activation, args.dtype, args.minutes, args.out)
    except ValueError as error:  # an activation that is not there, or needs parameters
        raise SystemExit(f"epilogue tune: {error}") from error


def _shape(text: str) -> tuple[str, int, int, int]:
    op, _, sizes = text.partition(":")
    numbers = sizes.split("x")
    if op not in OPS or len(numbers) != 3:
        raise argparse.ArgumentTypeError(f"a shape is OP:MxKxN, such as linear:8192x4096x14336; got {text!r}")
    m, k, n = map(_count, numbers)
    return op, m, k, n


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a size is 1 or more, got {text!r}")
    return int(text)
