"""Artefacts, and a step of a workflow with a repository, a checkout and GitHub around it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as cli
from benchmarks import session
from benchmarks.results import State
from benchmarks.service import gpus
from tests.records import GPU, make_compared
from tests.service.pull_requests import CASE, MODEL, content_of, judged
from tests.workflows.api import REPOSITORY, Api


@pytest.fixture
def artefact(tmp_path: Path):
    folder = tmp_path / "artefacts"
    folder.mkdir()

    def make(*files: tuple[str | zipfile.ZipInfo, bytes], name: str = "gpu-perf-test.zip") -> Path:
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for file, content in files:
                archive.writestr(file, content)
        return folder

    return make


@pytest.fixture
def step(tmp_path: Path, monkeypatch):
    """Runs a step's command; its exit code, outputs and summary."""
    with Api() as api:
        monkeypatch.setattr(session, "case_of", lambda run, require_baseline=False, asked=None: CASE)
        monkeypatch.setattr("benchmarks.service.ROOT", tmp_path)
        (tmp_path / ".github").mkdir()
        (tmp_path / gpus.FILE).write_text(json.dumps([dataclasses.asdict(MODEL)]))
        for name, value in {
            "GITHUB_API_URL": api.url, "GITHUB_REPOSITORY": REPOSITORY, "GITHUB_TOKEN": "x", "GITHUB_RUN_ID": "5",
            "GITHUB_RUN_ATTEMPT": "2", "GITHUB_SERVER_URL": "https://github.example",
            "GITHUB_EVENT_PATH": str(tmp_path / "event.json"),
            "GITHUB_OUTPUT": str(tmp_path / "output"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)

        def run(*arguments: str, event: Any = None, **environment: str) -> tuple[int, str]:
            (tmp_path / "event.json").write_text(json.dumps(event))
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            code = cli.main(["service", *arguments])
            summary = tmp_path / "summary"
            return code, summary.read_text() if summary.exists() else ""

        run.api = api
        run.folder = tmp_path
        run.outputs = lambda: dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())
        yield run


@pytest.fixture
def repository(step):
    """A base and a head that left it, as two commits."""

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=T", "-c", "user.email=t@localhost", *arguments]
        return subprocess.run(command, cwd=step.folder, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "--quiet", "--initial-branch=main")
    git("add", ".github")
    git("commit", "--quiet", "--message=base")
    base = git("rev-parse", "HEAD")
    (step.folder / "benchmarks").mkdir()
    (step.folder / "benchmarks" / 'a"b\nc.py').write_text("")
    (step.folder / "README.md").write_text("")
    (step.folder / "docs").mkdir()
    (step.folder / "docs" / "link.md").symlink_to("../benchmarks")
    (step.folder / gpus.FILE).write_text("[]")
    git("add", "benchmarks", "docs", "README.md", ".github")
    git("commit", "--quiet", "--message=head")
    head = git("rev-parse", "HEAD")
    git("checkout", "--quiet", "--detach", base)
    git("commit", "--quiet", "--allow-empty", "--message=main moved on")
    return base, git("rev-parse", "HEAD"), head


@pytest.fixture
def measured(step, repository, artefact):
    """A folder with the artefact of head beside the merge base, which is checked out."""
    base, _, head = repository
    subprocess.run(["git", "checkout", "--quiet", base], cwd=step.folder, check=True)

    def measured(**changes: Any) -> str:
        environment = dataclasses.replace(GPU, commit=head)
        run = judged(make_compared(environment=environment, base=State(base, False, "x"), **changes))
        return str(artefact(("record.json", content_of(run, step.folder))))

    measured.head, measured.base = head, base
    return measured
