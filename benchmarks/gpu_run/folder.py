"""The folder of `epilogue gpu-run`: what each step was, printed and wrote, kept while the run goes on and read again by the next."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from epilogue.benchmarks.report import GPU_RUN, write

LOG = 1 << 20
"""Bytes kept of a step's log. Of a longer one, a quarter of them come from its start and the others from its end. All logs together stay
under 16 MiB."""
PAGE = "\n\f===== "
"""Between the steps' logs."""


class Outcome(NamedTuple):
    """A step's result: status is "ok", "failed: …", "stopped: …" where its time was up, "running", or "not run: …"."""

    step: str
    seconds: float
    status: str
    command: str
    commit: str
    code: str  # `identity` of what ran

    @property
    def finished(self) -> bool:
        return self.status == "ok" or self.status.startswith("failed: exit status")


class Folder:
    """The outcomes, results and logs of a run by step, and those of earlier runs into the same folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head: dict[str, Any] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        if (path / "summary.json").exists():
            steps = json.loads((path / "summary.json").read_text(encoding="utf-8"))["steps"]
            self.outcomes = {step["step"]: Outcome(**step) for step in steps}
            self.results = json.loads((path / GPU_RUN).read_text(encoding="utf-8"))
            pages = (path / "log.txt").read_text(encoding="utf-8").split(PAGE)[1:]
            self.logs = {name: text for name, _, text in (page.partition("\n") for page in pages)}

    def save(self) -> None:
        """Write the files, the summary last: a step that it calls finished has left its results. The log has a page for each step."""
        write(self.path / GPU_RUN, self.results)
        partial = self.path / "log.txt.partial"
        partial.write_text("".join(f"{PAGE}{name}\n{text}" for name, text in self.logs.items()), encoding="utf-8")
        os.replace(partial, self.path / "log.txt")
        write(self.path / "summary.json", {**self.head, "steps": [each._asdict() for each in self.outcomes.values()]})

    def take(self, outcome: Outcome, work: Path, log: Path) -> None:
        """Take up what a step has printed and written so far."""
        self.outcomes[outcome.step] = outcome
        self.logs[outcome.step] = excerpt(log, LOG).replace("\f", "\n")
        for path in sorted(work.iterdir()):
            if path.suffix == ".json":
                try:
                    document = json.loads(path.read_text(encoding="utf-8"))
                except ValueError as error:  # half written, by a step that still runs or was ended
                    document = f"no JSON: {error}"
                self.results.setdefault(outcome.step, {})[path.name] = document
            elif path.is_file() and path.suffix != ".partial" and outcome.status != "running":
                shutil.copyfile(path, self.path / path.name)
        self.save()


def excerpt(path: Path, limit: int) -> str:
    """The text of a file, cut to `limit` bytes: a quarter of them from its start, the others from its end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size <= limit:
            return file.read().decode(errors="ignore")
        head = file.read(limit // 4)
        file.seek(size - (limit - limit // 4))
        tail = file.read(limit - limit // 4)
    left_out = f"\n[{size - limit} bytes left out]\n"
    return head.decode(errors="ignore") + left_out + tail.decode(errors="ignore")
