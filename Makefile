# All targets share the environment .venv. `make demo` installs what the commands need, `make test` adds what the tests
# need; running a target again installs nothing. uv is used if it is installed, else pip.
#   make demo                     train on the built-in data
#   make test PYTHON=python3.13   another Python
#   make test CONSTRAINTS=constraints/cpu.txt
#   make test TEST_PROCESSES=0    one test at a time
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?=
ARGS ?=
TEST_PROCESSES ?= 2

BIN := $(VENV)/bin
SIDE_BY_SIDE := -n $(TEST_PROCESSES) --dist loadfile
CORE := $(VENV)/.installed-core
READY := $(VENV)/.installed-dev

ifneq ($(CONSTRAINTS),)
export PIP_CONSTRAINT := $(abspath $(CONSTRAINTS))
endif
ifneq ($(shell command -v uv),)
ifneq ($(PIP_CONSTRAINT),)
export UV_CONSTRAINT := $(PIP_CONSTRAINT)
endif
export UV_TORCH_BACKEND ?= auto
MAKE_VENV := uv venv --quiet --seed --python $(PYTHON) $(VENV)
INSTALL := uv pip install --quiet --python $(BIN)/python --editable
else
MAKE_VENV := $(PYTHON) -m venv $(VENV)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable
endif

.DEFAULT_GOAL := help
.PHONY: help install demo check test test-slow coverage docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

install: $(READY)  ## create the environment with all dependencies

$(BIN)/python:
	$(MAKE_VENV)

$(CORE): pyproject.toml | $(BIN)/python
	$(INSTALL) .
	touch $@

$(READY): pyproject.toml | $(BIN)/python
	$(INSTALL) ".[dev]"
	touch $(CORE) $@

demo: $(CORE)  ## train the block CNN on the built-in data; minutes on a CPU (ARGS="key=value ...")
	$(BIN)/python train.py $(ARGS)

check: $(READY)  ## check lint, formatting and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

test: check  ## check, then run the quick tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-slow: $(READY)  ## run the slow tests
	$(BIN)/python -m pytest -m slow $(SIDE_BY_SIDE) $(ARGS)

coverage: $(READY)  ## run the quick tests and list uncovered lines and branches
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered $(ARGS)

docs: $(READY)  ## build the documentation site in site/ (then: python -m http.server --directory site)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:  ## remove the environment and all caches; results in outputs/ are kept
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
