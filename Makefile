# `make test` checks everything, `make demo` shows it; both begin with nothing but Python >= 3.11.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready

# Every folder with a pyproject.toml is a room; the order is the order in which their tests run.
PROJECTS := $(wildcard schemas/pyproject.toml gs_core/pyproject.toml gs_plugins/*/*/pyproject.toml adapters/*/pyproject.toml \
            compat/*/pyproject.toml)
ROOMS    := $(PROJECTS:/pyproject.toml=)

TINY   := tests/data/tiny-llama
DEMO   := .venv-demo

.PHONY: test lint unit system fuzz-short fuzz packages lanes demo bench presets clean

# One after the other, also under `make -j`: the cheap checks speak first.
test:
	$(MAKE) lint
	$(MAKE) unit
	$(MAKE) system
	$(MAKE) fuzz-short
	$(MAKE) packages
	$(MAKE) lanes

# pip resolves the rooms together only when one command names them all.
$(READY): pyproject.toml constraints.txt $(PROJECTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt --group dev $(ROOMS:%=-e './%[test]')
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/pytest -m "not lane" $(ROOMS:%=%/tests)

system: $(READY)
	$(BIN)/pytest -m "not lane" tests --ignore tests/packaging --ignore tests/lanes

fuzz-short: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py --seconds 60

# An hour of new mutants.
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py --seconds 3600 --seed $(shell date +%s)

packages: $(READY)
	$(BIN)/pytest tests/packaging

lanes: $(READY)
	$(BIN)/pytest tests/lanes

# An environment with only what a user needs. One hatchling builds all rooms, and only imported modules are compiled.
$(DEMO)/ready: pyproject.toml constraints.txt $(PROJECTS)
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install --quiet --upgrade "pip>=25.1" "hatchling>=1.27"
	$(DEMO)/bin/python -m pip install --quiet --no-compile --no-build-isolation -c constraints.txt .
	touch $@

demo: $(DEMO)/ready
	$(DEMO)/bin/gsq quantize $(TINY) w4a16-gptq -o out/tiny-llama-w4a16 --restart \
		--calibration tests/data/calibration.txt --samples 128 --seq-len 256
	$(DEMO)/bin/gsq eval out/tiny-llama-w4a16 --against $(TINY) --text tests/data/evaluation.txt --seq-len 256 --windows 64

bench: $(READY)
	$(BIN)/python tests/bench/run.py --out docs/benchmarks.md

# Every preset on every model: hours on one core.
presets: $(READY)
	$(BIN)/python tests/bench/presets.py --jobs 2 --out docs/presets.md

clean:
	rm -rf $(VENV) $(DEMO) out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
