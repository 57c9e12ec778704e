#!/usr/bin/env bash
# ml_dtypes 0.5.4 and torch 2.13.0: a cast from float64 to bfloat16 goes through float32 and so rounds twice. 1 + 2^-8 + 2^-30 lies above the
# midpoint of 1 and 1.0078125. float32 drops the 2^-30, and the tie that is left rounds to even, to 1.
# NumPy's cast to float16 rounds once: 1 + 2^-11 + 2^-40, which is above the midpoint there, becomes 1.0009765625.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 ml_dtypes==0.5.4
"$folder/venv/bin/python" - <<'PYTHON'
from fractions import Fraction

import ml_dtypes
import numpy as np
import torch

value = 1 + 2.0**-8 + 2.0**-30
assert Fraction(value) > (Fraction(1) + Fraction(1.0078125)) / 2  # so rounding once gives 1.0078125
found = {
    "ml_dtypes": float(np.array(value).astype(ml_dtypes.bfloat16)),
    "torch": torch.tensor(value, dtype=torch.float64).bfloat16().item(),
    "NumPy, float16": float(np.float16(np.float64(1 + 2.0**-11 + 2.0**-40))),
}
print(f"ml_dtypes {ml_dtypes.__version__}, torch {torch.__version__}, NumPy {np.__version__}")
for what, number in found.items():
    print(f"{what:15} {number}")
assert found == {"ml_dtypes": 1.0, "torch": 1.0, "NumPy, float16": 1.0009765625}, "the behaviour has changed"
PYTHON
