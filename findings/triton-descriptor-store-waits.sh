#!/usr/bin/env bash
# Triton 3.9.0, compiled for sm_90: in a loop with num_stages, all stores by tensor descriptors of one shape and type go through one buffer in
# shared memory, and each waits until every earlier store has been read from there, also stores to other tensors. An epilogue that writes three
# tiles therefore writes them one after the other. Blocks of another shape get a buffer of their own, and still wait for all. Stores by
# pointers wait for nothing.
# So an epilogue of many small stores may be faster by pointers, although its product loads by descriptors.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps triton==3.9.0  # torch may ask for another
cat >"$folder/kernel.py" <<'PYTHON'
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def kernel(x, a, b, c, tiles):
    for tile in tl.range(0, tiles, num_stages=3):
        value = x.load([tile * 64, 0]).to(tl.float32)
        a.store([tile * 64, 0], (value + 1.0).to(tl.bfloat16))
        b.store([tile * 64, 0], (value + 2.0).to(tl.bfloat16))
        if c.block_shape[1] == 64:
            c.store([tile * 64, 0], (value + 3.0).to(tl.bfloat16))
        else:
            c.store([tile * 64, 0], value.reshape(64, 2, 32).permute(0, 2, 1).split()[0].to(tl.bfloat16))


def found(width):
    tile = "tensordesc<bf16[64,64]>"
    signature = {"x": tile, "a": tile, "b": tile, "c": f"tensordesc<bf16[64,{width}]>", "tiles": "i32"}
    compiled = triton.compile(ASTSource(kernel, signature), target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    (loop,) = re.findall(r"scf\.for .*?\n    \}", compiled.asm["ttgir"], re.DOTALL)
    steps = re.findall(r"(?:ttng\.async_tma_store_wait \{pendings = (\d+)|ttg\.local_store %\w+, (%\w+))", loop)
    waits = [int(pending) for pending, _ in steps if pending]
    return waits, len({buffer for _, buffer in steps if buffer}), len(re.findall(r"async_tma_copy_local_to_global", loop))


print(f"Triton {triton.__version__}: (stores still pending at each wait, buffers, stores)")
print("three stores of one shape:", found(64))
print("one of another shape:", found(32))
assert found(64) == ([0, 0, 0], 1, 3), "the behaviour has changed"
assert found(32) == ([0, 0, 0], 2, 3), "the behaviour has changed"
PYTHON
TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/kernel.py"
