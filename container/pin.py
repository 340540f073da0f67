"""`make pin-image`: write the digest that the registry gives to the base's tag into the Dockerfile."""

from __future__ import annotations

import re
import sys
from contextlib import closing
from pathlib import Path

import docker
from docker.errors import DockerException

BASE = re.compile(r"^(ARG BASE_IMAGE=)(\S+)$", re.MULTILINE)


def main(dockerfile: Path) -> int:
    """Exit code 2, with nothing changed, where no registry could be asked."""
    text = dockerfile.read_text()
    named = BASE.search(text)
    if named is None:
        print(f"error: {dockerfile}: expected a line ARG BASE_IMAGE=NAME:TAG", file=sys.stderr)
        return 2
    tag = named[2].partition("@")[0]
    try:
        with closing(docker.from_env()) as client:
            digest = str(client.images.get_registry_data(tag).id)
    except DockerException as error:
        print(
            f"error: {tag}: no digest, and {dockerfile} is as it was. It takes a Docker engine that reaches the"
            f" registry: {error}",
            file=sys.stderr,
        )
        return 2
    dockerfile.write_text(BASE.sub(rf"\g<1>{tag}@{digest}", text, count=1))
    print(f"{dockerfile} names {tag}@{digest}. Review it and commit it.")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent.parent / "Dockerfile"))
