#!/usr/bin/env bash
# Triton 3.9.0: a kernel's argument may not be called `params`, `options` or `backend`. The function that Triton generates to bind the
# arguments of a launch uses these names itself, and the error points elsewhere ("failed to specialize argument of type: dict").
# triton.compile and the interpreter accept the same kernels without an error. So tests without a GPU pass, and the first launch on a GPU
# fails.
# Here an object that only names a target stands in for the GPU's driver; `warmup` binds and compiles as a launch does.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check triton==3.9.0
cat >"$folder/kernel.py" <<'PYTHON'
from types import SimpleNamespace

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

target = GPUTarget("cuda", 90, 32)
triton.runtime.driver.set_active(
    SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: target,
    )
)


@triton.jit
def factor_kernel(y, factor):
    tl.store(y, factor)


@triton.jit
def params_kernel(y, params):
    tl.store(y, params)


@triton.jit
def options_kernel(y, options):
    tl.store(y, options)


@triton.jit
def backend_kernel(y, backend):
    tl.store(y, backend)


def launched(kernel):
    try:
        kernel.warmup(triton.MockTensor(tl.float32), 2.0, grid=(1,))
    except (TypeError, SyntaxError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return "bound"


found = {}
print("Triton", triton.__version__)
for kernel in factor_kernel, params_kernel, options_kernel, backend_kernel:
    _, name = kernel.arg_names
    triton.compile(ASTSource(kernel, {"y": "*fp32", name: "fp32"}), target=target)
    found[name] = launched(kernel)
    print(f"{name:8} {found[name]}")
assert {name: outcome.partition(":")[0] for name, outcome in found.items()} == {
    "factor": "bound",
    "params": "TypeError",
    "options": "SyntaxError",
    "backend": "AttributeError",
}, "the behaviour has changed"
PYTHON
TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" "$folder/kernel.py"
