#!/usr/bin/env bash
# Triton 3.9.0: in the interpreter tl.device_assert never fails, not even with TRITON_DEBUG=1 and a launch with debug=True. Python's
# `assert`, which the manual calls the same thing, does fail there and needs neither. Compiled with debug=True, both are checked (__assertfail).
# One would expect assertions to be checked above all where one debugs. A kernel that passes its tests in the interpreter may violate every
# device_assert.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps triton==3.9.0  # torch may ask for another
cat >"$folder/kernel.py" <<'PYTHON'
import os

os.environ["TRITON_DEBUG"] = "1"

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def device_assert(x):
    tl.device_assert(tl.load(x) > 0, "not positive")


def python_assert(x):
    assert tl.load(x) > 0, "not positive"


def compiled(kernel):
    source = ASTSource(triton.jit(kernel), {"x": "*fp32"})
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"debug": True}).asm["ptx"]
    return "checked" if "__assertfail" in ptx else "dropped"


def interpreted(kernel):
    try:
        triton.jit(kernel)[(1,)](torch.tensor([-1.0]), debug=True)
    except triton.runtime.errors.InterpreterError:
        return "failed"
    return "passed"


kernels = device_assert, python_assert
found = {kernel.__name__: [compiled(kernel)] for kernel in kernels}
triton.knobs.runtime.interpret = True  # from here on triton.jit makes interpreted functions
for kernel in kernels:
    found[kernel.__name__].append(interpreted(kernel))
print("Triton", triton.__version__)
for name, (there, here) in found.items():
    print(f"{name} of a false condition: compiled: {there}; interpreted: {here}")
assert found == {
    "device_assert": ["checked", "passed"],
    "python_assert": ["checked", "failed"],
}, "the behaviour has changed"
PYTHON
TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/kernel.py"
