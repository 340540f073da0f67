"""Bends of the history: an issue each, once."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.history.changes import Change
from benchmarks.history.points import Series
from benchmarks.service import issues
from tests.records import NAME


def change(first: str, machine: str = "h100", ratio: float = 1.1, **more: Any) -> Change:
    series = Series(machine, "bench.track_fused_us", (NAME, "device_us"), "us", True)
    return Change(series, "c1", first, 10.0, 10.0 * ratio, ratio - 0.01, ratio + 0.01, 0, more.pop("environment", {}))


COMMITS = [f"c{number}" for number in range(20)]


def test_one_issue_a_bend_and_none_again() -> None:
    (issue,) = issues.to_open([change("c5"), change("c5", ratio=1.2)], COMMITS, [])
    assert issue.title == "h100: 2 series worse by up to 20.0% since c5"
    assert issues.to_open([change("c5")], COMMITS, [issue.body]) == []
    assert issues.to_open([change("c6")], COMMITS, [issue.body]) == [], "the same, seen a commit later"
    assert len(issues.to_open([change("c9")], COMMITS, [issue.body])) == 1
    assert len(issues.to_open([change("c5", machine="a100")], COMMITS, [issue.body])) == 1


def test_an_issue_names_no_commit_as_the_one_where_those_before_it_were_not_measured() -> None:
    several = dataclasses.replace(change("c5"), between=3)
    (issue,) = issues.to_open([several], COMMITS, [])
    assert issue.title == "h100: 1 series worse by up to 10.0% after c1"


def test_no_issue_for_what_became_better_or_came_with_another_environment() -> None:
    assert issues.to_open([change("c5", ratio=0.9)], COMMITS, []) == []
    assert issues.to_open([change("c5", environment={"torch": ("2.11", "2.13")})], COMMITS, []) == []


def test_not_more_issues_than_anybody_reads() -> None:
    found = [change(f"c{number}", machine=f"m{number}") for number in range(15)]
    assert len(issues.to_open(found, COMMITS, [])) == issues.MOST
