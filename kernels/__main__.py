"""Entry point of `python -m epilogue` and of the console script `epilogue`."""

import sys

from epilogue.benchmarks.cli import main

if __name__ == "__main__":
    sys.exit(main())
