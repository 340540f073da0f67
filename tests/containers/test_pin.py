"""`make pin-image`, with a real registry on this machine where Debian's docker-registry is installed."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from container import pin
from tests.containers.conftest import ROOT


@pytest.fixture
def dockerfile(tmp_path: Path) -> Path:
    path = tmp_path / "Dockerfile"
    shutil.copy(ROOT / "Dockerfile", path)
    return path


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("no registry to ask: Debian's docker-registry is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = tmp_path / "registry.yml"
    storage = f"storage: {{filesystem: {{rootdirectory: {tmp_path}/registry}}}}"
    settings.write_text(f"version: 0.1\n{storage}\nhttp: {{addr: '{address}'}}\n")
    with (tmp_path / "registry.log").open("w") as log:
        process = subprocess.Popen([program, "serve", str(settings)], stdout=log, stderr=log)
        try:
            _wait_for(f"http://{address}/v2/")
            yield address
        finally:
            process.terminate()
            process.wait()


def _wait_for(url: str) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.URLError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def test_the_tag_gets_the_registrys_digest(client: docker.DockerClient, registry: str, dockerfile: Path) -> None:
    tag = f"{registry}/base:1"
    client.api.import_image_from_data(_empty_tar(), repository=f"{registry}/base", tag="1")
    client.images.push(tag)
    dockerfile.write_text(re.sub(r"(?m)^ARG BASE_IMAGE=.+$", f"ARG BASE_IMAGE={tag}", dockerfile.read_text()))
    unpinned = dockerfile.read_text()
    (pushed,) = (one for one in client.images.get(tag).attrs["RepoDigests"] if one.startswith(registry))
    for _ in range(2):  # again, it is the tag that is looked up
        assert pin.main(dockerfile) == 0
        pinned = f"ARG BASE_IMAGE={tag}@{pushed.partition('@')[2]}"
        assert dockerfile.read_text() == unpinned.replace(f"ARG BASE_IMAGE={tag}", pinned)
        assert is_pinned(dockerfile)
    client.images.remove(tag, force=True)


def test_without_a_registry_nothing_changes(
    client: docker.DockerClient, dockerfile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = re.sub(r"(?m)^ARG BASE_IMAGE=.+$", "ARG BASE_IMAGE=127.0.0.1:9/base:1", dockerfile.read_text())
    dockerfile.write_text(text)
    assert pin.main(dockerfile) == 2
    assert "127.0.0.1:9/base:1: no digest" in capsys.readouterr().err
    assert dockerfile.read_text() == text
    assert not is_pinned(dockerfile)


def is_pinned(dockerfile: Path) -> bool:
    """What `make pinned` says of it."""
    command = ["make", "--silent", "--file", str(ROOT / "Makefile"), "pinned"]
    done = subprocess.run(command, cwd=dockerfile.parent, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2)
    assert (done.returncode == 0) or "run make pin-image" in done.stderr
    return done.returncode == 0


def _empty_tar() -> bytes:
    return bytes(10240)
