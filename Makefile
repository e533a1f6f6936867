# Two commands for a newcomer; both work in a fresh clone, in either order, as often as you like.
#   make quickstart   environment, fusionkit, the main job, and a page of what came of it
#   make test         the same environment plus the test tools, and the whole suite
# And for those who change what is fast: make bench.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Editable, so that the environment always runs what is checked out.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)

.PHONY: quickstart test bench lint clean

quickstart: $(VENV)/installed
	$(BIN)/fusionkit fit --config configs/quickstart.yaml
	$(BIN)/fusionkit report runs/quickstart

# Two workers with one thread each: the models of the tests are tiny.
test: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Three quarters of an hour on an idle machine; results also go to runs/bench.json as they come.
bench: $(VENV)/installed
	$(BIN)/python -m benchmarks

lint: $(VENV)/installed-test
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

$(VENV)/installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fusionkit needs Python 3.11 or later; $(PYTHON) is older. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing fusionkit into $(VENV) (PyTorch is large: a few minutes the first time) ..."
	$(INSTALL) -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL) -e '.[test]' $(patsubst %/pyproject.toml,-e ./%,$(wildcard plugins/*/pyproject.toml))
	@touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
