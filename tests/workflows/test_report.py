"""report.yml, run by act after gpu-perf.yml: one comment, renewed, and a status that sees through a forged run."""

from __future__ import annotations

import shutil
from typing import Any

from tests.workflows.api import REPOSITORY, Api
from tests.workflows.forge import Done, Forge, git
from tests.workflows.test_gpu_perf import planted

BOT = {"login": "github-actions[bot]"}


def report(forge: Forge, api: Api, event: dict[str, Any], measured: Done, conclusion: str) -> Done:
    """The event of that run's end; GitHub knows the pull request, and what changed in it."""
    head, number = event["pull_request"]["head"]["sha"], event["number"]
    base = git(forge.main, "rev-parse", "HEAD")
    files = git(forge.folder / f"fork-{number}", "diff", "--name-only", base, head).splitlines()
    compared = {"merge_base_commit": {"sha": base}, "files": [{"filename": name} for name in files]}
    into = {"sha": base, "ref": "main", "repo": {"full_name": REPOSITORY}}
    times = {"created_at": "2026-11-28T09:00:00Z", "closed_at": None}
    listed = {"number": number, "state": "open", "head": {"sha": head}, "base": into, **times}
    api.answers |= {
        "pulls": [listed], f"pulls/{number}": {"user": {"login": "stranger"}}, f"issues/{number}/events": [],
        f"compare/main...{head}": compared, f"compare/{base}...{head}": compared,
        f"git/trees/{head}": {"tree": [{"path": name, "mode": "100644"} for name in files], "truncated": False},
    }  # fmt: skip
    finished = {
        "id": 77, "name": "GPU performance", "event": "pull_request", "head_sha": head, "head_branch": "change",
        "head_repository": {"owner": {"login": "stranger"}}, "conclusion": conclusion, "html_url": "https://x/77",
        "path": ".github/workflows/gpu-perf.yml", "pull_requests": [], "created_at": "2026-11-28T12:00:00Z",
        "run_attempt": 1,
    }  # fmt: skip
    payload = {"action": "completed", "workflow_run": finished, "repository": {"default_branch": "main"}}
    place = forge.folder / f"artefacts-of-{number}"
    shutil.copytree(measured.folder / "artefacts", place, dirs_exist_ok=True)
    return forge.act(
        "report.yml", "workflow_run", payload, GITHUB_API_URL=api.url, GITHUB_REPOSITORY=REPOSITORY,
        TEST_ARTEFACTS=str(place),
    )  # fmt: skip


def test_the_verdict_is_pending_whatever_the_pull_request_made_of_the_workflows(forge: Forge, api: Api) -> None:
    """One without gpu-perf.yml, and with a green job of the verdict's name, gets no report."""
    gone = {".github/workflows/perf-pending.yml": lambda _: "", ".github/workflows/gpu-perf.yml": lambda _: ""}
    event = forge.pull_request(gone)
    done = forge.act(
        "perf-pending.yml", "pull_request_target", event, GITHUB_API_URL=api.url, GITHUB_REPOSITORY=REPOSITORY
    )
    assert done.jobs == {"Pending": True}, done.output[-3000:]
    ((method, path, fields),) = api.written
    assert (method, path) == ("POST", f"statuses/{event['pull_request']['head']['sha']}")
    assert (fields["context"], fields["state"]) == ("perf-verdict", "pending")


def test_the_verdict_is_pending_again_where_a_pull_request_comes_into_main_from_another_branch(
    forge: Forge, api: Api
) -> None:
    """By a change of its base, and by no other edit: a verdict stands when a title is mended."""
    event = {**forge.pull_request({"README.md": lambda text: text + "\nA word more.\n"}), "action": "edited"}
    asked = {"GITHUB_API_URL": api.url, "GITHUB_REPOSITORY": REPOSITORY}
    retitled = {**event, "changes": {"title": {"from": "x"}}}
    done = forge.act("perf-pending.yml", "pull_request_target", retitled, **asked)
    assert (done.jobs, api.written) == ({}, []), done.output[-3000:]
    retargeted = {**event, "changes": {"base": {"ref": {"from": "mine"}}}}
    assert forge.act("perf-pending.yml", "pull_request_target", retargeted, **asked).jobs == {"Pending": True}
    ((_, _, fields),) = api.written
    assert (fields["context"], fields["state"]) == ("perf-verdict", "pending")
    assert fields["description"] == "its base changed: push, or close and open it again, in an hour"


def test_a_slow_pull_request_is_told_once_and_the_comment_renewed(forge: Forge, api: Api) -> None:
    event = forge.pull_request(planted(fused=1.1))
    measured = forge.act("gpu-perf.yml", "pull_request", event, GITHUB_API_URL=api.url, GITHUB_REPOSITORY=REPOSITORY)
    api.answers["issues/7/comments"] = []
    done = report(forge, api, event, measured, "failure")
    assert done.jobs == {"Whose": True, "Report": True}, done.output[-3000:]
    pending, comment, status = api.written
    assert pending[2]["state"] == "pending"
    assert comment[:2] == ("POST", "issues/7/comments")
    assert "## perf-verdict: RED" in comment[2]["body"]
    assert "h100: REGRESSION" in comment[2]["body"]
    assert (status[2]["context"], status[2]["state"]) == ("perf-verdict", "failure")

    api.written.clear()
    api.answers["issues/7/comments"] = [{"id": 4, "user": BOT, "body": comment[2]["body"]}]
    report(forge, api, event, measured, "failure")
    assert [one[:2] for one in api.written if "comments" in one[1]] == [("PATCH", "issues/comments/4")]


def test_a_workflow_that_makes_itself_green_gets_no_green_status(forge: Forge, api: Api) -> None:
    forged = {
        ".github/workflows/gpu-perf.yml": lambda text: text.replace(
            'make service ARGS="verdict artefacts"', "echo perf-verdict is fine"
        )
    }
    event = forge.pull_request({**planted(fused=1.1), **forged})
    measured = forge.act("gpu-perf.yml", "pull_request", event, GITHUB_API_URL=api.url, GITHUB_REPOSITORY=REPOSITORY)
    assert measured.jobs["perf-verdict"] is True, "so much it can do"
    api.answers["issues/7/comments"] = []
    report(forge, api, event, measured, "success")
    (status,) = (one[2] for one in api.written if one[1].startswith("statuses/") and one[2]["state"] != "pending")
    assert status["state"] == "failure"
    (comment,) = (one[2]["body"] for one in api.written if "comments" in one[1])
    assert "- .github/workflows/gpu-perf.yml" in comment
