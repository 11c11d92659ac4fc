PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

# Hundreds of tests start processes; each would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test kernels check reference docs figures notebooks bench gpu zoo zero-shot clean

demo: $(VENV)/core
	$(BIN)/python tests/assets.py minilm
	$(BIN)/specdiag analyze build/assets/minilm --out build/minilm.specdiag.json
	@echo
	@echo "First: source $(BIN)/activate    then the commands above work, and specdiag analyze org/name"

test: $(VENV)/dev
	$(BIN)/python -m pytest -n auto --dist worksteal

kernels: $(VENV)/dev
	set -e; for kernel in $$($(BIN)/python tests/kernels.py); do \
		echo "OpenBLAS kernel $$kernel"; \
		OPENBLAS_CORETYPE=$$kernel $(BIN)/python -m pytest -q -n auto --dist worksteal -m numeric; \
	done

check: $(VENV)/dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

reference: $(VENV)/dev
	$(BIN)/python tests/reference_sources.py build/reference > build/reference.txt
	cd build/reference && xargs $(abspath $(BIN))/specdiag reference build -o $(abspath specdiag/reference/shipped.json) < ../reference.txt

docs: $(VENV)/dev
	$(BIN)/python docs/build.py

figures: $(VENV)/dev
	$(BIN)/python tests/assets.py minilm
	$(BIN)/python docs/gallery.py && $(BIN)/python docs/badges.py

notebooks: $(VENV)/train
	$(BIN)/python tests/assets.py minilm
	$(BIN)/python notebooks/execute.py

bench: $(VENV)/dev
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/solvers.py
	$(BIN)/python benchmarks/reductions.py

gpu: $(VENV)/train
	$(BIN)/python benchmarks/gpu.py && $(BIN)/python benchmarks/gpu.py --docs

zoo: $(VENV)/train
	$(BIN)/python benchmarks/zoo.py

zero-shot: $(VENV)/eval
	$(if $(RUN),,$(error say which: make zero-shot RUN=runs/mine))$(BIN)/python benchmarks/zero_shot.py $(RUN)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/core: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	touch $@

$(VENV)/train: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev,train]'
	touch $@

$(VENV)/eval: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[eval]'
	touch $@

clean:
	rm -rf build $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
