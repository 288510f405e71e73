# Two commands do everything: `make demo` and `make test`. Each makes the environment first if it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export OMP_NUM_THREADS = 1
export TOKENIZERS_PARALLELISM = false
HOLDFAST_DATA ?= $(CURDIR)/../shared/data
export HOLDFAST_DATA

.PHONY: demo test hard real pipelines lint types docs bench install

demo: install
	$(BIN)/holdfast demo

test: install lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not hard and not real"

hard: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[ray]"
	$(BIN)/python -m pytest -n 2 -m hard

real: install
	$(BIN)/python -m pytest -m real
	$(BIN)/holdfast audit examples/real.toml --set organism.data=$(HOLDFAST_DATA)

pipelines: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[lm-eval,inspect]"
	$(BIN)/python -m pytest -n 2 tests/test_harness.py tests/test_inspection.py tests/test_evallog.py tests/test_airgapped.py

docs: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest -n 0 tests/test_site.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[types]"
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/lox.py
	$(BIN)/python benchmarks/path.py
	$(BIN)/python benchmarks/grid.py
	$(BIN)/python benchmarks/auditor.py --work runs/auditor
	$(BIN)/python benchmarks/tar_step.py
	$(BIN)/python benchmarks/mlac.py
	$(BIN)/python benchmarks/large.py

install: $(VENV)/.installed

# Bytecode is made on all cores here, where pip makes it on one. Libraries ship templates that are no Python: what cannot be
# compiled is left out, as pip leaves it out.

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[test]"
	$(BIN)/python -m compileall -qq -j 0 -x 'site-packages/.*/tests/' $(VENV)/lib holdfast || true
	touch $@
