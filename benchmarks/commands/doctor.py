"""Print versions, the GPU, the backend that each kind of array takes and why not another, and check one kernel against the NumPy reference.
Exit status 1 where that check fails."""

import argparse

HELP = "what is installed, what runs where, and one kernel's check"
EXAMPLES = """\
  epilogue doctor              what is installed, what runs where, and whether a kernel computes rightly
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    from epilogue.benchmarks.provenance import versions
    from epilogue.benchmarks.report import table

    print(table([("package", "version"), *versions().items()]), end="\n\n")
    try:
        from epilogue.benchmarks.machine import doctor
    except (ImportError, OSError) as error:  # OSError: one of torch's own libraries is missing
        print(f"FAILED: {error}. Without torch NumPy arrays alone are served, by the reference.")
        return 1
    return doctor.main()
