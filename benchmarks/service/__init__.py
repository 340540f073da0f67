"""What the workflows in `.github/workflows` call: `python -m benchmarks service --help`.

Each command is one step. What it decides is decided in the modules beside this one, which are pure; here is what comes
from, and goes to, files, git, GitHub and the environment of a step.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import subprocess
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import gate, results, session
from benchmarks.history.command import bent
from benchmarks.history.points import asv_config, commits_of, left_out, read
from benchmarks.history.survey import survey
from benchmarks.results import Run
from benchmarks.service import artefacts, gpus, issues, overrides, text, verdict
from benchmarks.service.github import GitHub
from benchmarks.service.judge import of_the_judge

ROOT = Path(__file__).resolve().parents[2]
BOT = "github-actions[bot]"  # who speaks with a workflow's token
MOST_COMPARED = 300  # files that GitHub tells of two commits
MOST_ISSUES = 100  # one page; a label with more needs tidying up
POINTERS = ("120000", "160000")  # git's modes of a link and a submodule, whose names say nothing of what is there
MOST_OUTPUT = 200  # paths that are handed from job to job
MOST_LISTED, MOST_PAGES = 100, 30  # what GitHub lists on a page, and pages of it that are read
BASE_CHANGES = ("base_ref_changed", "automatic_base_change_succeeded")  # events of a pull request
BASE_MARGIN, TIMES = datetime.timedelta(hours=1), "%Y-%m-%dT%H:%M:%SZ"
VERDICT_WORKFLOW = ".github/workflows/gpu-perf.yml"


def add_command(commands: Any) -> None:
    """Add `service` to the subcommands of a parser."""
    parser = commands.add_parser("service", help="the steps of the workflows that watch over pull requests")
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, help: str, command: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = actions.add_parser(name, help=help, description=command.__doc__)
        added.set_defaults(command=command)
        return added

    plan = action("plan", "what a pull request is measured beside, on which GPUs", _plan)
    plan.add_argument("--repository", type=Path, default=ROOT, metavar="FOLDER", help="a clone that has both commits")
    plan.add_argument("--base", required=True, metavar="COMMIT", help="of the branch that it is to be merged into")
    plan.add_argument("--head", required=True, metavar="COMMIT")
    action("gpus", "the list of GPU models, for a matrix", _gpus)
    decide = action("verdict", "green or red, from the jobs' outcomes and the records they left", _verdict)
    action("whose", "which pull request a run was for", _whose)
    report = action("report", "judge a finished run's records again, and say so on its pull request", _report)
    for one in (decide, report):
        one.add_argument("artefacts", type=Path, metavar="FOLDER", help="the artefacts of the GPU jobs, not unpacked")
    action("override", "take on a red verdict, for one commit", _override)
    unpack = action("unpack", "take the latest record out of artefacts", _unpack)
    same = action("same", "show what a commit beside itself says of the noise", _same)
    for one in (unpack, same):
        one.add_argument("artefacts", type=Path, metavar="FOLDER", help="the artefacts, not unpacked")
    unpack.add_argument("--output", type=Path, default=ROOT / ".bench" / "latest.json", metavar="FILE")
    bends = action("issues", "open an issue for each bend in the history that has none", _issues)
    bends.add_argument("--results", type=Path, default=ROOT / ".asv" / "results", metavar="FOLDER")


def _plan(options: argparse.Namespace) -> int:
    """Writes `base` (the merge base), `gpus` (its list) and `changed` (paths of the judge) to the step's outputs."""
    base = _git(options.repository, "merge-base", options.base, options.head).strip()
    listed = gpus.read(_git(options.repository, "show", f"{base}:{gpus.FILE}"))
    told = _git(options.repository, "diff", "--raw", "--no-renames", "-z", base, options.head).split("\0")
    modes = {path: about.split()[1] for about, path in zip(told[::2], told[1::2], strict=False)}  # a last end is left
    pointers = {path for path, mode in modes.items() if mode in POINTERS}
    changed = tuple(sorted({*of_the_judge(modes), *pointers}))
    _output(base=base, gpus=_matrix(listed), changed=json.dumps(changed[:MOST_OUTPUT]))
    print(f"{options.head[:10]} beside {base[:10]} on {', '.join(gpu.name for gpu in listed)}")
    return 0


def _gpus(_: argparse.Namespace) -> int:
    """Writes `gpus` to the step's outputs."""
    listed = gpus.read((ROOT / gpus.FILE).read_text())
    _output(gpus=_matrix(listed))
    print(", ".join(gpu.name for gpu in listed))
    return 0


def _matrix(listed: Iterable[gpus.Gpu]) -> str:
    return json.dumps([{"name": gpu.name, "runner": gpu.runner} for gpu in listed])


def _verdict(options: argparse.Namespace) -> int:
    """Reads NEEDS, what the jobs before ended in, and the event; the checkout is the merge base. Exits 0 for green or
    overridden, 1 for red."""
    event = _event()
    head, author = event["pull_request"]["head"]["sha"], event["pull_request"]["user"]["login"]
    needs = json.loads(os.environ["NEEDS"])
    plan = needs.get("plan", {"result": "missing"})
    outputs = {name: plan.get("outputs", {}).get(name) for name in ("base", "changed", "gpus")}
    changed = json.loads(outputs["changed"] or "[]")
    jobs = {name: str(job["result"]) for name, job in needs.items()}
    base = _git(ROOT, "rev-parse", "HEAD").strip()
    asked = verdict.Asked(head, base, gpus.read((ROOT / gpus.FILE).read_text()))
    outcome = _decide(options.artefacts, asked, jobs, changed, int(os.environ["GITHUB_RUN_ATTEMPT"]))
    if lost := [name for name, value in outputs.items() if not value]:
        # As GitHub drops one that holds what the log was told to mask: a commit's subject can tell it so.
        reason = f"plan: it left no {', '.join(lost)}, so what was measured, and by what, is not known"
        outcome = dataclasses.replace(outcome, reasons=(reason, *outcome.reasons))
    override = None
    if not outcome.green:
        override = _override_of(head, author, event["repository"]["default_branch"])
    _summary(text.page(outcome, changed, override, head, base))
    print(text.headline(outcome, override))
    for reason in outcome.reasons:
        print(f"::{'error' if override is None else 'warning'} title=perf-verdict::{_annotation(reason)}")
    if override is not None:
        print(f"::warning title=perf-verdict::{_annotation(f'overridden by {override.by}: {override.reason}')}")
    return 0 if outcome.green or override is not None else 1


def _decide(
    folder: Path, asked: verdict.Asked, jobs: dict[str, str], changed: Sequence[str], attempt: int
) -> verdict.Outcome:
    try:
        records = artefacts.records(folder)
    except artefacts.ArtefactError as error:
        return verdict.Outcome((str(error),), ())
    outcome = verdict.decide(asked, jobs, records, changed, _case)
    if attempt <= verdict.MOST_ATTEMPTS:
        return outcome
    most = verdict.MOST_ATTEMPTS
    reason = f"attempt {attempt} of this run: who tries often enough passes, so after {most} a maintainer decides"
    return dataclasses.replace(outcome, reasons=(*outcome.reasons, reason))


def _case(run: Run) -> Any:
    return session.case_of(run, require_baseline=True)


def _override_of(head: str, author: str, default_branch: str) -> overrides.Override | None:
    """None too where GitHub cannot be asked: then it stays red, and the log says why."""
    try:
        github = GitHub.of_environment()
        listed = github.get(
            f"actions/workflows/{overrides.WORKFLOW}/runs",
            event="workflow_dispatch", branch=default_branch, status="success", per_page=100,
        )  # fmt: skip
        found = overrides.find(
            head,
            author,
            default_branch,
            listed["workflow_runs"],
            lambda run: github.get(f"actions/runs/{run}/approvals"),
        )
        if found is None:
            print(f"No override of this commit was approved by anybody but {author}, whose pull request it is.")
        return found
    except (ValueError, RuntimeError, KeyError) as error:
        print(f"No override could be looked up: {error}")
        return None


def _override(_: argparse.Namespace) -> int:
    """Reads COMMIT and REASON. A status shows it on the commit; this run's name and approval are what counts."""
    commit, reason = os.environ["COMMIT"], os.environ["REASON"]
    overrides.title(commit, reason)
    server, repository, run_id = (os.environ[f"GITHUB_{name}"] for name in ("SERVER_URL", "REPOSITORY", "RUN_ID"))
    description = f"Overridden: {reason}"
    if len(description) > overrides.LONGEST_STATUS:
        description = description[: overrides.LONGEST_STATUS - 1] + "…"
    GitHub.of_environment().post(
        f"statuses/{commit}",
        state="success", context=overrides.STATUS, description=description,
        target_url=f"{server}/{repository}/actions/runs/{run_id}",
    )  # fmt: skip
    _summary(f"Overridden: {commit}\n\n{text.inert(reason)}\n")
    print("Noted. Now run the job perf-verdict of that commit again: Re-run jobs, perf-verdict.")
    return 0


def _whose(_: argparse.Namespace) -> int:
    """Which pull request into the default branch the event's run was for, from the event and GitHub alone. Writes
    `number` and `base` (the merge base) to the step's outputs, empty where its head has moved on, or where the run may
    be another pull request's; until a report, its status is pending."""
    event = _event()
    run, default_branch = event["workflow_run"], event["repository"]["default_branch"]
    github = GitHub.of_environment()
    head = f"{run['head_repository']['owner']['login']}:{run['head_branch']}"
    of_branch = [
        one
        for one in github.get("pulls", state="all", head=head, per_page=MOST_LISTED)
        if one["base"]["repo"]["full_name"] == github.repository
    ]
    matching = [
        one
        for one in of_branch
        if (one["state"], one["base"]["ref"], one["head"]["sha"]) == ("open", default_branch, run["head_sha"])
    ]
    if not matching:
        _output(number="", base="")
        print(f"No open pull request has {run['head_sha'][:10]} as its head any more.")
        return 0
    found = matching[0]  # GitHub lets a branch have one open pull request into another
    _state(github, run, "pending", "waiting for the GPU jobs and the report on them")
    if doubt := _doubt(github, run, found, of_branch):
        _state(github, run, "pending", doubt)
        _output(number="", base="")
        print(f"Pull request {found['number']} gets no report: {doubt}")
        return 0
    compared = github.get(f"compare/{default_branch}...{run['head_sha']}")
    _output(number=str(found["number"]), base=compared["merge_base_commit"]["sha"])
    print(f"Pull request {found['number']}")
    return 0


def _doubt(github: GitHub, run: dict[str, Any], found: dict[str, Any], of_branch: Sequence[dict[str, Any]]) -> str:
    """Why the run may not be that of the pull request that was found; empty where it is. A pull request into a branch
    of one's own runs that branch's workflows, which may be made to succeed, on the same commit."""
    began = run["created_at"]
    if run["path"] != VERDICT_WORKFLOW and not str(run["path"]).startswith(f"{VERDICT_WORKFLOW}@refs/"):
        return f"its run is of another file than {VERDICT_WORKFLOW}"
    if len(of_branch) >= MOST_LISTED:
        return "its branch has more pull requests than can be looked at: take another branch"
    # GitHub makes a run some time after the push, of the pull requests and bases that there were then.
    since = (datetime.datetime.fromisoformat(began.replace("Z", "+00:00")) - BASE_MARGIN).strftime(TIMES)
    # Whatever their heads and bases are now: a branch can be pushed back, and a pull request moved.
    others = [int(one["number"]) for one in of_branch if one is not found and _was_open(one, since, began)]
    if others:
        return (
            f"its branch had another pull request, {others[0]}, in the hour before its run: close that, push in an hour"
        )
    numbers = [int(one["number"]) for one in run["pull_requests"]]  # none, of a fork
    if numbers and found["number"] not in numbers:
        return f"its run is of pull request {numbers[0]}"
    if found["created_at"] > began:
        return "it was opened after its run began: push, or close and open it again"
    for page in range(1, MOST_PAGES + 1):
        events = github.get(f"issues/{found['number']}/events", per_page=MOST_LISTED, page=page)
        if any(one["event"] in BASE_CHANGES and one["created_at"] >= since for one in events):
            return "it was into another branch not long before its run began: push in an hour"
        if len(events) < MOST_LISTED:
            return ""
    return "more has happened to it than can be looked at"


def _was_open(pull_request: dict[str, Any], since: str, until: str) -> bool:
    """At some time between the two."""
    closed = pull_request["closed_at"]
    return bool(pull_request["created_at"] <= until and (closed is None or closed >= since))


def _report(options: argparse.Namespace) -> int:
    """Judges the finished run's records once more, by this checkout, which is the merge base and no pull request's: the
    one comment on pull request NUMBER is made or written anew, and the head's status set."""
    event = _event()
    run, github, number = event["workflow_run"], GitHub.of_environment(), int(os.environ["NUMBER"])
    base = _git(ROOT, "rev-parse", "HEAD").strip()
    files = github.get(f"compare/{base}...{run['head_sha']}")["files"]
    names = {one for file in files for one in (file["filename"], file.get("previous_filename")) if one}
    changed = tuple(sorted({*of_the_judge(names), *_pointers(github, run["head_sha"], names)}))
    if len(files) >= MOST_COMPARED:
        changed += (f"({MOST_COMPARED} files and more: what lies beyond them cannot be told)",)
    asked = verdict.Asked(run["head_sha"], base, gpus.read((ROOT / gpus.FILE).read_text()))
    jobs = {run["name"]: str(run["conclusion"])}
    outcome = _decide(options.artefacts, asked, jobs, changed, int(run["run_attempt"]))
    override = None
    if not outcome.green:
        author = github.get(f"pulls/{number}")["user"]["login"]
        override = _override_of(run["head_sha"], author, event["repository"]["default_branch"])
    page = text.page(outcome, changed, override, run["head_sha"], base)
    body = f"{text.MARKER}\n{page}\n[Run {int(run['id'])}]({run['html_url']}), with the raw samples of every figure."
    path = f"issues/{number}/comments"
    own = next((one for page in range(1, 11) for one in github.get(path, per_page=100, page=page) if _ours(one)), None)
    if own is None:
        github.post(path, body=body)
    else:
        github.patch(f"issues/comments/{own['id']}", body=body)
    fine = outcome.green or override is not None
    _state(github, run, "success" if fine else "failure", text.headline(outcome, override))
    print(f"Pull request {number}: {text.headline(outcome, override)}; the comment is {'renewed' if own else 'new'}.")
    return 0


def _pointers(github: GitHub, commit: str, names: Collection[str]) -> tuple[str, ...]:
    """Those of the names that are links or submodules in that commit, as `_plan` has them from git."""
    tree = github.get(f"git/trees/{commit}", recursive=1)
    found = [one["path"] for one in tree["tree"] if one["mode"] in POINTERS and one["path"] in names]
    return (*found, "(a tree too large to be looked through)") if tree["truncated"] else tuple(found)


def _state(github: GitHub, run: dict[str, Any], state: str, description: str) -> None:
    """A status of the name of the job that decides: where a job and a status share a required name, both are required,
    and this one no pull request can set."""
    github.post(
        f"statuses/{run['head_sha']}",
        state=state, context=verdict.CHECK, description=description, target_url=run["html_url"],
    )  # fmt: skip


def _ours(comment: dict[str, Any]) -> bool:
    return bool(comment["user"]["login"] == BOT and comment["body"].startswith(text.MARKER))


def _unpack(options: argparse.Namespace) -> int:
    """Checked as a stranger's, though they are our own."""
    found = artefacts.records(options.artefacts)
    if not found:
        raise ValueError(f"{options.artefacts}: expected an artefact with a record; there is none")
    latest = max(found, key=lambda run: datetime.datetime.fromisoformat(run.created))
    results.save(latest, options.output)
    print(f"{options.output}: of {len(found)} records the latest, of {latest.environment.device}")
    return 0


def _same(options: argparse.Namespace) -> int:
    """The summary has, for each workload, the smallest slowdown that a run like this would tell."""
    for run in artefacts.records(options.artefacts):
        _summary(text.section(gate.judge(run, session.case_of(run)), run))
    return 0


def _issues(options: argparse.Namespace) -> int:
    """Reads the results of the branch that is checked out; earlier issues are told by label and author."""
    commits = commits_of(ROOT)
    points = read(options.results, survey(options.results, commits), commits)
    found = bent(points, commits, left_out(asv_config(ROOT, options.results)))
    github = GitHub.of_environment()
    before = github.get("issues", labels=issues.LABEL, creator=BOT, state="all", per_page=MOST_ISSUES)
    for issue in issues.to_open(found, commits, [one["body"] or "" for one in before]):
        github.post("issues", title=issue.title, body=issue.body, labels=[issues.LABEL])
        print(f"Opened: {issue.title}")
    print(f"{len(found)} changes in {len(points)} series.")
    return 0


def _event() -> Any:
    return json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text())


def _output(**values: str) -> None:
    """To the step's outputs; on standard output where there is no step."""
    lines = "".join(f"{name}={value}\n" for name, value in values.items())
    if path := os.environ.get("GITHUB_OUTPUT"):
        with open(path, "a") as file:
            file.write(lines)
    else:
        print(lines, end="")


def _summary(markdown: str) -> None:
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(path, "a") as file:
            file.write(markdown)
    else:
        print(markdown)


def _annotation(message: str) -> str:
    """One line that no workflow command can hide in."""
    return " ".join(message.split()).replace("%", "%25")


def _git(repository: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=repository, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"git {' '.join(arguments[:3])} failed: {done.stderr.strip()}")
    return done.stdout
