# No separate set-up is needed: each target first installs what it needs into .venv.
# Another interpreter: make test PYTHON=python3.12. Another torch build: install it into .venv first (README).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo tensorboard figures notebook test test-slow test-gpu lint format golden bench clean

help:  ## print this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "error: needs Python 3.10, 3.11 or 3.12, and $(PYTHON) is $$($(PYTHON) -V 2>&1);" \
	         "try: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/runtime.stamp: requirements.txt | $(BIN)/python
	@echo "installing into .venv: torch first, then the pins; this takes a few minutes"
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

DEV := requirements-dev.txt requirements-sweep.txt requirements-dashboard.txt

.venv/dev.stamp: $(DEV) .venv/runtime.stamp
	$(BIN)/python -m pip install --quiet -r requirements.txt $(DEV:%=-r %)
	@touch $@

setup: .venv/runtime.stamp  ## create .venv with the packages that the scripts need

demo: .venv/runtime.stamp  ## train relu and crational on cartpole, print a table, draw runs/demo.png
	@PYTHON=$(BIN)/python scripts/demo.sh

tensorboard: .venv/runtime.stamp  ## show all runs under runs/ in TensorBoard, by short names
	@$(BIN)/python scripts/tensorboard_runs.py

figures: .venv/runtime.stamp  ## redraw every figure under results/ from the CSV files beside it
	@$(BIN)/python figures.py redraw results

notebook: .venv/dev.stamp  ## run examples/analyse_a_run.ipynb and save its pictures; the first time this trains two small runs
	@cd examples && ../$(BIN)/jupyter execute --inplace analyse_a_run.ipynb

test: .venv/dev.stamp lint  ## lint, and the tests that are neither slow nor need a GPU
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist worksteal -m "not slow and not gpu"

test-slow: .venv/dev.stamp  ## the slow tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

test-gpu: .venv/dev.stamp  ## the tests that need a CUDA device, eight at a time
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 8 -m gpu tests/test_gpu_updates.py tests/test_gpu_runs.py

lint: .venv/dev.stamp  ## ruff check and ruff format --check
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: .venv/dev.stamp  ## apply the fixes of ruff check, and ruff format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

golden: .venv/dev.stamp  ## rewrite tests/golden.jsonl, after a change that is meant to change names or rows of runs
	@$(BIN)/python tests/golden.py --renew

bench: .venv/dev.stamp  ## measure speed and memory (benchmarks/); needs an otherwise idle machine
	@for script in benchmarks/{kde,sac_updates,sac_loop}.py; do echo "== $$script"; $(BIN)/python "$$script"; done

clean:  ## remove .venv and caches; runs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
