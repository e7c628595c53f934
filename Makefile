# One command from a fresh clone: `make quickstart`, or `make test`. Both do their own set-up in .venv, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests of the parts that need no training run: what `make check` adds to format, lint, types and layers.
FAST_TESTS := tests/core tests/foundations tests/text tests/tokenizer tests/datasets tests/model tests/generation tests/evaluation tests/parity
SOURCES := src tests $(wildcard benchmarks)
# What the installed packages depend on: a change of these files, and nothing else, does the set-up again.
LOCK := pyproject.toml constraints.txt

.PHONY: help quickstart test test-full check format bench clean

help:
	@echo 'make quickstart   train a first model, from text to report (under 4 minutes after set-up)'
	@echo 'make test         what a fresh clone proves, in at most 15 minutes'
	@echo 'make check        format, lint, types, layers, tables, fast tests'
	@echo 'make test-full    the rest too: long kills, fuzzing, real models'
	@echo 'make bench        measure side by side with other projects, into benchmarks/ledger.jsonl'
	@echo 'make clean        remove .venv and what tools left'

quickstart: $(VENV)/.ready-run
	$(BIN)/journey quickstart $(ARGS)

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m 'not full and not gpu' $(ARGS)

test-full: $(VENV)/.ready-dev
	HYPOTHESIS_PROFILE=default $(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.ready-dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m llm_journey.reports.tables --check README.md $(wildcard docs/*.md)
	$(BIN)/python -m pytest -m 'not full and not gpu and not network' $(wildcard $(FAST_TESTS))

format: $(VENV)/.ready-dev
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: $(VENV)/.ready-dev
	$(BIN)/python benchmarks/tokenizer.py --append
	$(BIN)/python benchmarks/mfu.py --append
	$(BIN)/python benchmarks/gguf.py --append
	$(BIN)/python benchmarks/embed.py --append
	$(BIN)/python benchmarks/recipes.py quickstart mlm mlm-bert dates span small --append
ifdef NANOGPT
	$(BIN)/python benchmarks/pretrain.py --nanogpt $(NANOGPT) --text $(TEXT) --append
else
	@echo 'not compared with nanoGPT: make bench NANOGPT=its/checkout TEXT=tinyshakespeare/input.txt' >&2
endif

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.ready-venv:
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo 'error: no $(PYTHON) here; install Python 3.11 or newer, or say which: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo 'error: $(PYTHON) comes without venv or ensurepip; install them (Debian, Ubuntu: apt install python3-venv)' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.ready-run: $(VENV)/.ready-venv $(LOCK)
	@echo 'Setting up $(VENV), once (torch is large: some minutes) ...' >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[hf,serve,constrain,client,rag]'
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready-venv $(LOCK)
	@echo 'Setting up $(VENV) for development, once (some minutes) ...' >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.ready-run
