# `make demo` and `make test` do all set-up themselves, in a virtual environment of their own.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-soak lint docs check clean

$(VENV)/.runtime: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/.development: $(VENV)/.runtime
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

$(VENV)/.documentation: $(VENV)/.runtime
	$(BIN)/pip install --quiet -e '.[docs]'
	touch $@

demo: $(VENV)/.runtime
	$(BIN)/patchlake demo demo

# Two files of tests at a time, whose threads would wait for one another.
TESTS := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
FAST := $(TESTS) -m "not slow"

test: $(VENV)/.development
	$(FAST) --durations 15

# Real images with real weights, which are skipped, visibly, where they are absent; and faults. The
# checks of annotations are for the quick tests.
test-slow: $(VENV)/.development
	UNCHECKED_ARRAYS=1 $(TESTS) -m "slow and not soak" --maxfail 5 --durations 30

# An hour of further faults, for which CI has no time: before a release, and after a change of what
# they are about.
test-soak: $(VENV)/.development
	$(BIN)/python -m pytest -m soak --durations 30
	HYPOTHESIS_PROFILE=thorough $(FAST)

lint: $(VENV)/.development
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini
	$(BIN)/lint-imports

# Into site/. The switch is of a notice of mkdocs-material about mkdocs 2.
docs: $(VENV)/.documentation
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: lint test

clean:
	rm -rf demo build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
