# A handful of entry points; each sets up what it needs: .venv, the built kernels, the demo model.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MAKEFLAGS += --no-print-directory

.PHONY: demo test lint build model bench bench-peers gpu clean

demo: build model
	@$(BIN)/octavo chat "$$($(BIN)/python -m tests.support.demo_model)" --prompt "$${PROMPT:-Explain in two sentences how a hummingbird can hover.}"

test: build model lint
	@cmake --build build/native --target emulated -- --quiet
	$(BIN)/python -m pytest -m "not gpu"

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

model: $(VENV)/.ready
	@$(BIN)/python -m tests.support.demo_model >/dev/null

$(VENV)/.ready: pyproject.toml constraints.txt tests/support/environment.py
	@$(PYTHON) tests/support/environment.py $(VENV)

clean:
	rm -rf build $(VENV)
