# Every target makes .venv itself; the stamps reinstall it when pyproject.toml or constraints.txt change.
# On busy cores OpenMP's spinning threads slow small networks many times over.
export OMP_WAIT_POLICY ?= PASSIVE
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e

.PHONY: audit test test-all test-lowest bench reproduce board docs clean

audit: .venv/installed-core
	$(BIN)/robustvae audit --plan quick --out out

test: .venv/installed-dev
	scripts/check

test-all: .venv/installed-dev
	scripts/check --all

# With the lowest versions that pyproject.toml allows, in an environment of its own.
test-lowest: .venv-lowest/installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/pytest -n 2 -q -W default

.venv-lowest/installed: pyproject.toml constraints-lowest.txt
	test -d .venv-lowest || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e . \
		pytest pytest-xdist hypothesis 'hatchling>=1.27'
	touch $@

bench: .venv/installed-dev
	$(BIN)/python -m experiments run 'bench/*'

# Every item of every paper; SIZE=smoke takes a minute, laptop hours, and a killed run goes on.
SIZE ?= laptop
reproduce: .venv/installed-dev
	$(BIN)/python -m experiments run '*' --size $(SIZE)

# The zoo's own board: every bundled model under the digits protocol, ranked, a page for each.
BOARD := $(wildcard src/robustvae/zoo_files/*/config.json)
board: $(BOARD:src/robustvae/zoo_files/%/config.json=audits/%/record.json)
	$(BIN)/robustvae board audits --out board

audits/%/record.json: .venv/installed-core
	$(BIN)/robustvae audit $* --protocol digits-l2-v1 --out audits/$*

docs: .venv/installed-dev
	$(BIN)/python scripts/generate_docs.py
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
