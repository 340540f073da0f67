"""One engine and one image for all tests, and how long each step took."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container
from docker.models.images import Image

from tests.containers import engine

ROOT = Path(__file__).parents[2]
CALLER = "4321:4321"  # somebody whom no image knows
SECONDS: list[tuple[str, float]] = []


@contextmanager
def timed(step: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    SECONDS.append((step, time.monotonic() - began))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if SECONDS:
        terminalreporter.section("seconds of each step")
        for step, seconds in SECONDS:
            terminalreporter.write_line(f"{seconds:8.1f}  {step}")


@pytest.fixture(scope="session")
def client() -> Iterator[docker.DockerClient]:
    try:
        with engine.running() as client:
            yield client
    except engine.UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def build(client: docker.DockerClient) -> Callable[[Path, str], Image]:
    """`make image` in a checkout, on the base there is; the image."""
    try:
        with timed("the base"):
            base = engine.base(client)
    except engine.UnavailableError as error:
        pytest.skip(str(error))
    arguments = f"--network host --build-arg BASE_IMAGE={base} --build-arg CONSTRAINTS=constraints/cpu.txt"
    environment = {
        **os.environ,
        "DOCKER_BUILDKIT": "1",
        "PATH": f"/usr/bin:{os.environ['PATH']}",  # the client that was installed with the engine, before others
    }

    def make_image(checkout: Path, name: str) -> Image:
        command = ["make", "image", f"IMAGE={name}", f"IMAGE_ARGS={arguments}"]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return client.images.get(name)

    return make_image


@pytest.fixture(scope="session")
def image(build: Callable[[Path, str], Image]) -> Image:
    with timed("make image, from nothing"):
        return build(ROOT, "dllm-kernels:test")


@dataclasses.dataclass
class Ran:
    """How a container ended, and what it printed."""

    code: int
    output: str


@dataclasses.dataclass
class Runner:
    """Runs the image as a careful caller does: as somebody, without a network, on a root that is read-only."""

    client: docker.DockerClient
    image: Image
    results: Path

    def start(self, *command: str, **options: object) -> Container:
        settings: dict[str, object] = {
            "user": CALLER,
            "read_only": True,
            "tmpfs": {"/tmp": ""},
            "network_mode": "none",
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "volumes": [f"{self.results}:/results"],
        }
        return self.client.containers.run(self.image.id, list(command), detach=True, **{**settings, **options})

    def __call__(self, *command: str, **options: object) -> Ran:
        with timed(f"IMAGE {' '.join(command)}".rstrip()):
            return self.ended(self.start(*command, **options))

    def ended(self, container: Container) -> Ran:
        code = container.wait()["StatusCode"]
        output = container.logs().decode()
        container.remove(v=True)
        print(output)
        return Ran(code, output)


@pytest.fixture(scope="session")
def shared_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _callers(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def image_run(client: docker.DockerClient, image: Image, shared_results: Path) -> Runner:
    """With the results folder that all such tests share: what one measures, another shows."""
    return Runner(client, image, shared_results)


@pytest.fixture
def fresh_run(client: docker.DockerClient, image: Image, tmp_path: Path) -> Runner:
    """With an empty results folder."""
    return Runner(client, image, _callers(tmp_path / "results"))


def _callers(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        os.chown(folder, *map(int, CALLER.split(":")))
    else:
        folder.chmod(0o777)
    return folder
