# Each target makes .venv if it is missing and installs into it; only the package index is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Where Python is told to keep no compiled modules, each of the hundreds of processes that tests start compiles them anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: bench bench-smoke demo gpu study test test-integrations test-slow lint types docs clean

demo: $(INSTALLED)  ## train LARS, LARS with warm-up and TVLARS on digits and compare them
	$(BIN)/python examples/large_batch_digits.py

test: $(INSTALLED)  ## the tests not marked slow
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-slow: $(INSTALLED)  ## those marked slow
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist load --maxschedchunk 1 -m slow

test-integrations: $(INSTALLED)  ## those of the adaptors, with the real packages
	$(BIN)/python -m pip install --quiet -e '.[integrations]'
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile tests/integrations

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

bench: $(INSTALLED)  ## every claim of speed and size against the peers: the whole table, met or not
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python -m benchmarks

bench-smoke: $(INSTALLED)  ## every benchmark once, too small to measure anything: does it still run?
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python -m benchmarks --smoke

study: $(INSTALLED)  ## train what docs/evidence/study.md tells of, hours and resumable, and write its tables
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python -m benchmarks.study run
	$(BIN)/python -m benchmarks.study results
	$(BIN)/python -m benchmarks.study tables

gpu:  ## checks and figures of a CUDA device, with the PYTHON given as it is: nothing is installed
	$(PYTHON) -m pytest -q -p no:cacheprovider tests/gpu
	$(PYTHON) -m benchmarks.gpu

docs: $(INSTALLED)  ## write the generated pages of docs/ again, and build the site into docs/_build/html
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build/html

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test,lint]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
