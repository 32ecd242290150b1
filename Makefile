# Everything runs in one virtual environment that is made on demand. Each purpose leaves a stamp in
# it; a stamp older than setup.cfg is made anew. `make test PYTHON=python3.12` picks another Python,
# `make test VENV=/tmp/env` another place.

VENV ?= .venv
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3.13 python3 python; do \
	  $$candidate -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	    2>/dev/null && { echo $$candidate; break; }; \
	done)
WORKERS ?= 2
PYTEST_ARGS ?=
PYTHONS ?= python3.11 python3.12 python3.13

PY := $(VENV)/bin/python
STAMP := $(VENV)/.ready-

export TF_CPP_MIN_LOG_LEVEL ?= 3
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-fast lint format docs gallery notebooks dist bench clean compat

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

demo: $(STAMP)plot  ## fit the lynx and hare counts; pictures and models go to demo_output/
	MPLBACKEND=Agg $(PY) examples/hudson_bay.py

test: $(STAMP)test  ## the whole test suite
	MPLBACKEND=Agg $(PY) -m tests.rounds -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

test-fast: $(STAMP)test  ## the tests that are not marked slow
	MPLBACKEND=Agg $(PY) -m tests.rounds -n $(WORKERS) --dist worksteal -m "not slow" $(PYTEST_ARGS)

lint: $(STAMP)test  ## style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(STAMP)test  ## format the sources and repair what can be repaired
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(STAMP)docs  ## build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

gallery: $(STAMP)plot $(STAMP)examples  ## run the examples and keep their pictures in docs/images/
	$(PY) docs/gallery.py

notebooks: $(STAMP)docs  ## make a notebook of each example, in notebooks/
	$(PY) docs/notebooks.py

dist: $(STAMP)dist $(STAMP)test  ## build sdist and wheel, check them, and try each in an environment of its own
	rm -rf build dist
	$(PY) -m build --quiet
	$(PY) -m twine check --strict dist/*
	$(PY) -m tests.fresh_install dist/*.whl dist/*.tar.gz

compat: $(PY)  ## install and use the package in fresh environments of other Pythons
	$(PY) -m tests.compatibility $(PYTHONS)

bench: $(STAMP)bench  ## measure beside other packages; results go to benchmarks/results/
	$(PY) -m benchmarks.run

clean:  ## remove what was built; the environments stay
	rm -rf build dist site notebooks demo_output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find keras_neuralde tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 with venv and pip was found" \
	  "(TensorFlow 2.21 has no wheels for others). Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP)%: setup.cfg | $(PY)
	$(PY) -m pip install --quiet --editable '.[$*]'
	@touch $@
