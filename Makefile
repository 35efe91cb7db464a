# `make demo` and `make test` do all the set-up on a fresh machine: a virtual environment in .venv,
# this package and what it needs. .ci/constraints.txt pins the CPU build of PyTorch.
PYTHON ?= python3
VENV := .venv
# Where a virtual environment keeps its programs.
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
CONSTRAINTS := .ci/constraints.txt

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/csa2glmha demo --overwrite

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) demo-output build *.egg-info
