#!/usr/bin/env bash
# torch 2.13.0: torch.compile(fullgraph=True) cannot trace ContextVar.get, but it traces a property whose getter is that very method.
# It guards on the property's value: after the variable is set, the function is compiled again with the new value.
# One would expect both to be refused or both to be traced.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
from contextvars import ContextVar

import torch

factor = ContextVar("factor")
factor.set(2.0)


class Reader:
    here = property(factor.get)


reader = Reader()
compiled = torch.compile(lambda x: x * reader.here, fullgraph=True, backend="eager")
refused = ""
try:
    torch.compile(lambda x: x * factor.get(), fullgraph=True, backend="eager")(torch.ones(1))
except torch._dynamo.exc.Unsupported as error:
    refused = type(error).__name__
values = [compiled(torch.ones(1)).item()]
factor.set(3.0)
values.append(compiled(torch.ones(1)).item())
print(torch.__version__)
print(f"ContextVar.get: {refused or 'traced'}; by a property: {values}")
assert refused == "Unsupported", "the behaviour has changed"
assert values == [2.0, 3.0], "the behaviour has changed"
PYTHON
