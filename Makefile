# make demo | test | docs | generated | new SLUG=... ROOM=... | benchmarks
# Every target makes its own set-up in .venv; only Python 3.11 to 3.13, make and git are needed.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin

# The named data sets of the tests: a folder beside the repository, where there is one; without it those tests are skipped.
ifneq ($(wildcard ../shared/data),)
export RETINUE_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test docs generated new benchmarks

demo: .venv/base
	$(BIN)/retinue demo

test: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet --site-dir build/site
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

docs: .venv/dev
	$(BIN)/mkdocs build --strict

generated: .venv/dev
	$(BIN)/python tools/generate.py

new: .venv/dev
	$(BIN)/python tools/new.py --slug "$(SLUG)" --room "$(ROOM)"

benchmarks: .venv/bench
	$(BIN)/python -m benchmarks

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "retinue needs Python 3.11, 3.12 or 3.13; none was found on the PATH."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/base: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@ .venv/base

.venv/bench: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[bench]"
	@touch $@ .venv/base
