# Everything runs in .venv, which each target makes or brings up to date by itself.
PYTHON ?= python3
PORT ?= 3000
JOBS ?= 2
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: help setup serve test test-slow test-all lint docs format bench peers demo clean

help: ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv

.venv/.export: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable '.[export]'
	touch $@

.venv/.dev: .venv/.export
	$(PIP) install --constraint constraints.txt --editable '.[export,dev]'
	touch $@

setup: .venv/.dev ## make .venv with everything a developer needs

serve: .venv/.export ## export and prove the demo model, then serve it on PORT (3000)
	$(BIN)/bentoml serve service:LanguageModel --port $(PORT)

PYTEST = $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=10

test: .venv/.dev ## run the tests on JOBS (2) processes, but for the slow ones
	$(PYTEST)

test-slow: .venv/.dev ## run the slow ones of what changed since CI_BASE, or else since a day ago
	folders=$$($(BIN)/python -m tests.changed) && { test -z "$$folders" || $(PYTEST) -m slow $$folders; }

test-all: .venv/.dev ## run all tests, the slow ones too, and try more examples
	$(PYTEST) -m ""

lint: .venv/.dev ## format, lint, types, who may import whom, and the reference in the docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.reference --check

.venv/.docs: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: .venv/.docs ## build the documentation into build/docs; a link that leads nowhere fails
	$(BIN)/zensical build --clean --strict

format: .venv/.dev ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m tools.reference

.venv/.bench: .venv/.dev
	$(PIP) install --constraint constraints.txt --editable '.[export,dev,bench]'
	touch $@

bench: .venv/.bench ## time against other engines on the same weights, those that peers installed
	$(BIN)/python -m benchmarks

peers: $(BIN)/python ## install those engines, each in an environment of its own (llama.cpp compiles)
	$(BIN)/python -m benchmarks.peers.setup

demo: .venv/.dev ## train the demo model again
	$(BIN)/python -m recipes.demo.train --out build/demo --resume

clean: ## remove what the targets made
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .cache
