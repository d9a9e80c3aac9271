# Needs Python 3.10 or newer and make; everything else is installed into .venv.
# PYTHON chooses the interpreter that .venv is made with: `make PYTHON=python3.12 test`.
# ARGS is passed on to the program: `make test ARGS="-k scale"`.

PYTHON ?= python3
ARGS =
VENV = .venv
# Versions to install; empty for the newest ones that pyproject.toml admits: `make CONSTRAINTS= VENV=.venv-newest test`.
CONSTRAINTS = constraints.txt
BIN = $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
TESTS = pytest -n 2 --dist loadfile
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m $(TESTS)
MKDOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs

.PHONY: help quickstart test test-all test-oldest pytest lint check coverage mutation bench bench-compare docs docs-serve clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s  %s\n", $$1, $$2 }' Makefile

quickstart: $(VENV)/installed ## train a small quantized network
	$(BIN)/python -m recipes.quickstart $(ARGS)

test: lint pytest ## lint, then run the tests and the examples in docstrings

test-all: lint ## the same and what takes longer: soak, kills, the full fuzz run
	$(PYTEST) -m "slow or not slow" $(ARGS)

test-oldest: ## run the tests on the oldest supported torch and Lightning, which needs Python 3.10 to 3.12
	$(MAKE) VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt pytest

pytest: $(VENV)/installed
	$(PYTEST) $(ARGS)

lint: $(VENV)/installed ## check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

check: $(VENV)/checks ## check licences and known vulnerabilities of what is installed; the latter needs the network
	$(BIN)/python -m piplicenses
	$(BIN)/python -m pip_audit --strict --requirement constraints.txt --no-deps --disable-pip --timeout 20 --progress-spinner off

# Tests of other packages are left out. Tests take longer than usual, most of all those in an interpreter of kernels.
MEASURED = --ignore=tests/recipes --ignore=tests/benchmarks --timeout=1200

coverage: $(VENV)/checks ## run the tests, and say which branches of lightning_balq none of them takes
	$(BIN)/python -m coverage erase
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m $(TESTS) $(MEASURED) $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

mutation: $(VENV)/installed ## change the code in one place at a time, and say which changes no test notices; ARGS="--sample 300"
	$(BIN)/python -m tests.mutation $(ARGS)

bench: $(VENV)/installed ## measure speed and memory; ARGS=--quick for a first look
	$(BIN)/python -m benchmarks $(ARGS)

bench-compare: $(VENV)/installed ## tell whether anything became slower than its last record
	$(BIN)/python -m benchmarks.compare $(ARGS)

docs: $(VENV)/docs ## write the documentation to site/
	$(MKDOCS) build --strict --quiet --config-file docs/mkdocs/mkdocs.yml $(ARGS)

docs-serve: $(VENV)/docs ## show the documentation in a browser, and again what changes
	$(MKDOCS) serve --config-file docs/mkdocs/mkdocs.yml $(ARGS)

clean: ## remove .venv, builds and caches
	rm -rf .venv .venv-oldest build dist site .benchmarks .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Built without isolation, with a build backend installed before: an isolated build would not read constraints.txt.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 10) or sys.exit("lightning_balq needs Python 3.10 or newer, got %d.%d; name another: make PYTHON=python3.12" % v)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) hatchling
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

# What no test needs is installed when it is asked for.
$(VENV)/checks: $(VENV)/installed
	$(PIP_INSTALL) --no-build-isolation --editable '.[check,dev]'
	@touch $@

$(VENV)/docs: $(VENV)/installed
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev,docs]'
	@touch $@
