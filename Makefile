PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: demo test check bench clean

demo: $(VENV)/core
	$(BIN)/python tests/assets.py minilm
	$(BIN)/specdiag analyze build/assets/minilm --out build/minilm.specdiag.json
	@echo
	@echo "Next: what only one role looks like, as csv:"
	@echo "  $(BIN)/specdiag analyze build/minilm.specdiag.json -f csv | head -3"
	@echo "or your own checkpoint:"
	@echo "  $(BIN)/specdiag analyze org/name"

test: $(VENV)/dev
	$(BIN)/python -m pytest -n auto --dist worksteal

check: $(VENV)/dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

bench: $(VENV)/dev
	$(BIN)/python benchmarks/peers.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/core: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf build $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
