"""Train a small model twice from the same weights on the same batches. digits: a classifier of scikit-learn's handwritten digits, of stock
torch.nn and of epilogue's layers. llama, bert: a transformers model with random weights, stock and after epilogue.nn.fuse, on the bytes of
Python's standard library. Prints both side by side and draws both loss curves. Exit status 1 where accuracy or agreement falls short of
what the demo promises."""

import argparse
import os
from pathlib import Path

from epilogue.benchmarks.commands import need, need_triton, restart_interpreted

HELP = "train a small model twice, stock and with epilogue"
EXAMPLES = """\
  epilogue demo                train on handwritten digits: stock torch.nn and epilogue, side by side
  epilogue demo --interpret    a few steps through the Triton kernels themselves, on any Linux machine
  epilogue demo --model llama  a small transformers Llama (or bert), stock and after epilogue.nn.fuse, side by side
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=("digits", "llama", "bert"), default="digits", help="default: %(default)s")
    parser.add_argument(
        "--interpret", action="store_true", help="run the Triton kernels in Triton's interpreter, on the CPU"
    )
    parser.add_argument(
        "--steps",
        type=_steps,
        metavar="N",
        help="training steps (default 400 of digits, 120 of the others, 6 and 4 with --interpret; fewer promise agreement alone)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("out"), help="folder of the picture (default %(default)s)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one")


def run(args: argparse.Namespace) -> int:
    learner = {"sklearn": "scikit-learn"} if args.model == "digits" else {"transformers": "transformers"}
    need("demo", "demo", {**learner, "matplotlib": "matplotlib", "tqdm": "tqdm"})
    if args.interpret:
        if args.device == "cuda":
            raise SystemExit("epilogue demo: --interpret runs on the CPU; leave out --device cuda")
        need_triton("demo --interpret")
        if os.environ.get("TRITON_INTERPRET") != "1":
            restart_interpreted("demo --interpret", args.argv)
    from epilogue.benchmarks.train import demo

    return demo.main(args.model, args.interpret, args.steps, args.out, args.device)


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a number of steps is 1 or more, got {text!r}")
    return int(text)
