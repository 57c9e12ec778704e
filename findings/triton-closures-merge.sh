#!/usr/bin/env bash
# Triton 3.9.0: two jitted functions made by one factory share a qualified name. Where one kernel calls both with arguments of the same
# types, Triton merges them: the second call runs the first function. Here `tripled` and `fivefold` close over 3 and 5, yet the PTX
# multiplies twice by the number of the function that is called first. Alone in a kernel, each is right.
# One would expect two functions, or an error. So device functions that are made in a loop each need a name of their own.
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


def multiplier(number):
    number = tl.constexpr(number)

    @triton.jit
    def multiply(x):
        return x * number

    return multiply


@triton.jit
def kernel(x, y, first: tl.constexpr, second: tl.constexpr):
    tl.store(y, first(tl.load(x)))
    tl.store(y + 1, second(tl.load(x + 1)))


def factors(first, second):
    types = {"x": "*fp32", "y": "*fp32", "first": "constexpr", "second": "constexpr"}
    source = ASTSource(kernel, types, {(2,): first, (3,): second})
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    return [{"0f40400000": 3, "0f40A00000": 5}[bits] for bits in re.findall(r"mul\.f32.*(0f\w+)", ptx)]


tripled, fivefold = multiplier(3.0), multiplier(5.0)
found = {
    "tripled, fivefold": factors(tripled, fivefold),
    "fivefold, tripled": factors(fivefold, tripled),
    "fivefold, fivefold": factors(fivefold, fivefold),
}
print("Triton", triton.__version__)
for called, numbers in found.items():
    print(f"{called:18} multiplies by {numbers}")
assert found == {
    "tripled, fivefold": [3, 3],
    "fivefold, tripled": [5, 5],
    "fivefold, fivefold": [5, 5],
}, "the behaviour has changed"
PYTHON
TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/kernel.py"
