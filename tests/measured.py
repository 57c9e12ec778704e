"""benchmarks/results/tiles-nvidia-h200.json: products that one H200 timed, as the choice of a kernel sees them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from epilogue.triton.plan.configs import Config
from epilogue.triton.plan.problem import DACT, GLU, LINEAR, Problem

FILE = Path(__file__).parent.parent / "benchmarks/results/tiles-nvidia-h200.json"
FAMILIES = {"forward": LINEAR, "gated forward": GLU}


class Product(NamedTuple):
    """Medians in microseconds: of cuBLAS's bare product, and by the choice of a way."""

    name: str
    problem: Problem
    bare: float
    times: dict[Any, float]


def products() -> Iterator[Product]:
    for row in json.loads(FILE.read_text(encoding="utf-8"))["rows"]:
        family, gated = FAMILIES.get(row["product"], DACT), row["product"].startswith("gated")
        sizes = row["m"], row["n"], row["k"]
        problem = Problem(family, *sizes, torch.bfloat16, "tf32", True, row["activation"], gated, row["keeps"])
        bare, unfused, *tiles = row["times"]
        times = {Config(**tile["way"]): tile["us"][1] for tile in tiles}
        yield Product(row["product"], problem, bare["us"][1], {"unfused": unfused["us"][1], **times})
