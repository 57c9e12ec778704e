#!/usr/bin/env bash
# Triton 3.9.0: tl.exp keeps subnormal results and tl.exp2 flushes them to zero. On sm_80, sm_90 and sm_100 tl.exp(x) is a multiplication by
# log2(e) and ex2.approx.f32, and tl.exp2(x) is ex2.approx.ftz.f32.
# So the usual rewriting of exp(x) as exp2(x * log2(e)) does more than save an instruction. Below x = -87.34, where e^x is no longer a normal
# number, exp gives a small number and exp2 zero. A quotient or a logarithm of the result tells them apart.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check triton==3.9.0
cat >"$folder/kernel.py" <<'PYTHON'
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def exp(x, y):
    tl.store(y, tl.exp(tl.load(x)))


@triton.jit
def exp2(x, y):
    tl.store(y, tl.exp2(tl.load(x) * 1.4426950408889634))


def instructions(kernel, arch):
    source = ASTSource(kernel, {"x": "*fp32", "y": "*fp32"})
    ptx = triton.compile(source, target=GPUTarget("cuda", arch, 32)).asm["ptx"]
    return re.findall(r"\b(?:mul|ex2)\S*f32", ptx)


print("Triton", triton.__version__)
for arch in 80, 90, 100:
    found = instructions(exp, arch), instructions(exp2, arch)
    print(f"sm_{arch}: exp {found[0]}; exp2 {found[1]}")
    assert found == (
        ["mul.f32", "ex2.approx.f32"],
        ["mul.f32", "ex2.approx.ftz.f32"],
    ), "the behaviour has changed"
PYTHON
TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/kernel.py"
