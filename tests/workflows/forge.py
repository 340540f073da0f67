"""A repository with a bare remote, pull requests to it, and `act`, which runs its workflows on the events of both."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
DIGEST = "@sha256:" + "0" * 64  # of no image: the Docker that is asked for it is a stand-in
WRAPPER = """#!/bin/sh
"{python}" "$@"
code=$?
if [ -s "$GITHUB_STEP_SUMMARY" ]; then cp "$GITHUB_STEP_SUMMARY" "$TEST_SUMMARIES/$GITHUB_JOB.md"; fi
exit $code
"""


@dataclass
class Done:
    """A finished run of a workflow."""

    code: int
    output: str
    folder: Path

    def summary(self, job: str) -> str:
        path = self.folder / "summaries" / f"{job}.md"
        return path.read_text() if path.exists() else ""

    @property
    def containers(self) -> list[str]:
        """What was asked of Docker, a line a command."""
        log = self.folder / "docker" / "log"
        return log.read_text().splitlines() if log.exists() else []

    @property
    def jobs(self) -> dict[str, bool]:
        """Whether each job that ran succeeded."""
        found = re.findall(r"^\[[^]]*/(.+?)\s*\] .*Job (succeeded|failed)", self.output, re.MULTILINE)
        return {name: result == "succeeded" for name, result in found}


@dataclass
class Forge:
    """One repository; `main` is a clone whose commits are pushed to its branch main."""

    folder: Path
    runs: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.remote = self.folder / "remote.git"
        self.main = self.folder / "main"
        git(self.folder, "init", "--quiet", "--bare", "--initial-branch=main", str(self.remote))
        git(self.remote, "config", "uploadpack.allowAnySHA1InWant", "true")
        git(self.folder, "clone", "--quiet", str(self.remote), str(self.main))
        copy_tracked(self.main)
        edit(self.main / "Dockerfile", lambda text: re.sub(r"(?m)^(ARG BASE_IMAGE=[^@\n]+).*$", rf"\1{DIGEST}", text))
        self.commit_to_main("The project as it is here")

    def commit_to_main(self, message: str) -> str:
        commit = commit_all(self.main, message)
        git(self.main, "push", "--quiet", "origin", "HEAD:main")
        return commit

    def pull_request(self, edits: dict[str, Callable[[str], str]], number: int = 7) -> dict[str, Any]:
        """The event of a fork's pull request with these edits: of each file, what becomes of its text."""
        fork = self.folder / f"fork-{number}"
        git(self.folder, "clone", "--quiet", str(self.remote), str(fork))
        for name, change in edits.items():
            edit(fork / name, change)
        head = commit_all(fork, "A change")
        git(fork, "push", "--quiet", "origin", f"HEAD:refs/pull/{number}/head")
        base = git(self.main, "rev-parse", "HEAD")
        return {
            "action": "synchronize",
            "number": number,
            "pull_request": {
                "number": number,
                "head": {"sha": head, "ref": "change", "repo": {"full_name": "stranger/dllm-kernels", "fork": True}},
                "base": {"sha": base, "ref": "main", "repo": {"full_name": "owner/dllm-kernels"}},
                "user": {"login": "stranger"},
            },
            "repository": {"full_name": "owner/dllm-kernels", "default_branch": "main"},
        }

    def push(self) -> dict[str, Any]:
        """The event of the last commit to main."""
        after = git(self.main, "rev-parse", "HEAD")
        repository = {"full_name": "owner/dllm-kernels", "default_branch": "main"}
        return {"ref": "refs/heads/main", "after": after, "repository": repository}

    def act(self, workflow: str, event: str, payload: dict[str, Any], **environment: str) -> Done:
        """Run a workflow as the commit has it that GitHub would take it from; artefacts of an earlier run may be given
        as TEST_ARTEFACTS."""
        place = self.folder / f"run-{next(self.runs)}"
        for name in ("docker", "artefacts", "summaries", "cache", "home"):
            (place / name).mkdir(parents=True)
        checkout = place / "checkout"
        git(self.folder, "clone", "--quiet", str(self.remote), str(checkout))
        # Of a pull request the workflow is its own; of every other event, main's.
        ref = payload["pull_request"]["head"]["sha"] if event == "pull_request" else payload.get("after", "main")
        git(checkout, "fetch", "--quiet", "origin", ref)
        git(checkout, "checkout", "--quiet", "--detach", "FETCH_HEAD")
        path = checkout / ".github" / "workflows" / workflow
        path.write_text(re.sub(r"(?m)^ +queue: max.*\n", "", path.read_text()))  # which act does not know yet
        (place / "event.json").write_text(json.dumps(payload))
        given = {
            "TEST_REMOTE": str(self.remote),
            "TEST_REF": ref,
            "TEST_ARTEFACTS": str(place / "artefacts"),
            "TEST_DOCKER": str(place / "docker"),
            "TEST_SUMMARIES": str(place / "summaries"),
            "TEST_PYTHON": sys.executable,
            "VENV": str(self._environment()),
            "PATH": f"{HERE / 'bin'}:{os.environ['PATH']}",
            **environment,
        }
        command = [str(BIN / "act"), event, "--eventpath", str(place / "event.json")]
        command += ["--workflows", str(path)]
        command += ["--platform", "ubuntu-24.04=-self-hosted", "--platform", "self-hosted=-self-hosted"]
        command += ["--no-skip-checkout", "--action-offline-mode", "--secret", "GITHUB_TOKEN=made-up-token"]
        command += [one for action in stand_ins(path) for one in action]
        command += [one for name, value in given.items() for one in ("--env", f"{name}={value}")]
        # Not what a workflow around this one has, nor the interpreter of these tests, under which nothing compiles.
        others = ("GITHUB_", "RUNNER_", "ACTIONS_", "TRITON_INTERPRET")
        outside = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        outside |= {"PATH": given["PATH"], "HOME": str(place / "home"), "XDG_CACHE_HOME": str(place / "cache")}
        done = subprocess.run(
            command, cwd=checkout, env=outside, text=True, check=False, timeout=1800,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        (place / "log").write_text(done.stdout)
        return Done(done.returncode, done.stdout, place)

    def _environment(self) -> Path:
        """What make takes for its virtual environments, ready: this one's Python, which notes each job's summary."""
        place = self.folder / "venv"
        for name in ("venv", "venv-service"):
            folder = self.folder / name
            if folder.exists():
                continue
            (folder / "bin").mkdir(parents=True)
            python = folder / "bin" / "python"
            python.write_text(WRAPPER.format(python=sys.executable))
            python.chmod(0o755)
            (folder / ".ready").touch()
            os.utime(folder / ".ready", (4e9, 4e9))  # younger than any checkout's pyproject.toml
        return place


def stand_ins(workflow: Path) -> list[tuple[str, str]]:
    """For each action that is not of this repository, the folder under `actions` that stands in for it."""
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    used = sorted({step["uses"] for job in jobs for step in job["steps"] if "uses" in step})
    return [("--local-repository", f"{name}={HERE / 'actions' / name.split('/')[1].split('@')[0]}") for name in used]


def copy_tracked(target: Path) -> None:
    """The files of this checkout that git knows, as they are now."""
    for name in git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
            (target / name).chmod((ROOT / name).stat().st_mode)


def edit(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text() if path.exists() else ""
    after = change(before)
    assert after != before, f"the edit of {path} changes nothing"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(after)


def commit_all(checkout: Path, message: str) -> str:
    git(checkout, "add", "--all")
    git(checkout, "-c", "user.name=Test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", message)
    return git(checkout, "rev-parse", "HEAD")


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
