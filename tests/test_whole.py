"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks import whole


def test_a_file_takes_its_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    with whole.file(path) as part:
        part.write_text("all of it")
        assert not path.exists()
        assert part.suffix != ".json", "whoever looks for results would read it"
    assert path.read_text() == "all of it"
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["record.json"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path, site = tmp_path / "record.json", tmp_path / "site"
    path.write_text("before")
    site.mkdir()
    with pytest.raises(UnicodeEncodeError), whole.file(path) as part:
        part.write_text("half of\ud800")
    with pytest.raises(UnicodeEncodeError), whole.folder(site) as new:
        Path(new, "index.html").write_text("half of\ud800")
    assert path.read_text() == "before"
    assert list(site.iterdir()) == []
    assert sorted(os.listdir(tmp_path)) == ["record.json", "site"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """A pipe, for what must not be tried with a device."""
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    file.write_text("before")
    link.symlink_to(file)
    for path, kind in ((pipe, "a device, a pipe or a socket"), (link, "a link"), (tmp_path, "a folder")):
        with pytest.raises(ValueError, match=f"--json: expected a file; {path} is {kind}"):
            whole.expect_writable("--json", path)
    for path in (file, tmp_path / "new" / "file"):
        whole.expect_writable("--json", path)
    assert pipe.is_fifo()
    assert file.read_text() == "before"


def test_a_folder_is_replaced_with_all_that_was_in_it(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in ("old.html", "new.html"):
        with whole.folder(site) as new:
            Path(new, name).write_text("x")
    assert os.listdir(site) == ["new.html"]
    assert os.listdir(tmp_path) == ["site"]
    assert site.stat().st_mode & 0o055 == 0o055


def test_many_at_once_leave_one_of_them(tmp_path: Path) -> None:
    site, errors = tmp_path / "site", []

    def publish(number: int) -> None:
        try:
            for _ in range(20):
                with whole.folder(site) as new:
                    Path(new, "a").write_text(str(number))
                    Path(new, "b").write_text(str(number))
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (site / "a").read_text() == (site / "b").read_text()
    assert os.listdir(tmp_path) == ["site"]


def test_asv_killed_while_it_writes_leaves_the_result_that_was_there(tmp_path: Path) -> None:
    """Through the plug-in, which replaces asv's own way of writing."""
    path = tmp_path / "result.json"
    path.write_text("before")
    program = f"""
import json, os, signal, sys
import benchmarks._asv_env
from asv import util

def half(data, file, **_):
    file.write("half of")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "killed":
    json.dump = half
util.write_json({str(path)!r}, {{"a": 1}}, api_version=2, compact=True)
"""
    root = Path(whole.__file__).parent.parent
    for how, code, text in (("killed", -signal.SIGKILL, "before"), ("whole", 0, '{"a":1,"version":2}')):
        done = subprocess.run([sys.executable, "-c", program, how], cwd=root, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert path.read_text().replace(" ", "") == text
