# Every target does its own set-up: git, make and Python 3.10 or newer with venv are all it takes.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

# Which Python the checkout's environment runs on: a version, a range or a path, as uv reads it.
PYTHON ?= >=3.10,<3.14

UV := $(shell command -v uv 2>/dev/null)
ifeq ($(UV),)
UV := .tools/bin/uv
OWN_UV := .tools/bin/uv
endif

# What a recipe runs finds the environment's programs, and uv, before anything else.
IN_ENV = PATH="$(CURDIR)/.venv/bin:$$PATH:$(CURDIR)/.tools/bin"

BIN := .venv/bin
READY := .venv/.ready
PYTHON_OF_ENV = $$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')

help: ## List the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "make %-16s %s\n", $$1, $$2 }'

demo: $(OWN_UV) ## Scaffold a project with default answers and load the demo's data in it
	@"$(UV)" run --quiet --no-project --python '$(PYTHON)' scripts/demo_project.py load

demo-ui: $(OWN_UV) ## Open the Prefect UI on what `make demo` did
	@"$(UV)" run --quiet --no-project --python '$(PYTHON)' scripts/demo_project.py ui

setup: $(READY) ## Make the development environment, .venv

test: $(READY) ## Run the whole suite, then the runtime's on the oldest and the newest versions
	@$(IN_ENV) python scripts/test_matrix.py

quick: $(READY) ## Run the suite's quick tests on this Python only; pytest's options go in ARGS
	@$(IN_ENV) pytest -m 'not slow' $(ARGS)

chaos: $(READY) ## Kill a thousand loads, and make 450 first runs of 32 components; options of the kills go in ARGS
	@$(IN_ENV) python -m tests.chaos --kills 1000 $(ARGS)
	@$(IN_ENV) python -m tests.chaos.first_runs --duckdb 200 --postgres 200 --processes 50

bench-collector: $(READY) ## Measure what the collector costs a load, with the API up, slow, hanging and down
	@$(IN_ENV) python -m benchmarks.collector $(ARGS)

bench-runner: $(READY) ## Measure what the runner costs a load, and what it saves one that fails once
	@$(IN_ENV) python -m benchmarks.runner $(ARGS)

bench-decompose: $(READY) ## Measure what taking a source apart costs, and what it is worth
	@"$(UV)" pip install --quiet --python $(BIN)/python --group bench
	@$(IN_ENV) python -m benchmarks.decompose $(ARGS)

check: $(READY) ## Lint, check the format and the types, run the pre-commit hooks
	@$(IN_ENV) ruff check .
	@$(IN_ENV) ruff format --check .
	@$(IN_ENV) pyright
	@$(IN_ENV) python scripts/check_generated.py
	@$(IN_ENV) pre-commit run --all-files

format: $(READY) ## Format the code and mend what ruff can mend
	@$(IN_ENV) ruff check --fix-only .
	@$(IN_ENV) ruff format .

hooks: $(READY) ## Have git run the pre-commit hooks at every commit
	@$(IN_ENV) pre-commit install

gallery: $(READY) ## Run the demo and more, and take the pictures in docs/gallery; needs a Chromium
	@"$(UV)" pip install --quiet --python $(BIN)/python --group gallery
	@$(IN_ENV) UV="$(UV)" python scripts/gallery.py

constraints: $(OWN_UV) ## Write the newest versions that resolve to constraints/, one file per Python
	@for version in 3.10 3.11 3.12 3.13; do \
	    echo "constraints/$$version.txt"; \
	    "$(UV)" pip compile --quiet --upgrade --python-version $$version --no-python-downloads \
	        --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	        --all-extras --group pyproject.toml:dev \
	        --output-file constraints/$$version.txt template/runtime/pyproject.toml \
	        >/dev/null || exit 1; \
	done

clean: ## Remove every environment and cache, and the demo
	rm -rf .venv .venvs .tools demo .pytest_cache .ruff_cache build dist

.PHONY: help demo demo-ui setup test quick chaos bench-collector bench-runner bench-decompose check format hooks gallery constraints \
    clean

$(READY): Makefile pyproject.toml template/runtime/pyproject.toml $(wildcard constraints/*.txt) | $(OWN_UV)
	@# Compiled: tests start many processes, and where Python is told to write no bytecode, each would compile all anew.
	@echo "Installing the development environment into .venv ..."
	@"$(UV)" venv --quiet --clear --python '$(PYTHON)' .venv
	@"$(UV)" pip install --quiet --compile-bytecode --python $(BIN)/python --group dev \
	    --constraints "constraints/$(PYTHON_OF_ENV).txt" \
	    --editable 'template/runtime[duckdb,postgres,sql,demo,dask,ray]'
	@touch $@

.tools/bin/uv:
	@echo "Installing uv into .tools ..."
	@python3 -m venv .tools
	@.tools/bin/pip install --quiet --disable-pip-version-check uv
