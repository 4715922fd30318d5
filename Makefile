# Everything here needs Python 3.11 or newer and a package index; nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
# The oldest supported transformers, as in pyproject.toml; the newest is in constraints.txt.
OLDEST := 5.7.0

.PHONY: help venv browser test test-slow test-matrix lint docs demo serve bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

venv: .venv/.installed  ## make .venv with the pinned dependencies

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

.venv/.lint: .venv/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[lint]'
	@touch $@

browser:  ## chromium for the tests of the server's page, by apt-get as root; where there is none they are skipped
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	echo "There is no chromium, so the tests of the page are skipped; install Debian's package of that name." >&2

test: .venv/.installed  ## the test suite (minutes); tests of the server's page need `make browser` once
	$(PYTEST) -n $(WORKERS) -m 'not slow'

test-slow: .venv/.installed  ## all tests, long ones included
	$(PYTEST) -n $(WORKERS)

test-matrix: .venv/.installed .venv/transformers-$(OLDEST)  ## the model tests on oldest and newest transformers
	$(PYTEST) -n $(WORKERS) tests/models tests/core tests/interop
	PYTHONPATH=.venv/transformers-$(OLDEST) $(PYTEST) -n $(WORKERS) tests/models tests/core tests/interop

.venv/transformers-$(OLDEST): .venv/.installed
	$(BIN)/python -m pip install --quiet --target $@ 'transformers==$(OLDEST)'

lint: .venv/.lint  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .venv/.docs  ## the documentation site, in docs/_site; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_site

.venv/.docs: .venv/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

demo: .venv/.installed  ## compare methods with the embedded model on an embedded task
	$(BIN)/foreword demo

serve: .venv/.installed demo/.made  ## the demo's prompts at http://127.0.0.1:8000 (the first time the demo is run before)
	$(BIN)/foreword serve demo

demo/.made: | .venv/.installed
	$(BIN)/foreword demo
	@touch $@

bench: .venv/.installed  ## every benchmark (hours on two cores); each prints one JSON line last and goes on where it stopped
	@for file in $(wildcard benchmarks/[a-z]*.py); do $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1; done

clean:  ## remove what the targets above made, runs excepted
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
