# Each target sets itself up: a virtual environment in .venv, renewed when pyproject.toml or the pins change.
#
#   PYTHON       the interpreter to build it from                  (python3)
#   CONSTRAINTS  the pins; by default those for a GPU if there is one
#   VENV_ARGS    --system-site-packages uses a PyTorch that is installed already
#   ARGS         more arguments for the command, as in: make bench ARGS=--quick

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints/$(if $(shell command -v nvidia-smi),gpu,cpu).txt
IMAGE ?= dllm-kernels
# More arguments for `docker build`.
IMAGE_ARGS ?=
# The checkout that the image is built of.
CONTEXT ?= .

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.ready

.PHONY: help bench test lint codegen format dashboard image pin-image pinned test-containers clean

help:
	@echo "make bench      check, measure, judge, add to the history, publish the dashboard"
	@echo "make test       run the tests, with branch coverage"
	@echo "make lint       check style, types, workflows, Dockerfile"
	@echo "make codegen    compile the kernels for every architecture, without a GPU, and hold them against what was reviewed"
	@echo "make format     rewrite what ruff can mend"
	@echo "make dashboard  publish the dashboard from the latest record and the history"
	@echo "make image      build the Docker image of the commit that is checked out"
	@echo "make pin-image  write the digest of the image's base into the Dockerfile, from its registry"
	@echo "make pinned     fail where the Dockerfile names its base without a digest"
	@echo "make test-containers  build the image with a real Docker engine, and run its commands"
	@echo "make clean      remove everything that the others made"

bench: $(READY)
	@$(BIN)/python -m benchmarks bench $(ARGS)

test: $(READY)
	@$(BIN)/python -m pytest --cov --cov-report=term $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck .ci/run container/*.sh
	$(BIN)/hadolint Dockerfile
	$(BIN)/actionlint -shellcheck $(BIN)/shellcheck
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

codegen: $(READY)
	@$(BIN)/python -m benchmarks codegen $(ARGS)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dashboard: $(READY)
	@$(BIN)/python -m benchmarks dashboard $(ARGS)

image:
	@container/build.sh "$(CONTEXT)" $(IMAGE) $(IMAGE_ARGS)

pin-image: $(READY)
	@$(BIN)/python container/pin.py

pinned:
	@grep -q '^ARG BASE_IMAGE=[^ ]*@sha256:[0-9a-f]\{64\}$$' Dockerfile || \
		{ echo "error: the Dockerfile names the image's base without a digest: run make pin-image, and commit it" >&2; exit 2; }

test-containers: $(READY)
	@$(BIN)/python -m pytest tests/containers $(ARGS)

clean:
	rm -rf $(VENV) .asv .bench .benchmarks .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist

$(READY): pyproject.toml $(CONSTRAINTS) constraints/triton.txt
	@echo "Setting up $(VENV) with the versions of $(CONSTRAINTS) (a minute or two, the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV_ARGS) $(VENV)
	@$(PIP) install --quiet --upgrade "pip>=25.1"
	@$(PIP) install --quiet --constraint $(CONSTRAINTS) torch
	@$(BIN)/python -c "import triton" 2>/dev/null || $(PIP) install --quiet --constraint constraints/triton.txt triton
	@$(PIP) install --quiet --constraint $(CONSTRAINTS) --group dev --editable .
	@touch $@
