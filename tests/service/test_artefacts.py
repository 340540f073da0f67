"""Artefacts of strangers: what is no plain record of bearable size is none."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.service import artefacts
from tests.records import make_compared
from tests.service.pull_requests import content_of


def test_a_record_comes_out_of_its_artefact(artefact, tmp_path: Path) -> None:
    run = make_compared()
    assert artefacts.records(artefact(("record.json", content_of(run, tmp_path)))) == [run]
    assert artefacts.records(tmp_path / "not there") == []


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "it holds nothing"),
        ([("../record.json", b"{}")], "expected record.json alone; it holds '../record.json'"),
        ([("/etc/passwd", b"{}")], "it holds '/etc/passwd'"),
        ([("record.json", b"{}"), ("more.json", b"{}")], "it holds 'record.json', 'more.json'"),
        ([("folder/record.json", b"{}")], "expected record.json alone"),
        ([(link("record.json"), b"/etc/passwd")], "no plain file"),
        ([("record.json", b"{}")], "not a record of the kind 'run'"),
        ([("record.json", b"\xff\xfe")], "damaged"),
        ([("record.json", b"[" * 200_000)], "artefact 'gpu-perf-test.zip'"),
        ([("record.json", b'{"kind": "run", "version": 5, "seed": NaN}')], "not a complete record of the kind 'run'"),
    ],
)
def test_hostile_artefacts(artefact, files: list[Any], message: str) -> None:
    with pytest.raises(artefacts.ArtefactError, match=message):
        artefacts.records(artefact(*files))


def test_an_artefact_that_is_too_large(artefact, monkeypatch) -> None:
    monkeypatch.setattr(artefacts, "MOST_BYTES", 1000)
    with pytest.raises(artefacts.ArtefactError, match="100000 bytes; expected at most 1000"):
        artefacts.records(artefact(("record.json", b"0" * 100_000)))


def test_an_artefact_that_is_larger_than_its_table_says(artefact, monkeypatch) -> None:
    folder = artefact(("record.json", b"0" * 100_000))
    path = folder / "gpu-perf-test.zip"
    path.write_bytes(path.read_bytes().replace((100_000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    monkeypatch.setattr(artefacts, "MOST_BYTES", 1000)
    with pytest.raises(artefacts.ArtefactError, match="gpu-perf-test.zip"):
        artefacts.records(folder)


def test_an_artefact_whose_stream_is_damaged(artefact) -> None:
    folder = artefact(("record.json", b"0123456789" * 1000))
    path = folder / "gpu-perf-test.zip"
    content = bytearray(path.read_bytes())
    start = 30 + len("record.json")  # behind the entry's own header
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(bytes(content))
    with pytest.raises(artefacts.ArtefactError, match="no zip that can be read"):
        artefacts.records(folder)


def test_too_many_artefacts_and_what_is_none(artefact, tmp_path: Path) -> None:
    folder = artefact(("record.json", b"{}"))
    (folder / "gpu-perf-test.zip").write_bytes(b"no zip")
    with pytest.raises(artefacts.ArtefactError, match="no zip that can be read"):
        artefacts.records(folder)
    (folder / "gpu-perf-test.zip").unlink()
    (folder / "gpu-perf-test.zip").symlink_to("/etc/passwd")
    with pytest.raises(artefacts.ArtefactError, match="a link"):
        artefacts.records(folder)
    for number in range(artefacts.MOST_ARTEFACTS):
        artefact(("record.json", b"{}"), name=f"{number}.zip")
    with pytest.raises(artefacts.ArtefactError, match="17 artefacts"):
        artefacts.records(folder)
