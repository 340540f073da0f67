"""The GPU models that pull requests and history are measured on: one list, `.github/gpus.json`. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from benchmarks.results import Strict, decoded

FILE = ".github/gpus.json"
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


@dataclass(frozen=True)
class Gpu(Strict):
    """A model, and where it is found."""

    name: Name  # in the names of jobs and artefacts
    device: Annotated[str, Field(min_length=1, max_length=100)]  # as the driver calls it, and so records and baselines
    runner: Name  # label of the runners that have it


def read(text: str) -> tuple[Gpu, ...]:
    """The list as a file holds it.

    Raises:
        ValueError: it is no such list, is empty, or names a model twice.
    """
    found = decoded(tuple[Gpu, ...], json.loads(text))
    if not found:
        raise ValueError(f"{FILE}: expected at least one GPU model; got none")
    for field in ("name", "device"):
        values = [getattr(gpu, field) for gpu in found]
        if len(set(values)) < len(values):
            raise ValueError(f"{FILE}: expected each {field} once; got {', '.join(values)}")
    return found
