"""Which changes of a pull request are changes of what it is judged by. Pure."""

from __future__ import annotations

from collections.abc import Iterable

FOLDERS = (
    ".ci/", ".github/", "benchmarks/", "constraints/", "container/", "docs/runner/", "tests/containers/", "tests/perf/",
    "tests/workflows/",
)  # fmt: skip
# The image and its commands; what is installed into it; the specification that results are held against.
FILES = (
    ".dockerignore",
    "Dockerfile",
    "Makefile",
    "asv.conf.json",
    "dllm_kernels/reference.py",
    "pyproject.toml",
)


def of_the_judge(paths: Iterable[str]) -> tuple[str, ...]:
    """Those of `paths`, from the repository's root, that decide what is measured, how, and what it must reach.

    Case is no matter: a file system that ignores it would take `Benchmarks/` for `benchmarks/`.
    """
    return tuple(sorted(path for path in paths if path.lower().startswith(FOLDERS) or path.lower() in _FILES))


_FILES = {path.lower() for path in FILES}
