"""One issue for every place where history bent: opened once, and not again every night. Pure.

Where a change lies is known to a few commits, and moves as points are added: an issue of the same machine whose commit
is that near is of the same change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.history.changes import Change
from benchmarks.history.command import issue

LABEL = "performance-history"
NEAR = 2  # commits
MOST = 5  # issues at once: more bends in one night are one cause, or a broken machine
MARKER = re.compile(r"<!-- history (\{[^\n]*\}) -->")


@dataclass(frozen=True)
class Issue:
    """What is to be opened."""

    title: str
    body: str


def to_open(found: Sequence[Change], commits: Sequence[str], bodies: Sequence[str]) -> list[Issue]:
    """Issues for what became worse by a commit, where none of `bodies`, of issues that were opened before, is of it.

    `commits` are the branch's, oldest first.
    """
    order = {commit: number for number, commit in enumerate(commits)}
    known = [place for body in bodies if (place := _place(body)) and place[1] in order]
    groups: dict[tuple[str, str], list[Change]] = {}
    for change in found:
        if change.worse and not change.environment:
            groups.setdefault((change.series.machine, change.first), []).append(change)
    opened = []
    for (machine, first), changes in sorted(groups.items(), key=lambda group: order[group[0][1]]):
        if any(machine == other and abs(order[first] - order[near]) <= NEAR for other, near in known):
            continue
        known.append((machine, first))
        marker = f"<!-- history {json.dumps({'machine': machine, 'commit': first})} -->"
        largest = max(changes, key=lambda one: abs(one.ratio - 1))
        title = f"{machine}: {len(changes)} series worse by up to {abs(largest.ratio - 1):.1%} {largest.since}"
        opened.append(Issue(title, f"{marker}\n{issue(changes)}"))
    return opened[-MOST:]


def _place(body: str) -> tuple[str, str] | None:
    marker = MARKER.search(body or "")
    if marker is None:
        return None
    fields: dict[str, Any] = json.loads(marker[1])
    return fields["machine"], fields["commit"]
