"""A Docker engine to test with, and a base to build on: those that there are, or else our own.

An engine of our own takes root and Debian's `docker.io`; it keeps everything in a folder that goes with it. A base of
our own takes `debootstrap` as well, and is a plain Debian that knows where this machine's pip gets its packages.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import docker
from docker.errors import DockerException

START_S = 60
SOCKET = Path("/var/run/docker.sock")
PUBLIC_BASE = "python:3.12-slim-bookworm"


class UnavailableError(Exception):
    """Why there is no engine, or no base."""


@contextmanager
def running() -> Iterator[docker.DockerClient]:
    """The engine that DOCKER_HOST or the usual socket leads to, or one that ends with this, named in DOCKER_HOST."""
    if "DOCKER_HOST" in os.environ or SOCKET.exists():
        with closing(docker.from_env(timeout=900)) as client:
            yield client
    else:
        with (
            _own() as address,
            mock.patch.dict(os.environ, DOCKER_HOST=address),
            closing(docker.from_env(timeout=900)) as client,
        ):
            yield client


@contextmanager
def _own() -> Iterator[str]:
    program = shutil.which("dockerd")
    if program is None or os.geteuid() != 0:
        raise UnavailableError("no Docker engine runs; to start one takes root and dockerd (Debian: docker.io)")
    with TemporaryDirectory(prefix="engine-") as folder, Path(folder, "log").open("w") as log:
        address = f"unix://{folder}/socket"
        # Without a network of its own, which would take rights over the host's: containers use the host's, or none.
        process = subprocess.Popen(
            [
                program, "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid",
                "--host", address, "--bridge=none", "--iptables=false", "--ip6tables=false",
            ],
            stdout=log,
            stderr=log,
        )  # fmt: skip
        try:
            _wait_for(Path(folder, "socket"), process, Path(folder, "log"))
            yield address
        finally:
            process.terminate()
            process.wait()
            _unmount_below(Path(folder).resolve())


def _unmount_below(folder: Path) -> None:
    """An engine leaves its namespace of the host's network mounted, and so its folder could not go."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed([place for place in mounted if Path(place).is_relative_to(folder)]):
        subprocess.run(["umount", place], check=True)


def _wait_for(socket: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > until:
            raise UnavailableError("dockerd did not start:\n" + "\n".join(log.read_text().splitlines()[-5:]))
        time.sleep(0.2)


def base(client: docker.DockerClient) -> str:
    """The name of an image to build on: what BASE_IMAGE names, or Python's own, or a Debian made here."""
    if named := os.environ.get("BASE_IMAGE"):
        return named
    try:
        client.images.pull(PUBLIC_BASE)
        return PUBLIC_BASE
    except DockerException as error:
        return _made_here(client, str(error))


def _made_here(client: docker.DockerClient, reason: str) -> str:
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise UnavailableError(
            f"no base: {PUBLIC_BASE} cannot be pulled ({reason}); to make one takes root and debootstrap"
        )
    with TemporaryDirectory(prefix="base-") as folder:
        root = Path(folder, "root")
        packages = "--include=ca-certificates,python3,python3-venv"
        subprocess.run(["debootstrap", "--variant=minbase", packages, "bookworm", str(root)], check=True)
        _take_pip_settings_to(root)
        archive = Path(folder, "base.tar")
        subprocess.run(["tar", "--directory", str(root), "--create", "--file", str(archive), "."], check=True)
        client.api.import_image_from_file(str(archive), repository="debian-made-here", tag="bookworm")
    return "debian-made-here:bookworm"


def _take_pip_settings_to(root: Path) -> None:
    """Where this machine's pip gets packages: a certificate, and folders of wheels."""
    settings = []
    if certificate := _pip_setting("cert"):
        shutil.copyfile(certificate, root / "etc" / "pip.crt")
        settings.append("cert = /etc/pip.crt")
    if wheels := _pip_setting("find-links"):
        shutil.copytree(wheels, root / "opt" / "wheels")
        settings.append("find-links = /opt/wheels")
    (root / "etc" / "pip.conf").write_text("\n".join(["[global]", "timeout = 180", *settings, ""]))


def _pip_setting(name: str) -> str | None:
    # `pip config list` tells what counts, `pip config get` what one of several files says. Of the pip on the PATH: that
    # of a virtual environment may not read all of them.
    done = subprocess.run(["python3", "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    found = re.findall(rf"^\S+\.{name}='(.*)'$", done.stdout, re.MULTILINE)
    return found[-1] if found else None
