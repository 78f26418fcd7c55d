# Everything a person types. Each target sets up what it needs in .venv, quickly when nothing changed.
SHELL := /bin/sh
PYTHON := .venv/bin/python
LOCK := .venv/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet \
	--constraint tools/lock_constraints.txt

.DEFAULT_GOAL := help
.PHONY: help set-up demo test check format bench acceptance chaos lock clean

help:
	@echo "make demo         three devices on this machine answer about a photo; one is killed; they answer again"
	@echo "make test         lint, types, import contracts and tests"
	@echo "make check        lint, types and import contracts alone"
	@echo "make format       format the code"
	@echo "make bench        measure, on this machine"
	@echo "make acceptance   the long checks, in a rack of virtual devices (root)"
	@echo "make chaos        faults on a seeded schedule in the rack, DURATION_S=120 SEED=1; exit 0 if nothing was lost"
	@echo "make lock         resolve the dependencies again"
	@echo "make clean        remove everything make made"

set-up:
	@sh tools/set_up.sh

demo: set-up
	@$(PYTHON) -m tools.demo

test: check
	@$(PYTHON) -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

check: set-up
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo

format: set-up
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

bench: set-up
	@$(PYTHON) -m tools.bench

acceptance: set-up
	@$(PYTHON) -m tools.acceptance

DURATION_S ?= 120
SEED ?= 1
chaos: set-up
	@$(PYTHON) -m tools.chaos --seconds $(DURATION_S) --seed $(SEED) $(CHAOS)

lock: set-up
	@$(PYTHON) -m pip install --quiet uv
	@$(LOCK) --upgrade --output-file requirements.txt
	@$(LOCK) --upgrade --no-annotate --group dev --constraint requirements.txt --output-file requirements-dev.txt

clean:
	@rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
