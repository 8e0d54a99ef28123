# Every target makes .venv itself; the stamps reinstall it when pyproject.toml or constraints.txt change.
# On busy cores OpenMP's spinning threads slow small networks many times over.
export OMP_WAIT_POLICY ?= PASSIVE
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e

.PHONY: audit test test-all bench reproduce docs clean

audit: .venv/installed-core
	$(BIN)/robustvae audit --plan quick --out out

test: .venv/installed-dev
	scripts/check

test-all: .venv/installed-dev
	scripts/check --all

bench: .venv/installed-dev
	$(BIN)/python -m experiments run 'bench/*'

# Every item of every paper; SIZE=smoke takes a minute, laptop hours, and a killed run goes on.
SIZE ?= laptop
reproduce: .venv/installed-dev
	$(BIN)/python -m experiments run '*' --size $(SIZE)

docs: .venv/installed-dev
	$(BIN)/zensical build --clean --strict

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/installed-core: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) ".[results]"
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) ".[dev,docs,train,results,plots,lipschitz]"
	touch .venv/installed-core $@

clean:
	rm -rf out site .pytest_cache .mypy_cache .ruff_cache .hypothesis
