"""A repository of its own for every test; the summaries stay in .bench/workflows to be looked at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflows.api import Api
from tests.workflows.forge import ROOT, Forge


@pytest.fixture
def forge(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Forge]:
    yield Forge(tmp_path)
    kept = ROOT / ".bench" / "workflows"
    kept.mkdir(parents=True, exist_ok=True)
    for path in sorted(tmp_path.glob("run-*/summaries/*.md")):
        shutil.copy(path, kept / f"{request.node.name}-{path.parts[-3]}-{path.name}")


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as running:
        yield running
