"""Overrides: whose word counts, and for which commit."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.service import overrides
from tests.service.pull_requests import HEAD, approval, run_of_override


def find(run: dict[str, Any], *approvals: dict[str, Any]) -> overrides.Override | None:
    return overrides.find(HEAD, "author", "main", [run], lambda number: approvals)


def test_an_approved_override_counts() -> None:
    assert find(run_of_override(), approval()) == overrides.Override("maintainer", "for a reason", "https://x/5")
    assert find(run_of_override(path=".github/workflows/perf-override.yml@refs/heads/main"), approval())


@pytest.mark.parametrize(
    "changes",
    [
        {"display_title": f"Override {'b' * 40}: another commit"},
        {"display_title": f"Override {HEAD[:10]}: not the whole name"},
        {"head_branch": "mine"},
        {"event": "pull_request"},
        {"path": ".github/workflows/other.yml"},
        {"conclusion": "failure"},
    ],
)
def test_an_override_that_is_none(changes: dict[str, Any]) -> None:
    assert find(run_of_override(**changes), approval()) is None


@pytest.mark.parametrize(
    "changes",
    [{"state": "rejected"}, {"user": {"login": "author"}}, {"environments": [{"name": "gpu"}]}, {"environments": []}],
)
def test_an_approval_that_is_none(changes: dict[str, Any]) -> None:
    assert find(run_of_override(), approval(**changes)) is None
    assert find(run_of_override()) is None


@pytest.mark.parametrize(("commit", "reason"), [(HEAD[:10], "long enough"), (HEAD, "short"), (HEAD, "two\nlines, hm")])
def test_an_override_says_which_commit_and_why(commit: str, reason: str) -> None:
    with pytest.raises(ValueError, match="--commit|--reason"):
        overrides.title(commit, reason)
