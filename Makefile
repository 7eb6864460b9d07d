# make demo        installs audiovq and runs the model that comes with it on the speech that comes with it
# make train-demo  installs audiovq, trains a small model on that speech and runs it
# make test        installs audiovq and runs lint, types and the tests
# VENV=DIR         where the environment is made; it is built once and then reused

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.audiovq-installed

.PHONY: install demo train-demo test lint clean

install: $(STAMP)
	@$(BIN)/pip install --quiet --no-deps --editable .

# Dependencies are installed again only when pyproject.toml has changed since the last time. Judges of speech ask for
# far more than they use.
$(STAMP): pyproject.toml
	@cmp --silent pyproject.toml $@ || { set -e; \
	  test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV); \
	  $(BIN)/pip install --quiet --upgrade pip; \
	  $(BIN)/pip install --quiet --editable '.[dev,bench]'; \
	  $(BIN)/pip install --quiet --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0 Resemblyzer webrtcvad-wheels; \
	  cp pyproject.toml $@; }

demo: install
	@PATH="$(abspath $(BIN)):$$PATH" recipes/demo/run.sh

train-demo: install
	@PATH="$(abspath $(BIN)):$$PATH" recipes/mini/run.sh

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports --no-cache

test: lint
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest

clean:
	rm -rf build dist .pytest_cache .ruff_cache recipes/demo/exp recipes/mini/exp
