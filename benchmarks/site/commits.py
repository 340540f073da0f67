"""What the repository says of commits, and where they can be looked at."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORGES = {
    "github.com": "https://{host}/{path}/commit/",
    "gitlab.com": "https://{host}/{path}/-/commit/",
    "codeberg.org": "https://{host}/{path}/commit/",
    "bitbucket.org": "https://{host}/{path}/commits/",
}


@dataclass(frozen=True)
class Commit:
    hash: str
    date: str  # ISO 8601, of the committer
    subject: str

    @property
    def short(self) -> str:
        return self.hash[:10]

    @property
    def day(self) -> str:
        return self.date[:10]


def described(repository: Path, revision: str) -> dict[str, Commit]:
    """Those of a branch, by hash."""
    return _log(repository, ["--first-parent", revision])


def described_strays(repository: Path, hashes: Iterable[str]) -> dict[str, Commit]:
    """What git knows of commits that may have left every branch: nothing, where they are gone."""
    known: dict[str, Commit] = {}
    for one in hashes:
        if re.fullmatch("[0-9a-f]{40}", one):
            known |= _log(repository, ["--max-count=1", one])
    return known


def _log(repository: Path, arguments: Sequence[str]) -> dict[str, Commit]:
    command = ["git", "-c", "log.showSignature=false", "log", "-z", "--format=%H%n%cI%n%s", *arguments, "--"]
    done = subprocess.run(command, cwd=repository, capture_output=True, check=False)
    entries = done.stdout.decode(errors="replace").split("\0")
    return {entry[:40]: Commit(*entry.split("\n", 2)) for entry in entries if entry.count("\n") >= 2}


def link_prefix(repository: Path, asv_config: dict[str, Any]) -> str:
    """What a commit's page begins with: asv's `show_commit_url`, or by the remote; empty if neither says."""
    wanted = str(asv_config.get("show_commit_url", ""))
    if re.match("https?://", wanted):
        return wanted
    command = ["git", "config", "--get-regexp", r"^remote\..*\.url$"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    remotes = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    for name in sorted(remotes, key=lambda name: name != "remote.origin.url"):
        found = re.fullmatch(
            r"(?:https?://(?:[^@/]+@)?|ssh://(?:git@)?|git@)([\w.-]+)[:/]([\w./-]+?)(?:\.git)?/?", remotes[name]
        )
        if found and found[1] in FORGES:
            return FORGES[found[1]].format(host=found[1], path=found[2])
    return ""
