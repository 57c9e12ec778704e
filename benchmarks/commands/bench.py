"""Check every provider's results against float64, then time them in turns, at the sizes of public models: forward for inference and for
training, forward + backward. Exit status 1 where a result of epilogue is wrong. Without a GPU: print what would run. No case begins after
2.5 minutes of smoke, 11 minutes of headline, 3 hours of full."""

import argparse
from pathlib import Path

from epilogue.benchmarks.commands import minutes, need
from epilogue.benchmarks.report import GPU_RUN, RESULTS
from epilogue.explanation import OPS

HELP = "time every operation against torch, torch.compile, cuBLAS and others"
EXAMPLES = """\
  epilogue bench               time every operation against torch, torch.compile, cuBLAS and others, on a GPU
  epilogue bench --report DIR  tables of such results
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    suites = ("smoke", "headline", "full")
    parser.add_argument("--suite", choices=suites, default="headline", help="default: %(default)s")
    parser.add_argument("--op", nargs="+", choices=OPS, default=OPS, help="these operations alone")
    parser.add_argument("--json", type=Path, metavar="DIR", help="write the result into DIR, again after each case")
    parser.add_argument("--plot", action="store_true", help="draw the results in that DIR")
    parser.add_argument(
        "--minutes", type=minutes, metavar="N", help="after which no case begins, instead of the suite's"
    )
    parser.add_argument("--report", type=Path, metavar="DIR", help="time nothing, make tables of the results in DIR")
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="put the report into this README's part about speed"
    )


def run(args: argparse.Namespace) -> int:
    if args.report:
        _need_results(args.report)
    need("bench", "bench", {"tqdm": "tqdm"} | ({"matplotlib": "matplotlib"} if args.plot or args.report else {}))
    if args.report:
        return _report(args.report, args.readme, args.plot)
    if args.readme:
        raise SystemExit("epilogue bench: --readme takes a report; give --report DIR, the folder of the results")
    if args.plot and not args.json:
        raise SystemExit("epilogue bench: --plot draws results that were written; give --json DIR")
    from epilogue.benchmarks.bench import runner

    seconds = None if args.minutes is None else 60 * args.minutes
    status = runner.main(args.suite, args.op, args.json, seconds)
    if args.plot and args.json.is_dir():  # without a GPU it may not be there
        return _report(args.json, None, True) or status
    return status


def _need_results(directory: Path) -> None:
    """Stop at once where there is nothing to report: the report itself imports torch first."""
    if not directory.is_dir():
        found = "is a file; give the folder that it is in" if directory.exists() else "is not there"
        raise SystemExit(
            f"epilogue bench: {directory} {found}. `epilogue bench --json DIR` on a GPU writes results into a folder"
        )
    if not any(path for pattern in (*RESULTS, GPU_RUN) for path in directory.glob(pattern)):
        raise SystemExit(
            f"epilogue bench: {directory} holds no result, no file called {', '.join((*RESULTS, GPU_RUN))}"
        )


def _report(directory: Path, readme: Path | None, plots: bool) -> int:
    from epilogue.benchmarks.bench import report

    return report.main(directory, readme, plots)
