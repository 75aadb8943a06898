# `make` alone lists what can be made.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check serve bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and install everything into it; does nothing when it is up to date

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Stillhouse needs Python 3.11 or later, and \`$(PYTHON)\` is not. Name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "\`$(PYTHON) -m venv\` failed; on Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@echo "Installing into $(VENV) (a minute or two the first time)..."
	@$(VENV)/bin/python -m pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## start the service, send it a job over HTTP and watch it to the end
	@STILLHOUSE_HOME=$(CURDIR)/.stillhouse $(VENV)/bin/stillhouse quickstart

check: setup ## ruff, mypy and import-linter
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

test: check ## the linters, then every test
	$(VENV)/bin/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m 'not alone' --durations=10
	$(VENV)/bin/pytest -m alone $$(grep -rl --include='*.py' 'mark.alone' tests)

serve: setup ## start the service on this machine, its state in ~/.stillhouse
	@$(VENV)/bin/stillhouse serve

bench: setup ## measure, and print tables (benchmarks/)
	@for program in benchmarks/[a-z]*.py; do echo "== $$program"; \
	  $(VENV)/bin/python -m benchmarks.$$(basename $$program .py) || exit 1; done

clean: ## remove the environment, caches and the demo's state
	rm -rf $(VENV) .stillhouse .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
