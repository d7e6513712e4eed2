# Two commands for a new user: `make demo` and `make test`.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check bench lock clean

demo: $(READY)          ## learn a network for the digits data set
	$(BIN)/morphogen fit digits

test: $(READY)          ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(READY)         ## linter, type checker, and that imports point downwards
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)         ## the table of the README, five seeds; about an hour and a half
	$(BIN)/python bench/fit.py

# Exact versions; the build tools are among them, so nothing is resolved anew.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)

lock:                   ## resolve pyproject.toml anew, in a fresh environment
	rm -rf .venv.lock && $(PYTHON) -m venv .venv.lock
	.venv.lock/bin/python -m pip install --quiet torch==2.13.0 hatchling editables
	.venv.lock/bin/python -m pip install --quiet -e '.[dev]'
	.venv.lock/bin/python -m pip freeze --exclude-editable --exclude morphogen | sed 's/+cpu$$//' > requirements.lock
	rm -rf .venv.lock

clean:
	rm -rf .venv .venv.lock .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
