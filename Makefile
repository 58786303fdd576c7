# Every target sets itself up; each says clearly what is missing.
#   make demo   the main job in one go: no Node, no network
#   make test   everything, against real servers (Node 20 or newer)

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
WORKERS ?= 2

.PHONY: help demo test clients test-python test-matrix lint format soak devnet coverage clean node

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# A virtual environment with the package in it, and one stamp more for the tools of the tests.
$(VENV)/run.stamp: pyproject.toml
	@python="$${PYTHON:-$$(tools/find-python)}" && test -n "$$python" \
	  && { test -x $(BIN)/python || "$$python" -m venv $(VENV); }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(VENV) has a Python older than 3.11: remove it, and make again"; exit 1; }
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	@touch $@

demo: $(VENV)/run.stamp ## pay a local API for an unmodified curl, and account for every unit
	@command -v curl >/dev/null || { echo "make demo needs curl: install it (Debian: apt-get install curl)"; exit 1; }
	@$(BIN)/bursar demo

node:
	@command -v node >/dev/null && command -v npm >/dev/null \
	  || { echo "make test needs Node 20 or newer, with npm: the servers it pays are npm packages"; exit 1; }
	@node -e 'process.exit(+process.versions.node.split(".")[0] < 20 ? 1 : 0)' \
	  || { echo "make test needs Node 20 or newer; this is $$(node --version)"; exit 1; }

test: node $(VENV)/test.stamp ## everything, against real servers on a dev chain
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

# make test-python PY=3.12: the suite in an environment of its own, which must be what it says.
test-python: node
	@python="$$(tools/find-python $(PY))" && $(MAKE) --no-print-directory VENV=.venv-$(PY) PYTHON="$$python" .venv-$(PY)/test.stamp
	BURSAR_EXPECT_PYTHON=$(PY) .venv-$(PY)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

test-matrix: ## the suite on Python 3.11 / mitmproxy 11 and on 3.13 / mitmproxy 12
	$(MAKE) --no-print-directory test-python PY=3.11
	$(MAKE) --no-print-directory test-python PY=3.13

lint: $(VENV)/test.stamp ## ruff and mypy, strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/test.stamp ## let ruff lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak: node $(VENV)/test.stamp ## 50 streams for a minute; 3,000 requests with clients that leave, within MINUTES
	BURSAR_STREAM_SECONDS=60 $(BIN)/python -m pytest -q -s -o timeout=600 tests/e2e/test_streams.py::test_50_streams_at_once
	$(BIN)/python -m tests.soak.streams --minutes $(or $(MINUTES),3)

devnet: node $(VENV)/test.stamp ## a dev chain and paid servers for use by hand, until Ctrl-C
	@$(BIN)/python -m tests.peers.devnet

coverage: node $(VENV)/test.stamp ## branch coverage of the pure rooms and the store
	$(BIN)/coverage run -m pytest tests/unit tests/properties tests/contract tests/vectors $(PYTEST_ARGS)
	$(BIN)/coverage report --include='store/*,proxy_addon/core/*'

clients: node $(VENV)/test.stamp ## every client of the matrix, the slow ones too; writes docs/clients.md
	BURSAR_CLIENTS=all $(BIN)/python -m pytest -ra tests/clients $(PYTEST_ARGS)

clean: ## remove what was made
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis tests/peers/node_modules tests/peers/.build
