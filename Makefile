# Two commands do everything: `make reproduce` and `make test`. Needs Python >= 3.11, make and git.
PYTHON ?= python3
PRESET ?= quick
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install reproduce test test-all test-fast lint format report speed atari-smoke clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[all,dev]"
	@touch $@

install: $(INSTALLED)  ## create .venv with exactly the tested versions

reproduce: $(INSTALLED)  ## run every paper's benchmark (PRESET=quick|cpu|long|gpu|paper), write results/report.html
	$(BIN)/python -m benchmarks.reproduce --preset $(PRESET)

test: $(INSTALLED)  ## run the tests (20 minutes on two quiet cores)
	$(BIN)/python -m ruff check .
	$(BIN)/pyrefly check
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long"

test-all: $(INSTALLED)  ## run all tests, also the long ones
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(INSTALLED)  ## run the tests that take seconds
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not long"

lint: $(INSTALLED)  ## check style and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/pyrefly check

format: $(INSTALLED)  ## apply style
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

report: $(INSTALLED)  ## rebuild results/report.html from the results at hand
	$(BIN)/python -m benchmarks.report

speed: $(INSTALLED)  ## measure speed against other libraries, each in an environment of its own
	@for script in dapo.speed nppac.speed empirical_likelihood.speed star.speed star.fqe_speed deterministic.speed; do \
		$(BIN)/python -m benchmarks.$$script || exit 1; \
	done

atari-smoke: $(INSTALLED)  ## watch learning start on one real Atari game (minutes)
	$(BIN)/python -m benchmarks.dapo.atari --preset smoke

clean:  ## remove the environments and everything that runs leave behind
	rm -rf $(VENV) .venv-* results runs build dist *.egg-info
