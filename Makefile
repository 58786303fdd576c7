# Every target sets itself up; each says clearly what is missing.
#   make demo   the main job in one go: no Node, no network
#   make test   everything, against real servers (Node 20 or newer)

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
# One more than cores: many tests wait for processes of their own.
WORKERS ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))

# In the order that tests/conftest.py gives them.
BY_FILE := --dist loadfile --no-loadscope-reorder

.PHONY: help demo test nightly clients hostile long test-python test-matrix lint format fuzz soak recovery devnet coverage mutation clean crash node bench

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
	$(BIN)/python -m pytest -n $(WORKERS) $(BY_FILE) $(PYTEST_ARGS)

# make test-python PY=3.12: the suite in an environment of its own, which must be what it says.
test-python: node
	@python="$$(tools/find-python $(PY))" && $(MAKE) --no-print-directory VENV=.venv-$(PY) PYTHON="$$python" .venv-$(PY)/test.stamp
	BURSAR_EXPECT_PYTHON=$(PY) .venv-$(PY)/bin/python -m pytest -n $(WORKERS) $(BY_FILE) $(PYTEST_ARGS)

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

fuzz: $(VENV)/test.stamp ## SECONDS of fuzzing for each parser (TARGET= one of them; WORK= keep the grown corpus)
	@$(BIN)/python -m pip install --quiet --editable '.[fuzz]' \
	  || { echo "there is no atheris for $$($(BIN)/python -V) on $$(uname -sm): it has wheels for CPython 3.11 to 3.13 on Linux (x86-64)."; \
	       echo "make test runs the kept corpus and mutations of it everywhere"; exit 1; }
	$(BIN)/python -m tests.fuzz.run --seconds $(or $(SECONDS),60) $(if $(TARGET),--target $(TARGET)) $(if $(WORK),--work $(WORK))

soak: node $(VENV)/test.stamp ## MINUTES (3) of mixed load, faults and hostile sellers, and the sums; then streams alone
	$(BIN)/python -m tests.soak.mixed --minutes $(or $(MINUTES),3)
	BURSAR_STREAMS=50 BURSAR_STREAM_SECONDS=60 \
	  $(BIN)/python -m pytest -q -s -o timeout=600 tests/e2e/test_streams.py::test_many_streams_at_once
	$(BIN)/python -m tests.soak.streams --minutes 3

# make crash KILLS=10000 SEED=7; WALLET=3 repeats one wallet of it. PROXY_KILLS=300: whole proxies under load.
# BUDGET=32x1000: so many processes with so many payments each, against one limit of the day.
crash: $(VENV)/test.stamp ## kill -9 at every step, KILLS times (500), and a look at the books after each
	$(BIN)/python -m tests.crash --seed $(or $(SEED),1) $(if $(PROXY_KILLS),--proxies $(PROXY_KILLS),$(if $(BUDGET),--budget $(BUDGET),--kills $(or $(KILLS),500) $(if $(WALLET),--wallet $(WALLET))))

# make bench QUICK=1: every row with small counts. ONLY=warm-paid-64,cold: groups or rows (see python -m bench --list).
# FLOWS=10000, STREAMS=1000: less, or more, of what takes long.
bench: $(VENV)/test.stamp ## what a paid request costs, as ratios to plain mitmdump and to mppx's own client
	FLOWS=$(FLOWS) STREAMS=$(STREAMS) $(BIN)/python -m bench $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

recovery: node $(VENV)/test.stamp ## deposits come home: the proxy killed at every step, faults of the chain's endpoints
	BURSAR_RECOVERY=all BURSAR_LONG=1 $(BIN)/python -m pytest -ra -o timeout=600 tests/e2e/test_recovery.py tests/e2e/test_forced_close.py $(PYTEST_ARGS)

devnet: node $(VENV)/test.stamp ## a dev chain and paid servers for use by hand, until Ctrl-C
	@$(BIN)/python -m tests.peers.devnet

# EXAMPLES for each property (its stateful ones: half, or an eighth on disk, of up to 120 steps each).
nightly: $(VENV)/test.stamp ## the properties and models for hours: EXAMPLES (20000) of each, and the steps they took
	HYPOTHESIS_PROFILE=nightly BURSAR_EXAMPLES=$(or $(EXAMPLES),20000) \
	  $(BIN)/python -m pytest -q -o timeout=0 tests/properties tests/contract/test_model.py tests/hostile/test_model.py $(PYTEST_ARGS)

coverage: $(VENV)/test.stamp ## branch coverage of the pure rooms and the store, by their own tests: all of it
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest tests/unit/store tests/unit/core tests/properties tests/contract $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --show-missing --skip-covered --fail-under=100 --include='store/*,proxy_addon/core/*'

# make mutation SAMPLE=15 of each module; ONLY=store/account.py; WORK= keeps what was found, to go on from there.
mutation: $(VENV)/test.stamp ## change the pure rooms and the store one step at a time: does a test notice each?
	$(BIN)/python tools/mutate.py $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(ONLY),--only $(ONLY)) $(if $(WORK),--work $(WORK))

# make hostile STEPS=1000000: a night's run of the model (under 40 minutes of CPU).
hostile: $(VENV)/test.stamp ## every attack of the hostile server through the real proxy, then STEPS of the model
	$(BIN)/python -m tests.hostile --steps $(or $(STEPS),20000)

long: node $(VENV)/test.stamp ## the tests that take minutes: 300 clients, closes by force and killed at each step, 300 streams
	BURSAR_LONG=1 $(BIN)/python -m pytest -m long $(PYTEST_ARGS)

clients: node $(VENV)/test.stamp ## every client of the matrix, the slow ones too; writes docs/clients.md
	BURSAR_CLIENTS=all $(BIN)/python -m pytest -ra tests/clients $(PYTEST_ARGS)

clean: ## remove what was made
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis tests/peers/node_modules tests/peers/.build
