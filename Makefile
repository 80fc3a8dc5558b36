# Two commands on a fresh machine with Python 3.11+ and make: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
INSTALLED := $(VENV)/.installed

.PHONY: demo test check behaviour museum format fast bench pages clean

demo: $(INSTALLED)
	$(BIN)/sottovoce simulate $(DEMO)/data --overwrite --layout t15 --sessions 4 --trials 200 --electrodes 64 --snr 3 --seed 1
	$(BIN)/sottovoce train recipe=demo data.data_root=$(DEMO)/data runs_dir=$(DEMO)/runs

test: check

# Exactly what CI runs.
check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

fast: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 -q -m "not slow and not behaviour and not museum"

# What the recipes are good for on simulated data; some twenty minutes.
behaviour: $(INSTALLED)
	$(BIN)/python -m pytest -q -s -m behaviour tests/behaviour

# Every fault of the catalogue in a run that would be healthy, healthy runs beside them, and a table of what was named.
# Fails below what is asked (tests/faults/table.py), or where a test fails; the table is printed either way.
museum: $(INSTALLED)
	rm -f build/museum.jsonl; mkdir -p build
	MUSEUM_RECORD=$(CURDIR)/build/museum.jsonl $(BIN)/python -m pytest -q -n 2 -m "museum or not museum" tests/faults; \
	tests=$$?; $(BIN)/python -m tests.faults.table build/museum.jsonl && exit $$tests

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)
	$(BIN)/sottovoce bench train-step
	$(BIN)/sottovoce bench guard
	$(BIN)/sottovoce bench encoder
	$(BIN)/sottovoce bench transducer-loss

# docs/failures/ from the catalogue of causes; a test insists that the two agree.
pages: $(INSTALLED)
	$(BIN)/python -m sottovoce.diagnosis.pages docs/failures

# torch is bounded in pyproject.toml and installed in the same command, so that pip never takes a CUDA build.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs $(DEMO) build
