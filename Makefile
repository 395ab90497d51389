# Two commands for a bare clone: `make demo` and `make test`. Each makes .venv, installs what it lacks, and runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SEED ?= 7

# Where it is set, each of the many processes that Ray starts would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint install install-dev clean

demo: install
	$(BIN)/raydistill demo --seed $(SEED)

test: install-dev
	$(BIN)/ruff check raydistill jobs tests benchmarks
	$(BIN)/ruff format --check raydistill jobs tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu" --durations=40

lint: install-dev
	$(BIN)/ruff check --fix raydistill jobs tests benchmarks
	$(BIN)/ruff format raydistill jobs tests benchmarks
	$(BIN)/mypy

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The markers name what the environment was installed from, so a changed pin or dependency installs again.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --progress-bar=on -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	# What the tests import is compiled when it is first imported: two fifths of the time would go into the rest.
	$(BIN)/python -m pip install --no-compile --progress-bar=on -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
