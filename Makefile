# `make demo` and `make test` do all set-up themselves, in a virtual environment of their own.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A safetensors file for the demo; without it the timm hub is asked, then features are untrained.
WEIGHTS ?=

.PHONY: demo test test-slow lint check clean

$(VENV)/.runtime: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/.development: $(VENV)/.runtime
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

demo: $(VENV)/.runtime
	$(BIN)/patchlake demo demo $(if $(WEIGHTS),--weights $(WEIGHTS))

test: $(VENV)/.development
	$(BIN)/python -m pytest -m "not slow" --durations 15

# Real images with real weights, which are skipped, visibly, where they are absent; and faults. Most
# wait for processes that start, so two files of tests run at a time; those that ask how long
# something takes run alone.
test-slow: $(VENV)/.development
	$(BIN)/python -m pytest -m "slow and not alone" -n 2 --dist loadfile --maxfail 5 --durations 30
	$(BIN)/python -m pytest -m "slow and alone" --maxfail 5 --durations 10

lint: $(VENV)/.development
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

clean:
	rm -rf demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
