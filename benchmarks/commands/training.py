"""Train a Llama-shaped and a GPT-2-shaped language model on the bytes of Python's standard library, with stock torch.nn and with epilogue's
layers, eager and under torch.compile, from the same weights on the same batches. Prints tokens per second and peak memory once the losses
agree; exit status 1 where they do not. Without a GPU a tiny scale checks the losses and times nothing."""

import argparse
from pathlib import Path

from epilogue.benchmarks.commands import need

HELP = "a training step of two small language models"
EXAMPLES = """\
  epilogue training            a training step of two small language models, torch.nn and epilogue, eager and compiled
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="DIR", help="write training-<gpu>.json into DIR")


def run(args: argparse.Namespace) -> int:
    need("training", "bench", {"tqdm": "tqdm"})
    from epilogue.benchmarks.train import training

    return training.main(args.json)
