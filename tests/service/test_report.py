"""The report on a finished run: whose it was, one comment, and a status that sees through a forged run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.service import text
from tests.service.pull_requests import BASE, HEAD
from tests.workflows.api import REPOSITORY


def finished(head: str, **changes: Any) -> dict[str, Any]:
    run = {
        "id": 77, "name": "GPU performance", "head_sha": head, "head_branch": "change", "conclusion": "success",
        "head_repository": {"owner": {"login": "stranger"}}, "html_url": "https://github.example/run/77",
        "path": ".github/workflows/gpu-perf.yml@refs/pull/7/merge", "pull_requests": [],
        "created_at": "2026-11-28T12:00:00Z", "run_attempt": 2, **changes,
    }  # fmt: skip
    return {"action": "completed", "workflow_run": run, "repository": {"default_branch": "main"}}


def listed(
    head: str, number: int = 7, repository: str = REPOSITORY, branch: str = "main", *, created="09", closed=None
) -> dict[str, Any]:
    """A pull request that was opened and closed at these hours; the run began at 12."""
    opened_at, closed_at = (None if hour is None else f"2026-11-28T{hour}:00:00Z" for hour in (created, closed))
    base = {"sha": BASE, "ref": branch, "repo": {"full_name": repository}}
    state = "open" if closed is None else "closed"
    times = {"created_at": opened_at, "closed_at": closed_at}
    return {"number": number, "state": state, "head": {"sha": head}, "base": base, **times}


@pytest.fixture
def whose(step):
    """Asks whose the run was that has just finished; the step's outputs, and the status that was set."""

    def ask(*pulls: Any, events: Any = (), **changes: Any) -> tuple[dict[str, str], dict[str, Any]]:
        step.api.answers["pulls"] = list(pulls)
        step.api.answers["issues/7/events"] = list(events)
        # Of main as it is, not as it was when the pull request was opened.
        step.api.answers[f"compare/main...{HEAD}"] = {"merge_base_commit": {"sha": "e" * 40}}
        assert step("whose", event=finished(HEAD, **changes))[0] == 0
        statuses = [fields for _, path, fields in step.api.written if path == f"statuses/{HEAD}"]
        return step.outputs(), statuses[-1] if statuses else {}

    return ask


MINE = {"number": "7", "base": "e" * 40}
NOBODYS = {"number": "", "base": ""}


def test_whose_run_it_was_is_known_from_github_alone(whose, step) -> None:
    others = [listed(HEAD, 3, "stranger/dllm-kernels"), listed("b" * 40, 5, closed="09"), listed(HEAD, 6, closed="10")]
    outputs, status = whose(*others, listed(HEAD, 7))
    assert outputs == MINE
    assert "head=stranger%3Achange" in step.api.asked[0]
    assert "state=all" in step.api.asked[0]
    assert (status["state"], status["context"]) == ("pending", "perf-verdict")


def test_a_run_whose_pull_request_moved_on_is_nobodys(whose) -> None:
    assert whose(listed("b" * 40)) == (NOBODYS, {})
    assert whose(listed(HEAD, closed="10")) == (NOBODYS, {})


@pytest.mark.parametrize(
    "other",
    [{}, {"closed": "13"}, {"closed": "11"}, {"head": "b" * 40}, {"branch": "main", "closed": "13"}],
    ids=["open", "closed since", "closed just before", "of another commit by now", "into main by now"],
)
def test_a_branch_that_was_also_to_go_into_another_gets_no_report(whose, other: dict[str, Any]) -> None:
    """That one's workflow is the other branch's, under the same name, and may upload what it likes."""
    outputs, status = whose(listed(HEAD, 7), listed(**{"head": HEAD, "number": 8, "branch": "mine", **other}))
    assert outputs == NOBODYS
    assert status["state"] == "pending"
    assert status["description"].startswith("its branch had another pull request, 8, in the hour before its run")


@pytest.mark.parametrize("other", [{"closed": "10"}, {"created": "13"}], ids=["closed before", "opened since"])
def test_a_branch_that_is_used_again_gets_its_report(whose, other: dict[str, Any]) -> None:
    assert whose(listed(HEAD, 7), listed(HEAD, 8, branch="mine", **other))[0] == MINE


def test_a_run_from_before_the_pull_request_gets_no_report(whose) -> None:
    outputs, status = whose(listed(HEAD, created="13"))
    assert outputs == NOBODYS
    assert status["description"].startswith("it was opened after its run began")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"path": ".github/workflows/forged.yml"}, "another file than .github/workflows/gpu-perf.yml"),
        ({"path": ".github/workflows/gpu-perf.yml@evil.yml"}, "another file than .github/workflows/gpu-perf.yml"),
        ({"pull_requests": [{"number": 8}]}, "its run is of pull request 8"),
    ],
)
def test_a_run_of_something_else_gets_no_report(whose, changes: dict[str, Any], reason: str) -> None:
    outputs, status = whose(listed(HEAD), **changes)
    assert outputs == NOBODYS
    assert reason in status["description"]
    assert len(status["description"]) <= 140


@pytest.mark.parametrize("event", ["base_ref_changed", "automatic_base_change_succeeded"])
def test_a_run_that_began_before_its_pull_request_was_into_main_gets_no_report(whose, event: str) -> None:
    """Or not an hour after: GitHub makes a run some time after the push, of the base that there was then."""

    def changed(at: str) -> list[dict[str, str]]:
        return [{"event": "renamed", "created_at": "2026-11-28T12:30:00Z"}, {"event": event, "created_at": at}]

    assert whose(listed(HEAD), events=changed("2026-11-28T10:59:59Z"))[0] == MINE
    for at in ("2026-11-28T11:59:55Z", "2026-11-28T12:00:01Z"):
        outputs, status = whose(listed(HEAD), events=changed(at))
        assert outputs == NOBODYS
        assert status["description"].startswith("it was into another branch not long before its run began")


def test_more_than_can_be_looked_at_gets_no_report(whose, step) -> None:
    assert whose(*[listed("b" * 40, number) for number in range(100, 199)], listed(HEAD))[0] == NOBODYS
    renamed = {"event": "renamed", "created_at": "2026-11-28T12:30:00Z"}
    assert whose(listed(HEAD), events=[renamed] * 100)[0] == NOBODYS
    assert step.api.written[-1][2]["description"] == "more has happened to it than can be looked at"


@pytest.fixture
def report(step, measured):
    """Runs the report on pull request 7; what it wrote to GitHub."""

    def run(
        folder: str, comments: list[Any], files: Sequence[Any] = (), tree: Sequence[Any] = (), **changes: Any
    ) -> dict[str, Any]:
        step.api.answers[f"compare/{measured.base}...{measured.head}"] = {"files": files}
        step.api.answers[f"git/trees/{measured.head}"] = {"tree": tree, "truncated": False}
        step.api.answers["issues/7/comments"] = comments
        step.api.answers["pulls/7"] = {"user": {"login": "author"}}
        assert step("report", folder, event=finished(measured.head, **changes), NUMBER="7")[0] == 0
        (comment,) = (one for one in step.api.written if "comments" in one[1])
        (status,) = (one[2] for one in step.api.written if one[1] == f"statuses/{measured.head}")
        return {"method": comment[0], "path": comment[1], "body": comment[2]["body"], "status": status}

    return run


def test_a_report_is_one_comment(report, measured) -> None:
    others = [
        {"id": 1, "user": {"login": "stranger"}, "body": f"{text.MARKER} mine"},
        {"id": 2, "user": {"login": "github-actions[bot]"}, "body": "of something else"},
    ]
    written = report(measured(), others)
    assert (written["method"], written["path"]) == ("POST", "issues/7/comments")
    assert written["body"].startswith(f"{text.MARKER}\n## perf-verdict: GREEN")
    assert "[Run 77](https://github.example/run/77)" in written["body"]
    assert (written["status"]["state"], written["status"]["context"]) == ("success", "perf-verdict")


def test_the_comment_is_renewed(report, measured) -> None:
    own = {"id": 4, "user": {"login": "github-actions[bot]"}, "body": f"{text.MARKER}\nold"}
    written = report(measured(device=1.1), [own], conclusion="failure")
    assert (written["method"], written["path"]) == ("PATCH", "issues/comments/4")
    assert written["status"]["state"] == "failure"


def test_a_run_that_was_made_green_is_seen_through(report, measured) -> None:
    """Its workflow was changed so that it succeeds: the records are judged again, and so are the paths."""
    files = [{"filename": "docs/x.md", "previous_filename": ".github/workflows/gpu-perf.yml"}]
    written = report(measured(device=1.1), [], files)
    assert written["status"]["state"] == "failure"
    assert "test: REGRESSION" in written["body"]
    assert "- .github/workflows/gpu-perf.yml" in written["body"]


def test_a_link_among_the_texts_is_a_change_of_the_judge(report, measured) -> None:
    """As in the run itself: what is there may be anything. One that was there before is none."""
    tree = [
        {"path": f"docs/{name}.md", "mode": mode} for name, mode in (("a", "100644"), ("b", "120000"), ("c", "160000"))
    ]
    files = [{"filename": "docs/a.md"}, {"filename": "docs/b.md"}]
    written = report(measured(), [], files, tree)
    assert written["status"]["state"] == "failure"
    assert "- docs/b.md" in written["body"]
    assert "docs/a.md" not in written["body"]
    assert "docs/c.md" not in written["body"]


def test_a_third_attempt_is_red_however_it_ends(report, measured) -> None:
    """Or a slowdown at the limit would be tried until it passes."""
    written = report(measured(), [], run_attempt=3)
    assert written["status"]["state"] == "failure"
    assert "attempt 3 of this run" in written["body"]


def test_a_green_run_without_records_is_red_in_the_report(report) -> None:
    assert report("not-there", [])["status"]["state"] == "failure"


def test_more_files_than_github_tells_are_a_change_of_the_judge(report, measured) -> None:
    written = report(measured(), [], [{"filename": f"docs/{number}.md"} for number in range(300)])
    assert written["status"]["state"] == "failure"
    assert "cannot be told" in written["body"]


def test_github_that_does_not_answer_is_an_error(step, capsys) -> None:
    assert step("whose", event=finished(HEAD))[0] == 2
    assert "GitHub refused GET pulls" in capsys.readouterr().err
