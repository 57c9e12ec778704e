"""Three things about one small model, built of stock torch.nn and with epilogue. It is trained twice from the same weights on the same
batches. One step of it runs through the kernels, on a CPU in Triton's interpreter: what they keep in memory, and how far their gradients
and torch's are from float64. And what the layers' products would take on a GPU is predicted, fused and not. Prints all three and draws
them. digits: a classifier of scikit-learn's handwritten digits. llama, bert: a transformers model with random weights, stock and after
epilogue.nn.fuse, on the bytes of Python's standard library. Exit status 1 where accuracy or agreement falls short of what is promised."""

import argparse
import os
from pathlib import Path

from epilogue.benchmarks.commands import need, need_triton, restart_interpreted

HELP = "see on any machine what epilogue does: a training, the kernels, a prediction"
EXAMPLES = """\
  epilogue demo                a small model, torch.nn and epilogue side by side: training, memory and accuracy, prediction
  epilogue demo --gpu "RTX 4090"          the prediction for that GPU
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
    parser.add_argument(
        "--gpu", metavar="NAME", help='predict for this one, "A100" say (default: this machine\'s, else H100)'
    )


def run(args: argparse.Namespace) -> int:
    learner = {"sklearn": "scikit-learn"} if args.model == "digits" else {"transformers": "transformers"}
    need("demo", "demo", {**learner, "matplotlib": "matplotlib", "tqdm": "tqdm"})
    if args.interpret:
        if args.device == "cuda":
            raise SystemExit("epilogue demo: --interpret runs on the CPU; leave out --device cuda")
        need_triton("demo --interpret")
        if os.environ.get("TRITON_INTERPRET") != "1":
            restart_interpreted("demo --interpret", args.argv)
    # The peak of memory is read from torch's profiler, which would speak of itself in between.
    os.environ.update(KINETO_LOG_LEVEL="99", TORCH_CPP_LOG_LEVEL="ERROR")
    from epilogue.benchmarks.train import demo

    return demo.main(args.model, args.interpret, args.steps, args.out, args.device, args.gpu)


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a number of steps is 1 or more, got {text!r}")
    return int(text)
