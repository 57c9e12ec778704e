#!/usr/bin/env bash
# Triton 3.9.0, its interpreter, NumPy 2.4.6: a launch puts the interpreter's own functions into triton.language. Every call of a jitted
# function inside the kernel does so again: it goes through all members of the language, its tensor class and its mathematics, finds them
# replaced, and replaces nothing.
# So interpreted kernels of many small jitted functions spend a good part of their time there, which the size of the tensors does not change.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps triton==3.9.0  # torch may ask for another
cat >"$folder/kernel.py" <<'PYTHON'
import inspect

import torch
import triton
import triton.language as tl

seen = 0
members = inspect.getmembers


def counted(of, *predicate):
    global seen
    found = members(of, *predicate)
    seen += len(found)
    return found


@triton.jit
def plus_one(x):
    return x + 1.0


@triton.jit
def kernel(x, CALLS: tl.constexpr):
    value = tl.load(x)
    for _ in tl.static_range(CALLS):
        value = plus_one(value)
    tl.store(x, value)


def looked_at(calls):
    """The number of members that one launch looks at."""
    global seen
    x = torch.zeros(1)
    kernel[(1,)](x, calls)
    seen, inspect.getmembers = 0, counted
    kernel[(1,)](x, calls)
    inspect.getmembers = members
    assert x.item() == 2 * calls
    return seen


none, ten = looked_at(0), looked_at(10)
print(f"Triton {triton.__version__}: one launch looks at {none} members, with ten calls of a jitted function at {ten}")
assert ten >= 10 * none > 0, "the behaviour has changed"
PYTHON
TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/kernel.py"
