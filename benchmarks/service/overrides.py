"""A maintainer's word that one commit may be merged though its verdict is red.

It is a run of `perf-override.yml` on the default branch, whose name holds the commit and the reason, and which waited
for the approval of a reviewer of the environment `perf-override`. Who approved it is GitHub's to say: neither a label,
nor a status, nor a comment, nor anything in a pull request can stand for it, and another commit needs another run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

WORKFLOW = "perf-override.yml"
ENVIRONMENT = "perf-override"
STATUS = "perf-override"  # the name of the status that shows it on the commit
LEAST_REASON = 10  # characters
LONGEST_STATUS = 140  # characters, of a status' description


@dataclass(frozen=True)
class Override:
    """Of one commit."""

    by: str
    reason: str
    url: str


def title(commit: str, reason: str) -> str:
    """The name of such a run, as its workflow writes it; checked before anything is said of it.

    Raises:
        ValueError: that is no whole commit, or no reason.
    """
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise ValueError(f"--commit: expected all 40 digits of a commit; got {commit!r}")
    if len(reason.strip()) < LEAST_REASON or not reason.isprintable():
        raise ValueError(f"--reason: expected a line of at least {LEAST_REASON} characters; got {reason!r}")
    return f"Override {commit}: {reason}"


def find(
    commit: str,
    author: str,
    default_branch: str,
    runs: Sequence[dict[str, Any]],
    approvals_of: Callable[[int], Sequence[dict[str, Any]]],
) -> Override | None:
    """The override of `commit` among `runs` of the workflow, newest first, as the API lists them.

    An approval by `author`, who wrote the pull request, does not count.
    """
    prefix = f"Override {commit}: "
    for run in runs:
        ours = (
            run["path"].partition("@")[0] == f".github/workflows/{WORKFLOW}"
            and run["event"] == "workflow_dispatch"
            and run["head_branch"] == default_branch
            and run["conclusion"] == "success"
            and run["display_title"].startswith(prefix)
        )
        if not ours:
            continue
        for approval in approvals_of(run["id"]):
            by = approval["user"]["login"]
            of = {environment["name"] for environment in approval["environments"]}
            if approval["state"] == "approved" and ENVIRONMENT in of and by != author:
                return Override(by, run["display_title"].removeprefix(prefix), run["html_url"])
    return None
