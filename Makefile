# Everything installs into .venv, with the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MINUTES ?= 120
# files side by side, but not those with a Ray cluster: it takes all cores. Only they are imported for its tests.
ON_RAY = $(sort $(shell grep -rlF mark.ray tests --include='test_*.py'))
THOROUGH = $(sort $(shell grep -rlF mark.thorough tests --include='test_*.py'))
SIDE_BY_SIDE := --numprocesses logical --maxprocesses 8 --dist loadfile
PIP_INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# empty is unset: hundreds of processes import the package, and each would compile it again
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-thorough lint types docs bench bench-quick soak clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/installed ## Create the virtual environment and install the package with its tools

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

demo: install ## Score the Python language reference with memory and without, and write a report
	$(BIN)/longmem perplexity

test: install ## Run the default tests
	$(BIN)/python -m pytest -m "not ray and not slow and not thorough" --durations=20 $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest -m "ray and not slow and not thorough" --durations=20 $(ON_RAY)

# not the files of few tests last, which is the default: they have the longest tests, and one core would wait for another
test-thorough: install ## Run the tests of many seconds each; CI runs them after the default ones
	$(BIN)/python -m pytest -m "thorough and not ray and not slow" --durations=20 $(SIDE_BY_SIDE) --no-loadscope-reorder $(THOROUGH)
	$(BIN)/python -m pytest -m "thorough and ray and not slow" --durations=20 $(ON_RAY)

lint: install ## Check style and the arrows between folders
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install ## Check types
	$(BIN)/mypy

# not --quiet: it would hide the warnings from --strict
docs: install ## Build the documents as a site, with every link checked
	$(PIP_INSTALL) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "the site is in build/site; see it with: $(PYTHON) -m http.server --directory build/site --bind 127.0.0.1"

bench: install ## Reproduce the numbers of docs/performance.md
	$(BIN)/python -m benchmarks

bench-quick: install ## Run every kind of benchmark at a small size
	$(BIN)/python -m benchmarks quick $(BOOKS) $(if $(ICL),--icl $(ICL))

soak: install ## Kill, stop and starve store and jobs for MINUTES=120, and look what they hold and lose
	$(BIN)/python -m tests.fault.crash.soak --minutes $(MINUTES) $(if $(OUT),--out $(OUT))

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
