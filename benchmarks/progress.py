"""The progress of what takes long: a bar on a terminal, plain lines where the output goes into a file or a pipe."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from epilogue.benchmarks.report import counted

T = TypeVar("T")

QUIET = 5.0
"""Seconds after which a line is due."""


def progress(
    items: Iterable[T], what: str, total: int, unit: str, name: Callable[[T], str] | None = None
) -> Iterator[T]:
    """Yield the items, and show on stderr how far they are.

    Where stderr is no terminal: with a name, a line before each item; else a line before the first, and one after an item whenever the last
    line is QUIET seconds old.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(items, what, total, unit=unit) as bar:
            for item in bar:
                if name:
                    bar.set_postfix_str(name(item))
                yield item
        return
    if name is None:
        say(f"{what}: {counted(total, unit)}")
    start = last = time.monotonic()
    for number, item in enumerate(items, 1):
        if name:
            say(f"{what}: {unit} {number} of {total}, {name(item)}")
        yield item
        now = time.monotonic()
        if name is None and now - last >= QUIET:
            last = now
            say(f"{what}: {unit} {number} of {total}, {now - start:.0f} s")


def say(line: str) -> None:
    """Print a line beside the results, at once."""
    print(line, file=sys.stderr, flush=True)
