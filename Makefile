# Each target sets itself up: a virtual environment in .venv, renewed when pyproject.toml or the pins change.
#
#   PYTHON       the interpreter to build it from                  (python3)
#   CONSTRAINTS  the pins; by default those for a GPU if there is one
#   VENV_ARGS    --system-site-packages uses a PyTorch that is installed already
#   ARGS         more arguments for the command, as in: make bench ARGS=--quick
#   WORKERS      tests beside each other                           (one a processor; on a GPU, one after the other)
#   COVERAGE     what `make test` measures of branches; empty, it takes half of the time

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints/$(if $(shell command -v nvidia-smi),gpu,cpu).txt
WORKERS ?= $(if $(shell command -v nvidia-smi),0,auto)
COVERAGE ?= --cov --cov-report=term
IMAGE ?= dllm-kernels
# More arguments for `docker build`.
IMAGE_ARGS ?=
# What the image is built from, and where its commands leave their results.
CONTEXT ?= .
RESULTS ?= results
# What a container gets of this machine's GPUs.
GPUS ?= $(if $(shell command -v nvidia-smi),--gpus all)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.ready
# What the workflows' own steps need, without PyTorch: seconds instead of minutes.
SERVICE := $(VENV)-service

.PHONY: help bench test sanitize test-workflows test-containers lint codegen format dashboard clean
.PHONY: image pin-image pinned in-image keep-record remove-images commits benchmarks service

help:
	@echo "make bench      check, measure, judge, add to the history, publish the dashboard"
	@echo "make test       run the tests, with branch coverage"
	@echo "make lint       check style, types, workflows, Dockerfile"
	@echo "make codegen    compile the kernels for every architecture, without a GPU, and hold them against what was reviewed"
	@echo "make format     rewrite what ruff can mend"
	@echo "make dashboard  build the dashboard from the history here, or else from the demonstration in the repository"
	@echo "make image      build the Docker image of the commit that is checked out"
	@echo "make pin-image  write the digest of the image's base into the Dockerfile, from its registry"
	@echo "make pinned     fail where the Dockerfile names its base without a digest"
	@echo "make test-containers  build the image with a real Docker engine, and run its commands"
	@echo "make sanitize   run the kernels' tests under NVIDIA's compute-sanitizer, on a GPU"
	@echo "make test-workflows   run the workflows, with act, on repositories made for it"
	@echo "make clean      remove everything that the others made"

bench: $(READY)
	@$(BIN)/python -m benchmarks bench $(ARGS)

test: $(READY)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope $(COVERAGE) $(ARGS)

sanitize: $(READY)
	@$(BIN)/python -m pytest tests/sanitizer $(ARGS)

test-workflows: $(READY)
	@$(BIN)/python -m pytest tests/workflows $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck .ci/run container/*.sh docs/runner/admit.sh docs/runner/register
	$(BIN)/hadolint Dockerfile
	$(BIN)/actionlint -shellcheck $(BIN)/shellcheck
	$(BIN)/zizmor --offline --quiet --persona auditor .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-actions tests/workflows/actions/*/action.yml

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
	@grep -q '^ARG BASE_IMAGE=[^ ]*@sha256:[0-9a-f]\{64\}$$' "$(CONTEXT)/Dockerfile" || \
		{ echo "error: the Dockerfile names the image's base without a digest: run make pin-image, and commit it" >&2; exit 2; }

test-containers: $(READY)
	@$(BIN)/python -m pytest tests/containers $(ARGS)

# Below is what the workflows call.

# Its process sees one folder of this machine, and no network.
in-image:
	@mkdir -p "$(RESULTS)"
	docker run --rm --init $(GPUS) --network none --cap-drop ALL \
	    --security-opt no-new-privileges --user "$$(id -u):$$(id -g)" --volume "$(abspath $(RESULTS)):/results" \
	    $(IMAGE) $(ARGS)

# Into a folder that no container has seen.
keep-record:
	@container/keep.sh "$(RESULTS)/record.json" "$(KEPT)"

remove-images:
	docker image rm --force $(IMAGES)

# Of another clone, its head and all before it, under no name: to be measured, not to be checked out.
commits:
	git fetch --quiet --no-tags --no-write-fetch-head "$(FROM)" HEAD

benchmarks: $(READY)
	@$(BIN)/python -m benchmarks $(ARGS)

service: $(SERVICE)/.ready
	@$(SERVICE)/bin/python -m benchmarks service $(ARGS)

clean:
	rm -rf $(VENV) $(SERVICE) .asv .bench .benchmarks .coverage .engines .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist

$(READY): pyproject.toml $(CONSTRAINTS) constraints/triton.txt
	@echo "Setting up $(VENV) with the versions of $(CONSTRAINTS) (a minute or two, the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV_ARGS) $(VENV)
	@$(PIP) install --quiet --upgrade "pip>=25.1"
	@$(PIP) install --quiet --constraint $(CONSTRAINTS) torch
	@$(BIN)/python -c "import triton" 2>/dev/null || $(PIP) install --quiet --constraint constraints/triton.txt triton
	@$(PIP) install --quiet --constraint $(CONSTRAINTS) --group dev --editable .
	@touch $@

$(SERVICE)/.ready: pyproject.toml $(CONSTRAINTS)
	@test -x $(SERVICE)/bin/python || $(PYTHON) -m venv $(SERVICE)
	@$(SERVICE)/bin/python -m pip --disable-pip-version-check install --quiet --upgrade "pip>=25.1"
	@$(SERVICE)/bin/python -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS) --group service
	@touch $@
