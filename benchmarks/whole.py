"""Files and folders that appear whole or not at all, though whoever writes them is killed or is not alone."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file(path: Path) -> Iterator[Path]:
    """An empty file to write to, that takes the place of `path` at the end; nothing happens to that in an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(descriptor)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp's 0600 would keep it from whoever did not run the container
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def expect_writable(option: str, path: Path) -> None:
    """Before minutes of measuring, that a file can be written there, and takes the place of a file or of nothing.

    Raises:
        ValueError: it cannot; the message names the option.
    """
    if path.is_symlink():  # the file would take its place, and where it points to would stay as it was
        raise ValueError(f"{option}: expected a file; {path} is a link: name what it points to")
    if path.is_dir():
        raise ValueError(f"{option}: expected a file; {path} is a folder")
    if path.exists() and not path.is_file():  # of /dev/null, whoever may replace it would leave a file
        raise ValueError(f"{option}: expected a file; {path} is a device, a pipe or a socket")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{option}: expected a file that can be written; got {path}: {error}") from error


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """An empty folder to write to, that takes the place of `path` at the end; nothing happens to that in an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".part") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        yield new
        parent = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(parent, fcntl.LOCK_EX)  # folders, unlike files, are not exchanged in one step
            if path.exists():
                path.rename(old)
            new.rename(path)
        finally:
            os.close(parent)
