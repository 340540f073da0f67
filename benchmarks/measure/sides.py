"""Which state of the package is measured: the installed one, a commit, or a folder with changes in it."""

from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure.machine import commit_of
from benchmarks.results import State

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "dllm_kernels"


@dataclass(frozen=True)
class Side:
    """A folder that holds the package, apart from the checkout and from what is installed; None for the latter."""

    folder: Path | None
    state: State | None


INSTALLED = Side(None, None)


@contextmanager
def commit(revision: str) -> Iterator[Side]:
    """The package as it was committed, taken from the repository without touching the checkout.

    Raises:
        ValueError: there is no such commit, or it does not hold the package.
    """
    name = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
    if not name:
        raise ValueError(f"{revision}: expected a commit of this repository")
    archive = _git("archive", "--format=zip", name, PACKAGE)
    if not archive:
        raise ValueError(f"{revision}: expected a commit that holds {PACKAGE}/; {name} does not")
    with TemporaryDirectory(prefix=f"{PACKAGE}-") as folder:
        with zipfile.ZipFile(io.BytesIO(archive)) as files:
            files.extractall(folder)
        yield Side(Path(folder), State(name, False, f"{PACKAGE}/__init__.py at {name[:10]}"))


@contextmanager
def working_tree() -> Iterator[Side]:
    """A copy of the package as it stands in the checkout, edits included."""
    name, dirty = commit_of(ROOT / PACKAGE)
    with TemporaryDirectory(prefix=f"{PACKAGE}-") as folder:
        copy_package(Path(folder))
        yield Side(Path(folder), State(name, dirty, f"{PACKAGE}/__init__.py of the working tree"))


def copy_package(folder: Path) -> None:
    """The working tree's package into `folder`."""
    shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False).stdout
