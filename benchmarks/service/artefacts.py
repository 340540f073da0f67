"""Records out of artefacts that a pull request's job uploaded: data of a stranger, looked at before it is used.

An artefact is a zip with one file, `record.json`. Nothing is unpacked: the file is read from inside, after the
archive's own table says that it holds that one plain file of a bearable size.
"""

from __future__ import annotations

import lzma
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path

from benchmarks.results import RecordError, Run, load

NAME = "record.json"
MOST_ARTEFACTS = 16  # of one run of the workflow
MOST_BYTES = 64 * 2**20  # of a record; one of every workload has 4 MiB
# What zipfile raises, by what is damaged or not known to it.
UNREADABLE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, OSError, EOFError
)  # fmt: skip


class ArtefactError(ValueError):
    """An artefact that is not what a GPU job uploads."""


def records(folder: Path) -> list[Run]:
    """The record of every artefact in `folder`, which holds zips as they were downloaded; none if there is no folder.

    Raises:
        ArtefactError: there are too many, or one is no zip, or holds anything but one plain file of that name, or that
            is too large, or no complete record.
    """
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
    if len(paths) > MOST_ARTEFACTS:
        raise ArtefactError(f"{len(paths)} artefacts; expected at most {MOST_ARTEFACTS}")
    return [_record(path) for path in paths]


def _record(path: Path) -> Run:
    if path.is_symlink():
        raise ArtefactError(f"artefact {path.name!r}: a link")
    try:
        with zipfile.ZipFile(path) as archive:
            content = archive.read(_only_file(path, archive))  # never more than the table says, nor other than its CRC
    except UNREADABLE as error:
        raise ArtefactError(f"artefact {path.name!r}: no zip that can be read: {error}") from error
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, NAME)
        file.write_bytes(content)
        try:
            return load(Run, file)
        except (RecordError, RecursionError) as error:
            reason = str(error).removeprefix(f"{file}: ")
            raise ArtefactError(f"artefact {path.name!r}: {reason[:300]}") from error


def _only_file(path: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    entries = archive.infolist()
    if [entry.filename for entry in entries] != [NAME]:
        names = ", ".join(repr(entry.filename[:80]) for entry in entries[:3]) or "nothing"
        raise ArtefactError(f"artefact {path.name!r}: expected {NAME} alone; it holds {names}")
    (entry,) = entries
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise ArtefactError(f"artefact {path.name!r}: {NAME} is no plain file")
    if entry.file_size > MOST_BYTES:
        raise ArtefactError(f"artefact {path.name!r}: {entry.file_size} bytes; expected at most {MOST_BYTES}")
    return entry
