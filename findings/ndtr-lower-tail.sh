#!/usr/bin/env bash
# torch 2.13.0, CPU: torch.special.ndtr, the normal distribution function, is (1 + erf(x/√2)) / 2 and cancels in its lower tail. At -6 in
# float32 it is 0, where float32 holds 9.9e-10 with all its digits; at -9 in float64 it is 0, where the result is 1.1e-19. Nothing is said.
# torch's own log_ndtr and erfc(-x/√2) / 2 keep the tail, so exp(log_ndtr(x)) and ndtr(x) are not the same function.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import math

import torch
from torch import special


def at(number, dtype):
    """(ndtr, the same by erfc, the same by log_ndtr)."""
    x = torch.tensor(number, dtype=dtype)
    return special.ndtr(x).item(), (0.5 * special.erfc(-x / math.sqrt(2))).item(), special.log_ndtr(x).exp().item()


for number, dtype in ((-6.0, torch.float32), (-9.0, torch.float64)):
    ndtr, by_erfc, by_log = at(number, dtype)
    print(f"torch {torch.__version__}, {dtype}, x = {number}: ndtr {ndtr:.3g}, erfc(-x/√2)/2 {by_erfc:.3g}, exp(log_ndtr) {by_log:.3g}")
    assert abs(by_erfc / by_log - 1) < 1e-5
    assert ndtr == 0.0 < by_erfc, "the behaviour has changed"
PYTHON
