# Everything runs in a virtual environment that is made on first use, with the versions of
# constraints.txt. Needs a Python of version 3.11 or newer with pip, and nothing else.

VENV ?= .venv
# The interpreter to build on, e.g. `make test PYTHON=python3.12`; by default the first that suits.
PYTHON ?=
# What `make run` trains on; on Atari a step is four frames.
GAME ?= Catch-v0
STEPS ?= 300_000
# Test processes.
JOBS ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

# JAX's newest release drops old Pythons, so the newest of these.
NEWEST_PYTHON ?= $(or $(PYTHON),$(shell for p in python3.14 python3.13 python3.12; do $$p -c '' 2>/dev/null && echo $$p && break; done))
NEWEST := build/newest
# What reads JAX's programs or adds to its primitives.
READERS := tests/core/test_jax_shim.py tests/natural/test_gram.py tests/agents/test_convolution.py \
	tests/agents/test_networks.py tests/agents/test_reuse.py

# The lowest versions have wheels for old Pythons, so the oldest of these.
LOWEST_PYTHON ?= $(or $(PYTHON),$(shell for p in python3.11 python3.12 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done))
LOWEST := build/lowest
# What the core alone is tested by, and what trains; the tools' bounds are those of pyproject.toml.
CORE := tests/core tests/equations
TRAINING := tests/environments tests/agents/test_registry.py tests/cli/test_train.py
TOOLS := "beartype>=0.22" "hypothesis>=6.130" "jaxtyping>=0.3" "optax>=0.2.6" "pytest>=8.4" "pytest-xdist>=3.8"
# $(call lowest,NAME,REQUIREMENT,TESTS): old packages use what newer ones have deprecated.
define lowest
	$(BIN)/uv venv --clear --python $(LOWEST_PYTHON) $(LOWEST)/$(1)
	$(BIN)/uv pip install --python $(LOWEST)/$(1)/bin/python --resolution lowest-direct "$(2)" $(TOOLS)
	$(LOWEST)/$(1)/bin/python -m pytest -n $(JOBS) -W ignore::DeprecationWarning $(3)
endef

ACCELERATORS := build/accelerators/venv

BIN := $(VENV)/bin
SETUP := sh .ci/setup "$(VENV)" "$(PYTHON)"

.DEFAULT_GOAL := help
.PHONY: help run bench accelerators results test test-slow test-newest test-lowest lint format docs hooks wheel constraints clean

help: ## Print the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: ## Set up, train soft Q and A2C on GAME for STEPS, compare
	@$(SETUP) train
	$(BIN)/jaxsoft compare --game $(GAME) --steps $(STEPS) --out runs/$(GAME)-$(STEPS)

bench: ## Measure, in ten minutes on two cores, and compare with the committed results
	@$(SETUP) bench
	$(BIN)/python -m benchmarks.losses --json build/bench/losses_cpu.json
	$(BIN)/python -m benchmarks.natural --json build/bench/natural_cpu.json
	$(BIN)/python -m benchmarks.training --json build/bench/training_cpu.json
	$(BIN)/python -m benchmarks.memory --json build/bench/memory_cpu.json
	$(BIN)/python -m benchmarks.regression build/bench

accelerators: ## Compile for an H100 and a TPU, in an environment of its own of 1.7 GB, and compare
	@sh .ci/setup $(ACCELERATORS) "$(PYTHON)" bench
	version=$$($(ACCELERATORS)/bin/python -c 'import jax; print(jax.__version__)') && \
		$(ACCELERATORS)/bin/python -m pip install "jax[tpu]==$$version" "jax-cuda12-plugin==$$version" \
		"jax-cuda12-pjrt==$$version" nvidia-cuda-nvcc-cu12
	$(ACCELERATORS)/bin/python -m benchmarks.accelerators --json build/accelerators/results
	$(ACCELERATORS)/bin/python -m benchmarks.accelerators --check build/accelerators/results

results: ## Make every table and figure of the experiments from the committed CSVs
	@$(SETUP) train
	$(BIN)/python -m experiments.report.publish

test: lint ## Lint, check the format and the types, run the tests
	$(BIN)/python -m pytest -n $(JOBS)

test-slow: ## Run the slow tests
	@$(SETUP) dev
	$(BIN)/python -m pytest -m slow

test-newest: ## Test what reads JAX's inside on its newest release, in an environment of its own
	@CONSTRAINTS=/dev/null sh .ci/setup $(NEWEST) "$(NEWEST_PYTHON)" train
	$(NEWEST)/bin/python -m pip install --upgrade flax hypothesis jax pytest
	$(NEWEST)/bin/python -m pytest $(READERS)

test-lowest: ## Test the core and training on the lowest versions that they declare
	@$(SETUP)
	$(BIN)/python -m pip install uv
	$(call lowest,core,.,$(CORE))
	$(call lowest,train,.[train],$(TRAINING))

lint: ## Lint, check the format and the types
	@$(SETUP) dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: ## Mend what the linter can, and format
	@$(SETUP) dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: ## Build the documentation into site/
	@$(SETUP) docs
	$(BIN)/zensical build --strict --clean

hooks: ## Run the checks before each commit
	@$(SETUP) dev
	$(BIN)/pre-commit install

wheel: ## Build the wheel into dist/
	@$(SETUP) dev
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

constraints: ## Pin the newest versions again, for every supported Python
	@$(SETUP) dev
	$(BIN)/python -m pip install --upgrade uv
	@echo "# Pinned versions for every extra on Python 3.11 to 3.13; made by 'make constraints'." > $(VENV)/constraints.txt
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet >> $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt

clean: ## Remove the environment, caches and build outputs
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache .cache build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
