# A handful of entry points; each sets up what it needs: .venv, the built kernels, the demo model.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
ALONE = $(shell grep -rl --include='test_*.py' 'mark\.alone' tests)
MAKEFLAGS += --no-print-directory

.PHONY: demo test lint build emulated model others bench bench-peers gpu clean

demo: build model
	@$(BIN)/octavo chat "$$($(BIN)/python -m tests.support.demo_model)" --prompt "$${PROMPT:-Explain in two sentences how a hummingbird can hover.}"

# In as many processes as there are cores (tests/conftest.py), by whole files, the long ones of e2e first; then what looks
# at threads, cores or moments, with nothing beside it.
test: build
	@$(MAKE) -j4 --output-sync lint emulated model others
	@failed=0; $(PYTEST) -m "not gpu and not alone" $(PARALLEL) || failed=$$?; \
	$(PYTEST) -m "alone and not gpu" $(ALONE) && exit $$failed

lint: $(VENV)/.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: build model
	$(BIN)/python -m tests.bench $(ARGS)

bench-peers: build model
	$(BIN)/python -m tests.bench.peers $(ARGS)

gpu: $(VENV)/.ready
	@$(BIN)/python -m tests.gpu $(ARGS)

build: $(VENV)/.ready
	@cmake --build build/native -- --quiet

emulated: $(VENV)/.ready
	@cmake --build build/native --target emulated -- --quiet

model: $(VENV)/.ready
	@$(BIN)/python -m tests.support.demo_model >/dev/null

# A browser and other people's clients of the server; where they can't be had, the tests that need them say so.
others: $(VENV)/.ready
	-@$(BIN)/python -m tests.support.browser >/dev/null
	-@$(BIN)/python -m tests.bench.peers.environments clients >/dev/null

$(VENV)/.ready: pyproject.toml constraints.txt tests/support/environment.py
	@$(PYTHON) tests/support/environment.py $(VENV)

clean:
	rm -rf build $(VENV)
