"""The report on a finished run: whose it was, one comment, and a status that sees through a forged run."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.service import text
from tests.service.pull_requests import BASE, HEAD
from tests.workflows.api import REPOSITORY


def finished(head: str, **changes: Any) -> dict[str, Any]:
    run = {
        "id": 77, "name": "GPU performance", "head_sha": head, "head_branch": "change", "conclusion": "success",
        "head_repository": {"owner": {"login": "stranger"}}, "html_url": "https://github.example/run/77", **changes,
    }  # fmt: skip
    return {"action": "completed", "workflow_run": run, "repository": {"default_branch": "main"}}


def listed(head: str, number: int = 7, repository: str = REPOSITORY, branch: str = "main") -> dict[str, Any]:
    base = {"sha": BASE, "ref": branch, "repo": {"full_name": repository}}
    return {"number": number, "head": {"sha": head}, "base": base}


def test_whose_run_it_was_is_known_from_github_alone(step) -> None:
    elsewhere = listed(HEAD, 3, "stranger/dllm-kernels")
    weaker = listed(HEAD, 4, branch="old")  # whose rules are not main's
    step.api.answers["pulls"] = [listed("b" * 40, 5), elsewhere, weaker, listed(HEAD, 9), listed(HEAD, 7)]
    step.api.answers[f"compare/{BASE}...{HEAD}"] = {"merge_base_commit": {"sha": "e" * 40}}
    assert step("whose", event=finished(HEAD))[0] == 0
    assert step.outputs() == {"number": "7", "base": "e" * 40}
    assert "head=stranger%3Achange" in step.api.asked[0]
    ((_, path, fields),) = step.api.written
    assert (path, fields["state"], fields["context"]) == (f"statuses/{HEAD}", "pending", "perf-verdict")


def test_a_run_whose_pull_request_moved_on_is_nobodys(step) -> None:
    step.api.answers["pulls"] = [listed("b" * 40)]
    assert step("whose", event=finished(HEAD))[0] == 0
    assert step.outputs() == {"number": "", "base": ""}
    assert step.api.written == []


@pytest.fixture
def report(step, measured):
    """Runs the report on pull request 7; what it wrote to GitHub."""

    def run(folder: str, comments: list[Any], files: list[Any] | None = None, **changes: Any) -> dict[str, Any]:
        step.api.answers[f"compare/{measured.base}...{measured.head}"] = {"files": files or []}
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


def test_a_green_run_without_records_is_red_in_the_report(report) -> None:
    assert report("not-there", [])["status"]["state"] == "failure"


def test_more_files_than_github_tells_are_a_change_of_the_judge(report, measured) -> None:
    written = report(measured(), [], [{"filename": f"docs/{number}.md"} for number in range(300)])
    assert written["status"]["state"] == "failure"
    assert "cannot be told" in written["body"]


def test_github_that_does_not_answer_is_an_error(step, capsys) -> None:
    assert step("whose", event=finished(HEAD))[0] == 2
    assert "GitHub refused GET pulls" in capsys.readouterr().err
