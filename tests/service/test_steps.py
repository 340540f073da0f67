"""The commands that steps call: what they write, and what they end in."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from benchmarks import results
from benchmarks.service import _annotation, gpus
from tests.records import make_compared
from tests.service.pull_requests import HEAD, approval, content_of, run_of_override
from tests.workflows.api import REPOSITORY


def test_the_plan(step, repository) -> None:
    base, tip, head = repository
    code, _ = step("plan", "--repository", str(step.folder), "--base", tip, "--head", head)
    outputs = step.outputs()
    assert code == 0
    assert outputs["base"] == base
    assert json.loads(outputs["gpus"]) == [{"name": "test", "runner": "gpu-test"}], "the merge base's list, not head's"
    assert json.loads(outputs["changed"]) == [gpus.FILE, 'benchmarks/a"b\nc.py', "docs/link.md"], "a link is no text"


def test_a_plan_without_such_a_commit_fails(step, repository, capsys) -> None:
    assert step("plan", "--repository", str(step.folder), "--base", "f" * 40, "--head", repository[2])[0] == 2
    assert "git merge-base" in capsys.readouterr().err


def pull_request(head: str) -> dict[str, Any]:
    return {
        "pull_request": {"head": {"sha": head}, "user": {"login": "author"}},
        "repository": {"default_branch": "main"},
    }


def needs(gpu: str = "success", changed: list[str] | None = None) -> str:
    outputs = {"base": "b" * 40, "gpus": "[{}]", "changed": json.dumps(changed or [])}
    plan = {"result": "success", "outputs": outputs}
    return json.dumps({"plan": plan, "gpu": {"result": gpu, "outputs": {}}})


def test_verdict_green(step, measured, capsys) -> None:
    code, summary = step("verdict", measured(), event=pull_request(measured.head), NEEDS=needs())
    assert code == 0
    assert summary.startswith("## perf-verdict: GREEN")
    assert "::error" not in capsys.readouterr().out
    assert step.api.asked == [], "an override is looked for only where one is needed"


def test_verdict_red(step, measured, capsys) -> None:
    code, summary = step("verdict", measured(device=1.1), event=pull_request(measured.head), NEEDS=needs("failure"))
    assert code == 1
    assert summary.startswith("## perf-verdict: RED\n")
    assert "::error title=perf-verdict::gpu: the job ended as 'failure'" in capsys.readouterr().out


def test_verdict_of_a_third_attempt(step, measured) -> None:
    given = {"event": pull_request(measured.head), "NEEDS": needs(), "GITHUB_RUN_ATTEMPT": "3"}
    code, summary = step("verdict", measured(), **given)
    assert code == 1
    assert "attempt 3 of this run: who tries often enough passes, so after 2 a maintainer decides" in summary


def test_verdict_on_a_change_of_the_judge(step, measured) -> None:
    given = needs(changed=["benchmarks/policy.py"])
    code, summary = step("verdict", measured(), event=pull_request(measured.head), NEEDS=given)
    assert code == 1
    assert "- benchmarks/policy.py" in summary


@pytest.mark.parametrize("lost", ["base", "gpus", "changed"])
def test_verdict_without_an_output_of_the_plan(step, measured, lost: str) -> None:
    """GitHub drops an output with a masked string in it, and a commit's subject in a log can have a string masked."""
    given = json.loads(needs())
    del given["plan"]["outputs"][lost]
    code, summary = step("verdict", measured(), event=pull_request(measured.head), NEEDS=json.dumps(given))
    assert code == 1
    assert f"plan: it left no {lost}, so" in summary


def test_verdict_without_records(step, measured) -> None:
    code, summary = step("verdict", "not-there", event=pull_request(measured.head), NEEDS=needs("skipped"))
    assert code == 1
    assert "0 records of NVIDIA Test" in summary


def test_verdict_on_a_hostile_artefact(step, measured, artefact) -> None:
    folder = artefact(("../../evil", b"x"))
    code, summary = step("verdict", str(folder), event=pull_request(measured.head), NEEDS=needs())
    assert code == 1
    assert "expected record.json alone" in summary


def test_verdict_overridden(step, measured, capsys) -> None:
    title = f"Override {measured.head}: for a reason"
    step.api.answers["actions/workflows/perf-override.yml/runs"] = {
        "workflow_runs": [run_of_override(display_title=title)]
    }
    step.api.answers["actions/runs/5/approvals"] = [approval()]
    code, summary = step("verdict", measured(device=1.1), event=pull_request(measured.head), NEEDS=needs("failure"))
    assert code == 0
    assert summary.startswith("## perf-verdict: RED, overridden")
    assert "::warning title=perf-verdict::overridden by maintainer: for a reason" in capsys.readouterr().out


def test_an_annotation_holds_no_command() -> None:
    assert _annotation("a\n::set-output name=x::y\r%0A") == "a ::set-output name=x::y %250A"


def test_override_shows_on_the_commit(step) -> None:
    code, _ = step("override", COMMIT=HEAD, REASON="x" * 300)
    assert code == 0
    ((method, path, fields),) = step.api.written
    assert (method, path) == ("POST", f"statuses/{HEAD}")
    assert (fields["state"], fields["context"]) == ("success", "perf-override")
    assert len(fields["description"]) == 140
    assert fields["target_url"] == f"https://github.example/{REPOSITORY}/actions/runs/5"


def test_an_override_without_a_reason_does_nothing(step, capsys) -> None:
    assert step("override", COMMIT=HEAD, REASON=" ")[0] == 2
    assert step.api.written == []
    assert "--reason" in capsys.readouterr().err


def test_unpack_takes_the_latest(step, artefact) -> None:
    old, new = make_compared(created="2026-11-01T00:00:00+00:00"), make_compared(created="2026-11-02T00:00:00+00:00")
    artefact(("record.json", content_of(new, step.folder)), name="a.zip")
    folder = artefact(("record.json", content_of(old, step.folder)), name="b.zip")
    assert step("unpack", str(folder), "--output", str(step.folder / "out.json"))[0] == 0
    assert results.load(results.Run, step.folder / "out.json") == new


def test_unpack_without_a_record_fails(step) -> None:
    assert step("unpack", "not-there", "--output", "x")[0] == 2


def test_what_can_be_told_is_in_the_summary(step, artefact) -> None:
    folder = artefact(("record.json", content_of(make_compared(), step.folder)))
    _, summary = step("same", str(folder))
    assert "slowdowns from" in summary


def test_outputs_hold_no_line_of_a_stranger(step, repository) -> None:
    """A name with a newline in it adds no output of its own."""
    _, tip, head = repository
    step("plan", "--repository", str(step.folder), "--base", tip, "--head", head)
    assert set(step.outputs()) == {"base", "gpus", "changed"}
    assert os.environ["GITHUB_OUTPUT"].startswith(str(step.folder))
