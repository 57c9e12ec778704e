#!/usr/bin/env bash
# Triton 3.9.0: tl.dot of float32 with input_precision="tf32", the default, does not round its operands to tf32. On sm_80, sm_90, sm_100 and
# sm_120 the PTX holds no cvt.rna.tf32.f32: the tensor core gets float32 as it was loaded, and drops the low bits. With "tf32x3" the
# same kernel does round.
# An unrounded operand is off by up to 2^-10 of its size, always towards zero; rounding gives 2^-11 in either direction. So the errors of a
# long sum no longer cancel, and a tolerance taken from a product with rounded operands is too tight.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check triton==3.9.0
cat >"$folder/kernel.py" <<'PYTHON'
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def default(a, b, c):
    i = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(c + i, tl.dot(tl.load(a + i), tl.load(b + i)))


@triton.jit
def tf32x3(a, b, c):
    i = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(c + i, tl.dot(tl.load(a + i), tl.load(b + i), input_precision="tf32x3"))


def ptx_of(kernel, arch):
    source = ASTSource(kernel, {"a": "*fp32", "b": "*fp32", "c": "*fp32"})
    return triton.compile(source, target=GPUTarget("cuda", arch, 32)).asm["ptx"]


print("Triton", triton.__version__)
for arch in 80, 90, 100, 120:
    for kernel in default, tf32x3:
        ptx = ptx_of(kernel, arch)
        rounded = "cvt.rna.tf32.f32" in ptx
        print(f"sm_{arch} {kernel.__name__:7} tensor cores in tf32: {'tf32' in ptx}; operands rounded: {rounded}")
        assert "tf32" in ptx and rounded == (kernel is tf32x3), "the behaviour has changed"
PYTHON
TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/kernel.py"
