# Two commands need nothing but Python 3.10+, git, make and a network: `make demo` and `make test`. Each makes its own virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# A strict editable install is a tree of links, one per file, so it is made again when a file comes or goes.
FILES := $(shell find kernels nn benchmarks -name '*.py' -o -name '*.cu' | sort | cksum | cut -d' ' -f1)
DEMO := $(VENV)/installed-demo-$(FILES)
DOCS := $(VENV)/installed-docs-$(FILES)
TEST := $(VENV)/installed-test-$(FILES)

# The folder kernels/ must not be importable by that name: Hugging Face has a package called so.
export PYTHONSAFEPATH := 1

.PHONY: demo test docs wheel gpu check format clean

# BACKEND=cupy or eager: on a GPU in place of the Triton kernels.
demo: $(or $(wildcard $(TEST)),$(DEMO))
	$(if $(BACKEND),EPILOGUE_BACKEND=$(BACKEND)) $(BIN)/epilogue demo $(ARGS)

test: $(TEST)
	$(BIN)/pytest -n auto --dist worksteal
ifeq ($(shell uname -s),Linux)
	TRITON_INTERPRET=1 $(BIN)/pytest -n auto --dist worksteal tests/kernels/triton
endif

# The API reference, made from the docstrings: out/docs/index.html. An annotation that pdoc cannot evaluate is shown as it is written.
docs: $(or $(wildcard $(TEST)),$(DOCS))
	$(BIN)/python -W "ignore:Error parsing type annotation" -m pdoc --docformat google --output-directory out/docs epilogue epilogue.nn epilogue.typing epilogue.vocabulary

# dist/epilogue-*.whl, for machines without a network or with an old setuptools. The commit travels in it: no repository may be there.
wheel: | $(BIN)/python
	rm -rf build/lib build/bdist.* dist/epilogue-*.whl
	git describe --always --dirty --exclude='*' --abbrev=40 >benchmarks/commit.txt 2>/dev/null || rm -f benchmarks/commit.txt
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist . ; status=$$?; rm -f benchmarks/commit.txt; exit $$status

# On a machine whose own Python has a CUDA build of torch: the tests, the benchmarks and the tuning on its GPU; ARGS="--minutes 30".
# Needs no network where `make wheel` has left a wheel, ours and whatever others (Liger) lie beside it.
gpu: $(if $(wildcard dist/epilogue-*.whl),,wheel)
	$(PYTHON) -m pip install --quiet --no-index --no-deps --force-reinstall dist/*.whl
	$(PYTHON) -m epilogue gpu-run $(ARGS)

check: $(TEST)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(TEST)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf $(VENV) build dist out

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-%-$(FILES): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	rm -rf build $(VENV)/installed-*
# setuptools warns at length that its tree of links must stay where it is.
# The demo imports a small part of what it installs, so Python compiles that part when it is imported: half a minute less.
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet $(if $(filter demo,$*),--no-compile) -c constraints.txt -e ".[$*]" --config-settings editable_mode=strict
# timm wants torchvision, and that another torch
	$(if $(filter test,$*),$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps timm)
	touch $@
