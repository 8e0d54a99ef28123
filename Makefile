# Every target makes .venv itself; the stamps reinstall it when pyproject.toml or constraints.txt change.
# On busy cores OpenMP's spinning threads slow small networks many times over.
export OMP_WAIT_POLICY ?= PASSIVE
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e

.PHONY: audit test test-all bench docs clean

audit: .venv/installed-core
	$(BIN)/robustvae audit --plan quick --out out

test: .venv/installed-dev
	scripts/check

test-all: .venv/installed-dev
	scripts/check --all

bench: .venv/installed-dev
	@set -e; for file in benchmarks/bench_*.py; do echo "== $$file"; OMP_NUM_THREADS=1 $(BIN)/python $$file; done

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
