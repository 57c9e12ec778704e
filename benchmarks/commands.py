"""What each command of the command line does: checks what it needs, then calls its module.

Neither this file nor cli.py imports torch or Triton: a command does when it runs, so that `--help` is quick, `doctor` works on a broken
installation, and `demo --interpret` can set Triton's switch in time.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path


def demo(args: argparse.Namespace) -> int:
    learner = {"sklearn": "scikit-learn"} if args.model == "digits" else {"transformers": "transformers"}
    _need("demo", "demo", {**learner, "matplotlib": "matplotlib", "tqdm": "tqdm"})
    if args.interpret:
        if args.device == "cuda":
            raise SystemExit("epilogue demo: --interpret runs on the CPU; leave out --device cuda")
        _need_triton("demo --interpret")
        if os.environ.get("TRITON_INTERPRET") != "1":
            _restart_interpreted("demo --interpret", args.argv)
    from epilogue.benchmarks import demo

    return demo.main(args.model, args.interpret, args.steps, args.out, args.device)


def fuse_report(args: argparse.Namespace) -> int:
    if args.target.endswith(".json"):
        _need("fuse-report", "demo", {"transformers": "transformers"})
    from epilogue.benchmarks import fuse_report

    return fuse_report.main(args.target)


def doctor(args: argparse.Namespace) -> int:
    from epilogue.benchmarks.report import table, versions

    print(table([("package", "version"), *versions().items()]), end="\n\n")
    try:
        from epilogue.benchmarks import doctor
    except (ImportError, OSError) as error:  # OSError: one of torch's own libraries is missing
        print(f"FAILED: {error}. Without torch NumPy arrays alone are served, by the reference.")
        return 1
    return doctor.main()


def host_cost(args: argparse.Namespace) -> int:
    from epilogue.benchmarks import host_cost

    return host_cost.main(args.json)


def audit(args: argparse.Namespace) -> int:
    _need("audit", "bench", {"tqdm": "tqdm"})
    _need_triton("audit")
    from epilogue.triton import INTERPRET

    if INTERPRET:
        raise SystemExit("epilogue audit: with TRITON_INTERPRET set Triton compiles nothing; unset it")
    from epilogue.benchmarks import audit

    return audit.main(args.arch, args.json)


def tune(args: argparse.Namespace) -> int:
    _need("tune", "bench", {"tqdm": "tqdm"} if args.out else {"platformdirs": "platformdirs", "tqdm": "tqdm"})
    _need_triton("tune")
    from epilogue.benchmarks import tune

    shapes = args.shapes or [(args.op, tokens, *args.model_dims) for tokens in tune.TOKENS]
    try:
        return tune.main(shapes, args.activation, args.dtype, args.minutes, args.out)
    except ValueError as error:  # an activation that is not there, or needs parameters
        raise SystemExit(f"epilogue tune: {error}") from error


def memory(args: argparse.Namespace) -> int:
    _need("memory", "bench", {"matplotlib": "matplotlib", "tqdm": "tqdm"})
    if args.source is None:
        _need_triton("memory")
        import torch

        if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
            _restart_interpreted("memory", args.argv)
    elif not args.source.is_file():
        raise SystemExit(f"epilogue memory: there is no file {args.source}; --json writes one")
    from epilogue.benchmarks import memory

    return memory.main(args.source, args.json, args.plot, args.readme)


def bench(args: argparse.Namespace) -> int:
    _need("bench", "bench", {"tqdm": "tqdm"} | ({"matplotlib": "matplotlib"} if args.plot or args.report else {}))
    if args.report:
        return _bench_report(args.report, args.readme, args.plot)
    if args.readme:
        raise SystemExit("epilogue bench: --readme takes a report; give --report DIR, the folder of the results")
    if args.plot and not args.json:
        raise SystemExit("epilogue bench: --plot draws results that were written; give --json DIR")
    from epilogue.benchmarks import bench

    status = bench.main(args.suite, args.op, args.json, args.minutes and 60 * args.minutes)
    if args.plot and args.json.is_dir():  # without a GPU it may not be there
        return _bench_report(args.json, None, True) or status
    return status


def _bench_report(directory: Path, readme: Path | None, plots: bool) -> int:
    from epilogue.benchmarks import bench_report

    return bench_report.main(directory, readme, plots)


def bandwidth(args: argparse.Namespace) -> int:
    _need("bandwidth", "bench", {"tqdm": "tqdm"})
    from epilogue.benchmarks import bandwidth

    return bandwidth.main(args.json, 60 * args.minutes)


def training(args: argparse.Namespace) -> int:
    _need("training", "bench", {"tqdm": "tqdm"})
    from epilogue.benchmarks import training

    return training.main(args.json)


def gpu_run(args: argparse.Namespace) -> int:
    from epilogue.benchmarks import gpu_run

    return gpu_run.main(args.steps, args.minutes, args.out, args.force)


def _need(command: str, extra: str, distributions: dict[str, str]) -> None:
    missing = [name for module, name in distributions.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SystemExit(f'epilogue {command}: {", ".join(missing)} not installed; pip install "epilogue[{extra}]"')


def _need_triton(what: str) -> None:
    if importlib.util.find_spec("triton") is None:
        raise SystemExit(f"epilogue {what} needs Triton, which pip installs on Linux alone: pip install triton")


def _restart_interpreted(what: str, argv: list[str]) -> None:
    """The same command in a fresh process: this one has read Triton's switch already, when it imported `epilogue`."""
    from epilogue.triton import interpreter_refusal

    refusal = interpreter_refusal()
    if refusal:
        raise SystemExit(f"epilogue {what}: {refusal}")
    command = [sys.executable, "-m", "epilogue", *argv]
    os.execve(sys.executable, command, {**os.environ, "TRITON_INTERPRET": "1"})
