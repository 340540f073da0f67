# The service in a container: `docker run --gpus all dllm-kernels` does what `make bench` does, `docker run dllm-kernels help`
# lists the rest; docs/operating.md says more. `make image` builds it, and names the commit in its labels.
#
# The base is named here and nowhere else; `make pin-image` adds its digest. Any other of Debian's kind will do, with the pins
# that go with it, as where there is no GPU:
#   make image IMAGE_ARGS="--build-arg BASE_IMAGE=python:3.12-slim-bookworm --build-arg CONSTRAINTS=constraints/cpu.txt"
ARG BASE_IMAGE=pytorch/pytorch:2.11.0-cuda13.0-cudnn9-runtime

# When a kernel first runs, Triton compiles two C modules of its own, its view of the driver and the kernel's launcher (the
# kernel itself goes through the ptxas that Triton brings): hence gcc, the C library's headers and Python's, and no more.
# git holds the states that are compared; tini passes signals on and reaps workers.
FROM ${BASE_IMAGE} AS runtime
# Of the stages; the image's own user is at the end.
# hadolint ignore=DL3002
USER 0:0
# The base fixes the distribution, and Debian keeps no version of a package but its latest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates gcc git libc6-dev python3 tini \
    && { test -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" \
        || apt-get install --yes --no-install-recommends python3-dev; } \
    && rm -rf /var/lib/apt/lists/*

FROM runtime AS dependencies
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
# Where else pip looks for packages.
ARG PIP_EXTRA_INDEX_URL=
ARG CONSTRAINTS=constraints/gpu.txt
WORKDIR /dllm-kernels
# What is installed depends on these files alone: another change keeps this layer, which takes minutes to make.
COPY pyproject.toml ./
COPY constraints constraints
# The base's own PyTorch is used where it is the pinned one. A CPU build of PyTorch brings no Triton.
RUN python3 -m venv --system-site-packages /opt/venv \
    && export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH="/opt/venv/bin:$PATH" \
    && pip install --quiet --upgrade "pip>=25.1" \
    && pip install --quiet --constraint "$CONSTRAINTS" torch \
    && { python -c "import triton" 2>/dev/null || pip install --quiet --constraint constraints/triton.txt triton; } \
    && pip install --quiet --constraint "$CONSTRAINTS" --group test --group bench --group engines --group sanitizer \
    && echo /dllm-kernels > "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dllm-kernels.pth"
# The engines' own steps, which a container without a network could not fetch.
COPY benchmarks/engines.py benchmarks/
RUN PIP_NO_CACHE_DIR=1 /opt/venv/bin/python benchmarks/engines.py

FROM runtime
# Whoever runs it owns what comes out: no user is made, any may be named (--user), and everything belongs to root but the
# folders to write to. One without an entry in the list of users needs HOME, and USER, which PyTorch's compiler asks for.
RUN mkdir -m 1777 /results /cache \
    && git config --system --add safe.directory '*'
COPY --from=dependencies /opt/venv /opt/venv
ARG BASE_IMAGE
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=dllm-kernels \
    DLLM_KERNELS_OUTPUT=/results \
    DLLM_KERNELS_IMAGE=${BASE_IMAGE} \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /dllm-kernels
COPY --from=dependencies /dllm-kernels/.engines .engines
# With .git, which `compare` and asv take commits from. What asv makes of them is the container's own; its results are not:
# container/entrypoint.sh.
COPY . .
RUN chmod -R a+rX . \
    && ln -s /tmp/asv .asv \
    && python -m compileall -q benchmarks dllm_kernels
VOLUME /cache
EXPOSE 8000
USER 1000:1000
ENTRYPOINT ["tini", "-s", "--", "/dllm-kernels/container/entrypoint.sh"]

ARG REVISION=
ARG VERSION=
ARG CREATED=
LABEL org.opencontainers.image.title="dllm-kernels" \
    org.opencontainers.image.description="The post-processing step of diffusion-LLM block decoding, and its performance gate" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.created="${CREATED}" \
    org.opencontainers.image.base.name="${BASE_IMAGE}"
