# Runs what a checkout runs: docker run --rm --init --gpus all dllm-kernels make bench, or make test; without a GPU, leave
# out --gpus. With --init it ends when it is told to: make ignores signals where it is the first process.
#
# On a base without PyTorch, for machines that have no GPU:
#   docker build --build-arg BASE_IMAGE=python:3.12-bookworm --build-arg CONSTRAINTS=constraints/cpu.txt .
ARG BASE_IMAGE=pytorch/pytorch:2.11.0-cuda13.0-cudnn9-devel
FROM ${BASE_IMAGE}

# Triton builds its launcher when a kernel first runs: it needs a compiler and Python's headers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates gcc git libc6-dev make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /dllm-kernels

# Where else pip looks for packages, while building.
ARG PIP_EXTRA_INDEX_URL=
ARG CONSTRAINTS=constraints/gpu.txt
# The base image's own PyTorch, where it has one.
ARG VENV_ARGS=--system-site-packages
ENV CONSTRAINTS=${CONSTRAINTS} VENV_ARGS=${VENV_ARGS} PIP_NO_CACHE_DIR=1

# What is installed depends on these files alone: a change elsewhere keeps this layer.
COPY pyproject.toml README.md LICENSE Makefile ./
COPY constraints constraints
COPY dllm_kernels/__init__.py dllm_kernels/
RUN make .venv/.ready

# With .git, which asv reads; its owner may be another user. The stamp must be younger than the files it depends on.
COPY . .
RUN git config --system --add safe.directory /dllm-kernels && touch .venv/.ready

CMD ["make", "help"]
