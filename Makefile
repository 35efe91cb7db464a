# `make demo` and `make test` do all the set-up on a fresh machine: a virtual environment in .venv,
# this package and what it needs. .ci/constraints.txt pins the CPU build of PyTorch.
PYTHON ?= python3
VENV := .venv
# Where a virtual environment keeps its programs.
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
CONSTRAINTS := .ci/constraints.txt

# One worker for each processor that is ours to use; tests of a file stay together, since they share
# what the file's fixtures made. PYTEST_WORKERS=0 runs all in one process.
PYTEST_WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest --numprocesses=$(PYTEST_WORKERS) --dist=loadfile --durations=10

.PHONY: demo test test-fast lint clean

demo: $(VENV)/.installed
	$(BIN)/csa2glmha demo --overwrite

test: $(VENV)/.installed-dev
	$(PYTEST)

# Without those that take seconds each.
test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) demo-output build *.egg-info
