#!/usr/bin/env bash
# torch 2.13.0 (CPU), ml_dtypes 0.5.4, Triton 3.9.0: the three libraries agree in neither float8 type on what a number past the largest becomes.
# torch saturates in float8_e4m3fn, infinity included, and gives infinity in float8_e5m2. ml_dtypes gives NaN in e4m3fn and infinity in e5m2.
# Triton's cast on sm_90 saturates in both (cvt.rn.satfinite).
# So none is a reference for another at the edge of the range. A kernel that quantises has to clamp, and so does its test.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 ml_dtypes==0.5.4
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps triton==3.9.0  # torch may ask for another
cat >"$folder/kernel.py" <<'PYTHON'
import re

import ml_dtypes
import numpy as np
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def cast(x, y):
    tl.store(y, tl.load(x).to(y.dtype.element_ty))


def triton_cast(pointer):
    source = ASTSource(cast, {"x": "*fp32", "y": pointer})
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    return re.findall(r"cvt\.rn\S*x2\.f32", ptx)


found = {}
for name, pointer in (("float8_e4m3fn", "*fp8e4nv"), ("float8_e5m2", "*fp8e5")):
    values = torch.tensor([1e6, torch.inf])
    found[name] = (
        values.to(getattr(torch, name)).float().tolist(),
        values.numpy().astype(getattr(ml_dtypes, name)).astype(np.float32).tolist(),
        triton_cast(pointer),
    )
print(f"torch {torch.__version__}, ml_dtypes {ml_dtypes.__version__}, Triton {triton.__version__}")
for name, (by_torch, by_ml_dtypes, by_triton) in found.items():
    print(f"1e6 and inf in {name}: torch {by_torch}, ml_dtypes {by_ml_dtypes}, Triton {by_triton}")
assert repr(found) == repr({
    "float8_e4m3fn": ([448.0, 448.0], [float("nan")] * 2, ["cvt.rn.satfinite.e4m3x2.f32"]),
    "float8_e5m2": ([float("inf")] * 2, [float("inf")] * 2, ["cvt.rn.satfinite.e5m2x2.f32"]),
}), "the behaviour has changed"
PYTHON
TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/kernel.py"
