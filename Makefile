# Needs Python 3.10 or newer and make; everything else is installed into .venv.
# PYTHON chooses the interpreter that .venv is made with: `make PYTHON=python3.12 test`.
# ARGS is passed on to the program: `make test ARGS="-k scale"`.

PYTHON ?= python3
ARGS =
PIP_INSTALL = .venv/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: help quickstart test test-all lint bench bench-compare clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s  %s\n", $$1, $$2 }' Makefile

quickstart: .venv/installed ## train a small quantized network
	.venv/bin/python -m recipes.quickstart $(ARGS)

test: lint ## lint, then run the tests and the examples in docstrings
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

test-all: lint ## the same and what takes longer: soak, kills, the full fuzz run
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile -m "slow or not slow" $(ARGS)

lint: .venv/installed ## check style, formatting and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

bench: .venv/installed ## measure speed and memory; ARGS=--quick for a first look
	.venv/bin/python -m benchmarks $(ARGS)

bench-compare: .venv/installed ## tell whether anything became slower than its last record
	.venv/bin/python -m benchmarks.compare $(ARGS)

clean: ## remove .venv, builds and caches
	rm -rf .venv build dist .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Built without isolation, with a build backend installed before: an isolated build would not read constraints.txt.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 10) or sys.exit("lightning_balq needs Python 3.10 or newer, got %d.%d; name another: make PYTHON=python3.12" % v)'
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(PIP_INSTALL) hatchling
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@
