"""Which changes of a pull request are changes of what it is judged by. Pure.

Everything is, but what is named here: a list of what is the judge's would miss what a pull request adds, such as a
`GNUmakefile`, which make prefers, a `json.py` in the root, which Python does, or a `.gitattributes`, by which other
files are measured than merged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Of the judged, as paths from the root: the package, its tests, texts and their pictures.
JUDGED = (
    re.compile(r"dllm_kernels/(\w+/)*\w+\.pyi?"),
    re.compile(r"tests/(\w+/)*test_\w+\.py"),
    re.compile(r"docs/([\w-]+/)*[\w.-]+\.(md|png|svg)"),
    re.compile(r"[\w-]+\.md|LICENSE"),
)
# And of the judge all the same: the specification that results are held against, and what Python would take in its
# place; the gates of pytest, the tests under the sanitizer, those of image, service and workflows.
FOLDERS = (
    "dllm_kernels/reference/", "docs/runner/", "tests/containers/", "tests/perf/", "tests/sanitizer/", "tests/service/",
    "tests/workflows/",
)  # fmt: skip
FILES = ("dllm_kernels/reference.py", "dllm_kernels/reference.pyi")


def of_the_judge(paths: Iterable[str]) -> tuple[str, ...]:
    """Those of `paths`, from the repository's root, that may decide what is measured, how, and what it must reach.

    Of the judge's folders and files case is no matter: a file system that ignores it would take `Docs/Runner/` for
    `docs/runner/`.
    """
    return tuple(sorted(path for path in paths if path and not _is_judged(path)))


def _is_judged(path: str) -> bool:
    lower = path.lower()
    if lower.startswith(FOLDERS) or lower in FILES:
        return False
    return any(pattern.fullmatch(path) for pattern in JUDGED)
