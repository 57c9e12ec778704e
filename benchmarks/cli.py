"""The command line: `epilogue demo`, `epilogue doctor`, `epilogue memory`, …

What the commands do is in commands.py.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from epilogue.benchmarks import commands as run
from epilogue.explanation import OPS

EXAMPLES = """examples:
  epilogue demo                train on handwritten digits: stock torch.nn and epilogue, side by side
  epilogue demo --interpret    a few steps through the Triton kernels themselves, on any Linux machine
  epilogue demo --model llama  a small transformers Llama (or bert), stock and after epilogue.nn.fuse, side by side
  epilogue fuse-report config.json    what fuse finds in that transformers model; module:function for one of your own
  epilogue doctor              what is installed, what runs where, and whether a kernel computes rightly
  epilogue host-cost           what one tiny call costs the host, against plain torch
  epilogue audit               compile every kernel without a GPU: registers, spills, instructions per element
  epilogue tune --model-dims 4096 14336    measure this model's products on this GPU; later calls take the fastest way
  epilogue memory              the bytes that models' feed-forward blocks keep for backward: torch.nn, torch.compile, epilogue
  epilogue bench               time every operation against torch, torch.compile, cuBLAS and others, on a GPU
  epilogue bench --report DIR  tables of such results
  epilogue bandwidth           hold the pointwise kernels against a copy of as many bytes, on a GPU
  epilogue training            a training step of two small language models, torch.nn and epilogue, eager and compiled
  epilogue gpu-run --steps doctor,kernels,memcheck --minutes 9    on a machine with a GPU: tests, benchmarks, tuning, step by step
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser().parse_args(argv, argparse.Namespace(argv=argv))
    return args.command(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "epilogue",
        description="Fused linear + activation kernels for PyTorch.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="train a small model twice, stock and with epilogue",
        description="Train a small model twice from the same weights on the same batches. digits: a classifier of scikit-learn's "
        "handwritten digits, of stock torch.nn and of epilogue's layers. llama, bert: a transformers model with random weights, stock "
        "and after epilogue.nn.fuse, on the bytes of Python's standard library. Prints both side by side and draws both loss curves. "
        "Exit status 1 where accuracy or agreement falls short of what the demo promises.",
    )
    demo.add_argument("--model", choices=("digits", "llama", "bert"), default="digits", help="default: %(default)s")
    demo.add_argument(
        "--interpret", action="store_true", help="run the Triton kernels in Triton's interpreter, on the CPU"
    )
    demo.add_argument(
        "--steps",
        type=_steps,
        metavar="N",
        help="training steps (default 400 of digits, 120 of the others, 6 and 4 with --interpret; fewer promise agreement alone)",
    )
    demo.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("out"), help="folder of the picture (default %(default)s)"
    )
    demo.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one")
    demo.set_defaults(command=run.demo)
    _add_fuse_report(commands)

    doctor = commands.add_parser(
        "doctor",
        help="what is installed, what runs where, and one kernel's check",
        description="Print versions, the GPU, the backend that each kind of array takes and why not another, and check one kernel "
        "against the NumPy reference. Exit status 1 where that check fails.",
    )
    doctor.set_defaults(command=run.doctor)

    host_cost = commands.add_parser(
        "host-cost",
        help="what one tiny call costs the host",
        description="Measure the host's cost of one 4x8 float32 call, eager F.gelu(F.linear(x, w, b)) against "
        "epilogue.linear(x, w, b), and of an MLP stock and after epilogue.nn.fuse, without grad and forward + backward.",
    )
    host_cost.add_argument("--json", type=Path, metavar="FILE", help="write the measurement and what it ran on to FILE")
    host_cost.set_defaults(command=run.host_cost)
    _add_audit(commands)
    _add_memory(commands)
    _add_tune(commands)
    _add_bench(commands)
    _add_bandwidth(commands)
    _add_training(commands)
    _add_gpu_run(commands)
    return parser


def _add_fuse_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    report = commands.add_parser(
        "fuse-report",
        help="what epilogue.nn.fuse finds in a model",
        description="Build a model on the meta device, where it takes no memory, and show what epilogue.nn.fuse would fuse in it, what "
        "it would not, and why. Nothing is downloaded.",
    )
    report.add_argument(
        "target", metavar="CONFIG.json | MODULE:FUNCTION",
        help="a local transformers config, or a function without arguments that returns a model, importable from here",
    )  # fmt: skip
    report.set_defaults(command=run.fuse_report)


def _add_audit(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    audit = commands.add_parser(
        "audit",
        help="compile every kernel without a GPU and show what became of it",
        description="Compile every shipped kernel and config, and every activation in the largest ones, for architectures that need not "
        "be here. Prints registers, stack, spills, shared memory, matrix and TMA instructions, and the epilogue's instructions per "
        "element. Exit status 1 where a kernel is not clean. Takes minutes; a second run finds the compiled kernels in Triton's cache.",
    )
    architectures = ("sm_80", "sm_90", "sm_100")
    audit.add_argument(
        "--arch", nargs="+", choices=architectures, default=architectures, metavar="ARCH",
        help="sm_80, sm_90, sm_100 (default: all)",
    )  # fmt: skip
    audit.add_argument("--json", action="store_true", help="print a list of rows instead of tables")
    audit.set_defaults(command=run.audit)


def _add_memory(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    memory = commands.add_parser(
        "memory",
        help="the bytes that models' feed-forward blocks keep for backward",
        description="Count the bytes per token that the feed-forward blocks of public models keep for backward: with stock torch.nn, "
        "with torch.compile and with epilogue. Exact, from the tensors that autograd saves. Without a GPU the kernels run in "
        "Triton's interpreter, which takes about two minutes.",
    )
    memory.add_argument("--json", type=Path, metavar="FILE", help="write the counts and what they ran on to FILE")
    memory.add_argument("--plot", type=Path, metavar="FILE", help="draw them relative to eager's")
    memory.add_argument(
        "--readme", type=Path, metavar="FILE", help="put the table into this README's part about memory"
    )
    memory.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="count nothing, read what --json wrote"
    )
    memory.set_defaults(command=run.memory)


def _add_tune(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    tune = commands.add_parser(
        "tune",
        help="measure on this GPU which way to compute a product is fastest",
        description="Measure the ways to compute a product with its activation: the fused kernel with each of its tiles, cuBLAS with a "
        "pointwise kernel, cuBLASLt's own epilogue. The fastest is saved after each product, in the user's cache directory, and taken by "
        "every later call on this GPU with this driver, torch and Triton, for up to as many rows. Without a GPU: prints what it would "
        "measure.",
    )
    what = tune.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--shapes", nargs="+", type=_shape, metavar="OP:MxKxN",
        help="rows, features in, features out (an MLP's hidden ones): linear:8192x4096x14336",
    )  # fmt: skip
    what.add_argument(
        "--model-dims", nargs=2, type=_count, metavar=("D", "HIDDEN"),
        help="a model's width and its MLP's: 1 to 16384 rows of a gated MLP, or of --op",
    )  # fmt: skip
    tune.add_argument("--op", choices=OPS, default="gated_mlp", help="with --model-dims")
    tune.add_argument(
        "--activation", metavar="NAME", help="default: gelu, or silu when gated; they stand for all others too"
    )
    tune.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    tune.add_argument("--minutes", type=float, default=10.0, metavar="N", help="when to stop (default %(default)g)")
    tune.add_argument("--out", type=Path, metavar="FILE", help="save there rather than in the cache")
    tune.set_defaults(command=run.tune)


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


def _add_bench(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    bench = commands.add_parser(
        "bench",
        help="time every operation against torch, torch.compile, cuBLAS and others",
        description="Check every provider's results against float64, then time them in turns, at the sizes of public models: forward "
        "for inference and for training, forward + backward. Exit status 1 where a result of epilogue is wrong. Without a GPU: print "
        "what would run. No case begins after 2.5 minutes of smoke, 11 minutes of headline, 3 hours of full.",
    )
    suites = ("smoke", "headline", "full")
    bench.add_argument("--suite", choices=suites, default="headline", help="default: %(default)s")
    bench.add_argument("--op", nargs="+", choices=OPS, default=OPS, help="these operations alone")
    bench.add_argument("--json", type=Path, metavar="DIR", help="write the result into DIR, again after each case")
    bench.add_argument("--plot", action="store_true", help="draw the results in that DIR")
    bench.add_argument(
        "--minutes", type=_minutes, metavar="N", help="after which no case begins, instead of the suite's"
    )
    bench.add_argument("--report", type=Path, metavar="DIR", help="time nothing, make tables of the results in DIR")
    bench.add_argument("--readme", type=Path, metavar="FILE", help="put the report into this README's part about speed")
    bench.set_defaults(command=run.bench)


def _add_bandwidth(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    bandwidth = commands.add_parser(
        "bandwidth",
        help="the pointwise kernels against a copy of as many bytes",
        description="Check the pointwise kernels of CuPy and Triton, forward and backward, against float64, then time them in turns with "
        "a device-to-device copy that moves as many bytes. Exit status 1 where a result is wrong. Without a GPU: list what would be "
        "measured.",
    )
    bandwidth.add_argument("--json", type=Path, metavar="FILE", help="write the result to FILE, again after each case")
    bandwidth.add_argument(
        "--minutes", type=_minutes, metavar="N", default=10 / 3, help="after which no case begins (default 3.3)"
    )
    bandwidth.set_defaults(command=run.bandwidth)


def _add_training(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    training = commands.add_parser(
        "training",
        help="a training step of two small language models",
        description="Train a Llama-shaped and a GPT-2-shaped language model on the bytes of Python's standard library, with stock "
        "torch.nn and with epilogue's layers, eager and under torch.compile, from the same weights on the same batches. Prints tokens "
        "per second and peak memory once the losses agree; exit status 1 where they do not. Without a GPU a tiny scale checks the "
        "losses and times nothing.",
    )
    training.add_argument("--json", type=Path, metavar="DIR", help="write training-<gpu>.json into DIR")
    training.set_defaults(command=run.training)


def _add_gpu_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    gpu_run = commands.add_parser(
        "gpu-run",
        help="all that needs a GPU, in one command",
        description="Run the kernel tests, compute-sanitizer over them, the benchmarks, the tuning, the training step, each in a "
        "process of its own with its own limit, the most valuable first. In the folder: summary.json, results.json, log.txt, demo.png, "
        "written again every few seconds. With the same folder once more it goes on where it ended. "
        "Exit status 1 where a step failed. Without a GPU list the steps. To be called at the root of the repository; needs no network.",
    )
    gpu_run.add_argument(
        "--steps", type=lambda text: text.split(","), metavar="A,B", help="these alone, in this order (default: all)"
    )
    gpu_run.add_argument(
        "--minutes", type=_minutes, metavar="N", default=60.0, help="how long it may take altogether (default 60)"
    )
    gpu_run.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("out/gpu"), help="the folder (default %(default)s)"
    )
    gpu_run.add_argument(
        "--force",
        action="store_true",
        help="repeat the steps that came to their end in DIR, with the same code and GPU",
    )
    gpu_run.set_defaults(command=run.gpu_run)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"a number of minutes is more than 0, got {text!r}")
    return minutes


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a number of steps is 1 or more, got {text!r}")
    return int(text)
