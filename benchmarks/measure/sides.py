"""Which state of the package is measured: the installed one, a commit, or a folder with changes in it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import machine
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
        raise ValueError(f"base or head: expected a commit of this repository; got {revision!r}")
    archive = _git("archive", "--format=zip", name, PACKAGE)
    if not archive:
        raise ValueError(f"{revision}: expected a commit that holds {PACKAGE}/; {name} does not")
    with temporary_folder() as folder:
        with zipfile.ZipFile(io.BytesIO(archive)) as files:
            files.extractall(folder)
        yield Side(folder, State(name, False, f"{PACKAGE}/__init__.py at {name[:10]}"))


@contextmanager
def working_tree() -> Iterator[Side]:
    """A copy of the package as it stands in the checkout, edits included."""
    name, dirty = machine.commit_of(ROOT / PACKAGE)
    with temporary_folder() as folder:
        copy_package(folder)
        yield Side(folder, State(name, dirty, f"{PACKAGE}/__init__.py of the working tree"))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for a state of the package, locked while needed. What a killed run left behind is removed first."""
    with ExitStack() as stack:
        with machine.lock("folders"):  # or another run could find ours before it is locked
            for left in Path(tempfile.gettempdir()).glob(f"{PACKAGE}-*"):
                _remove_if_abandoned(left)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{PACKAGE}-")))
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            machine.locked(descriptor)
        yield folder


def _remove_if_abandoned(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # another user's, no folder, or just gone
        return
    try:
        if machine.locked(descriptor):
            shutil.rmtree(folder, ignore_errors=True)  # in part another user's
    finally:
        os.close(descriptor)


def copy_package(folder: Path) -> None:
    """The working tree's package into `folder`."""
    shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False).stdout
