"""What the workflows' steps decide, with hostile input: records, artefacts, names, texts, and GitHub's answers."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from benchmarks import __main__ as cli
from benchmarks import gate, results, session, verification
from benchmarks.history.changes import Change
from benchmarks.history.points import Series as HistorySeries
from benchmarks.results import State
from benchmarks.service import artefacts, gpus, issues, judge, overrides, text, verdict
from tests.records import GPU, NAME, OTHER, make_baseline, make_compared, make_noise
from tests.workflows.api import REPOSITORY, Api

HEAD, BASE = "a" * 40, "d" * 40
MODEL = gpus.Gpu("test", GPU.device, "gpu-test")
ASKED = verdict.Asked(HEAD, BASE, (MODEL,))
SUCCESS = {"plan": "success", "gpu": "success"}
CASE = gate.Case(baseline=make_baseline(), noise=make_noise(), expected=(NAME,))


def judged(run: results.Run, case: gate.Case = CASE) -> results.Run:
    return verification.with_verdicts(run, case, gate.judge(run, case))


def decide(
    *records: results.Run, jobs: dict[str, str] = SUCCESS, changed: tuple[str, ...] = (), asked: verdict.Asked = ASKED
) -> verdict.Outcome:
    return verdict.decide(asked, jobs, records, changed, lambda run: CASE)


# Green needs everything


def test_green() -> None:
    outcome = decide(judged(make_compared()))
    assert outcome.green
    assert [found.gpu for found in outcome.found] == [MODEL]


@pytest.mark.parametrize("result", ["failure", "cancelled", "skipped", "", "Success"])
def test_a_job_that_ended_otherwise_than_in_success_is_red(result: str) -> None:
    outcome = decide(judged(make_compared()), jobs={**SUCCESS, "gpu": result})
    assert outcome.reasons == (f"gpu: the job ended as {result!r}, not in success",)


def test_no_job_at_all_is_red() -> None:
    assert not decide(judged(make_compared()), jobs={}).green


def test_a_missing_record_is_red_though_the_job_succeeded() -> None:
    assert decide().reasons == ("test: 0 records of NVIDIA Test; expected one",)


def test_every_gpu_model_of_the_list_has_to_have_its_record() -> None:
    other = gpus.Gpu("other", "NVIDIA Other", "gpu-other")
    outcome = decide(judged(make_compared()), asked=dataclasses.replace(ASKED, gpus=(MODEL, other)))
    assert outcome.reasons == ("other: 0 records of NVIDIA Other; expected one",)


def test_two_records_of_a_model_are_red() -> None:
    record = judged(make_compared())
    assert decide(record, record).reasons == ("test: 2 records of NVIDIA Test; expected one",)


def test_a_record_of_another_device_is_red() -> None:
    elsewhere = dataclasses.replace(GPU, device="My GPU")
    outcome = decide(judged(make_compared()), dataclasses.replace(make_compared(), environment=elsewhere))
    assert outcome.reasons == ("a record of My GPU, which is not on the list of GPU models",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"environment": dataclasses.replace(GPU, commit="b" * 40)}, "measured bbbbbbbbbb; expected aaaaaaaaaa"),
        ({"environment": dataclasses.replace(GPU, dirty=True)}, "measured aaaaaaaaaa with uncommitted changes"),
        ({"base": State("c" * 40, False, "x")}, "measured beside cccccccccc; expected the merge base dddddddddd"),
        ({"base": State(BASE, True, "x")}, "measured beside dddddddddd with uncommitted changes"),
    ],
)
def test_a_record_of_another_state_is_red(changes: dict[str, Any], reason: str) -> None:
    outcome = decide(judged(make_compared(**changes)))
    assert [reason in one for one in outcome.reasons] == [True], outcome.reasons


def test_a_regression_is_red_and_names_workload_and_reason() -> None:
    (reason,) = decide(judged(make_compared(device=1.1))).reasons
    assert reason.startswith(f"test: REGRESSION: {NAME} on device_us, slowdown: slower than base by more than 1.0%")


def test_a_regression_of_many_workloads_names_the_first_ones() -> None:
    names = [f"workload-{number}" for number in range(9)]
    verdicts = [
        gate.Verdict(name, clock, "slowdown", gate.Status.REGRESSION, "slow")
        for name in names
        for clock in ("device_us", "call_us")
    ]
    judgement = gate.Judgement((*verdicts, gate.Verdict("fine", "call_us", "speedup", gate.Status.PASS, "")), ())
    also = "also workload-1, workload-2, workload-3 and 5 more"
    assert verdict._worst(judgement) == f"workload-0 on device_us, slowdown: slow; {also} (18 of 19 verdicts)"


def test_doubt_is_red() -> None:
    (reason,) = decide(judged(make_compared(device=1.0095))).reasons
    assert reason.startswith("test: INCONCLUSIVE: ")


def test_a_record_without_verdicts_is_red() -> None:
    (reason,) = decide(make_compared()).reasons
    assert reason == "test: the record cannot be judged: record: it holds no verdicts to verify"


def test_forged_verdicts_are_red() -> None:
    """A regression whose record says PASS: its samples say otherwise, twice."""
    slow, good = judged(make_compared(device=1.1)), judged(make_compared())
    reasons = decide(dataclasses.replace(slow, judged=good.judged)).reasons
    assert any("the record's samples do not give its verdicts" in reason for reason in reasons)
    assert any("REGRESSION" in reason for reason in reasons)


def test_a_looser_judge_in_the_record_counts_for_nothing() -> None:
    """It verifies by its own rules, which are not this checkout's."""
    from benchmarks.policy import Policy

    loose = Policy(slowdowns={"cuda": {"device_us": 0.5, "call_us": 0.5}, "cpu": {"call_us": 0.5}})
    case = gate.Case(policy=loose, baseline=make_baseline(device=1.0, call=1.0), noise=make_noise(), expected=(NAME,))
    reasons = decide(judged(make_compared(device=1.1), case)).reasons
    assert any("judged by another policy than this repository's: slowdowns" in reason for reason in reasons)
    assert any("judged by another baseline" in reason for reason in reasons)
    assert any(reason.startswith("test: REGRESSION") for reason in reasons)


def test_workloads_that_were_left_out_are_red() -> None:
    case = dataclasses.replace(CASE, expected=(NAME, OTHER))
    outcome = verdict.decide(ASKED, SUCCESS, [judged(make_compared(), case)], (), lambda run: case)
    assert any("expected, and not measured" in reason for reason in outcome.reasons)


def test_no_baseline_is_red() -> None:
    def none(run: results.Run) -> gate.Case:
        raise ValueError("baseline: none for NVIDIA Test")

    outcome = verdict.decide(ASKED, SUCCESS, [judged(make_compared())], (), none)
    assert outcome.reasons == ("test: the record cannot be judged: baseline: none for NVIDIA Test",)


def test_a_change_of_the_judge_is_red() -> None:
    outcome = decide(judged(make_compared()), changed=("benchmarks/policy.py",))
    assert [reason.startswith("it changes what it is judged by") for reason in outcome.reasons] == [True]


@pytest.mark.parametrize(
    "path",
    [
        "benchmarks/policy.py", "benchmarks/baselines/noise/x.json", ".github/workflows/ci.yml", ".github/gpus.json",
        ".ci/run", "constraints/gpu.txt", "Dockerfile", ".dockerignore", "Makefile", "pyproject.toml", "asv.conf.json",
        "dllm_kernels/reference.py", "tests/perf/test_gates.py", "Benchmarks/policy.py", "makefile",
    ],
)  # fmt: skip
def test_paths_of_the_judge(path: str) -> None:
    assert judge.of_the_judge(["README.md", path]) == (path,)


def test_paths_that_are_not_the_judges() -> None:
    assert judge.of_the_judge(["dllm_kernels/cpu.py", "tests/test_cpu.py", "docs/kernel.md", "a/Dockerfile", ""]) == ()


# The list of GPU models


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected at least one"),
        ([{"name": "a", "device": "A"}], "runner"),
        ([{"name": "a b", "device": "A", "runner": "r"}], "name"),
        ([{"name": "a", "device": "A", "runner": "r; rm"}], "runner"),
        (
            [{"name": "a", "device": "A", "runner": "r"}, {"name": "b", "device": "A", "runner": "r"}],
            "each device once",
        ),
        ([{"name": "a", "device": "A", "runner": "r", "more": 1}], "more"),
    ],
)
def test_a_wrong_list_of_gpu_models(content: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpus.read(json.dumps(content))


# Artefacts of strangers


@pytest.fixture
def artefact(tmp_path: Path):
    folder = tmp_path / "artefacts"
    folder.mkdir()

    def make(*files: tuple[str | zipfile.ZipInfo, bytes], name: str = "gpu-perf-test.zip") -> Path:
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for file, content in files:
                archive.writestr(file, content)
        return folder

    return make


def content_of(run: results.Run, tmp_path: Path) -> bytes:
    results.save(run, tmp_path / "run.json")
    return (tmp_path / "run.json").read_bytes()


def test_a_record_comes_out_of_its_artefact(artefact, tmp_path: Path) -> None:
    run = make_compared()
    assert artefacts.records(artefact(("record.json", content_of(run, tmp_path)))) == [run]
    assert artefacts.records(tmp_path / "not there") == []


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "it holds nothing"),
        ([("../record.json", b"{}")], "expected record.json alone; it holds '../record.json'"),
        ([("/etc/passwd", b"{}")], "it holds '/etc/passwd'"),
        ([("record.json", b"{}"), ("more.json", b"{}")], "it holds 'record.json', 'more.json'"),
        ([("folder/record.json", b"{}")], "expected record.json alone"),
        ([(link("record.json"), b"/etc/passwd")], "no plain file"),
        ([("record.json", b"{}")], "not a run"),
        ([("record.json", b"\xff\xfe")], "damaged"),
        ([("record.json", b"[" * 200_000)], "artefact 'gpu-perf-test.zip'"),
        ([("record.json", b'{"kind": "run", "version": 4, "seed": NaN}')], "not a complete run"),
    ],
)
def test_hostile_artefacts(artefact, files: list[Any], message: str) -> None:
    with pytest.raises(artefacts.ArtefactError, match=message):
        artefacts.records(artefact(*files))


def test_an_artefact_that_is_too_large(artefact, monkeypatch) -> None:
    monkeypatch.setattr(artefacts, "MOST_BYTES", 1000)
    with pytest.raises(artefacts.ArtefactError, match="100000 bytes; expected at most 1000"):
        artefacts.records(artefact(("record.json", b"0" * 100_000)))


def test_an_artefact_that_is_larger_than_its_table_says(artefact, monkeypatch) -> None:
    folder = artefact(("record.json", b"0" * 100_000))
    path = folder / "gpu-perf-test.zip"
    path.write_bytes(path.read_bytes().replace((100_000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    monkeypatch.setattr(artefacts, "MOST_BYTES", 1000)
    with pytest.raises(artefacts.ArtefactError, match="gpu-perf-test.zip"):
        artefacts.records(folder)


def test_too_many_artefacts_and_what_is_none(artefact, tmp_path: Path) -> None:
    folder = artefact(("record.json", b"{}"))
    (folder / "gpu-perf-test.zip").write_bytes(b"no zip")
    with pytest.raises(artefacts.ArtefactError, match="no zip that can be read"):
        artefacts.records(folder)
    (folder / "gpu-perf-test.zip").unlink()
    (folder / "gpu-perf-test.zip").symlink_to("/etc/passwd")
    with pytest.raises(artefacts.ArtefactError, match="a link"):
        artefacts.records(folder)
    for number in range(artefacts.MOST_ARTEFACTS):
        artefact(("record.json", b"{}"), name=f"{number}.zip")
    with pytest.raises(artefacts.ArtefactError, match="17 artefacts"):
        artefacts.records(folder)


# What is shown


HOSTILE = [
    ("a\n## b", "a ## b".replace("#", f"#{text.JOINER}")),
    ("[x](https://evil)", rf"\[x\](https:{text.JOINER}//evil)"),
    ("<img src=x>", r"\<img src=x\>"),
    ("a|b", r"a\|b"),
    ("`code`", r"\`code\`"),
    ("*b* ~~s~~", r"\*b\* \~\~s\~\~"),
    ("_i_ device_us", r"\_i\_ device_us"),
    ("@maintainer", f"@{text.JOINER}maintainer"),
    ("owner/x#1", f"owner/x#{text.JOINER}1"),
    ("www.evil.org", f"www{text.JOINER}.evil.org"),
    ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
    ("a\u202eb\u200b\x1b[31m", r"ab\[31m"),
    ("$x$", r"\$x\$"),
    (r"\[x]", r"\\\[x\]"),
]


@pytest.mark.parametrize(("given", "shown"), HOSTILE)
def test_texts_of_strangers_are_inert(given: str, shown: str) -> None:
    assert text.inert(given) == shown


def test_a_long_text_is_cut() -> None:
    assert len(text.inert("x" * 10_000)) == text.LONGEST + 1


def test_a_hostile_record_shows_as_text() -> None:
    evil = "x\n\n@all <script> ![a](http://b) | c\n```mermaid"
    run = make_compared(environment=dataclasses.replace(GPU, torch=evil))
    checks = tuple(dataclasses.replace(check, passed=False, detail=evil) for check in run.checks)
    outcome = decide(judged(dataclasses.replace(run, checks=checks)))
    page = text.page(outcome, (evil,), None, HEAD, BASE)
    assert "wrong result" in page
    tokens = [
        one
        for token in MarkdownIt("commonmark").enable("table").parse(page)
        for one in [token, *(token.children or [])]
    ]
    assert not {"image", "link_open", "html_inline", "html_block", "fence", "code_inline"} & {
        one.type for one in tokens
    }
    assert [one.tag for one in tokens if one.type == "heading_open"] == ["h2", "h4", "h3"]
    for alive in ("@all", "http://"):  # what GitHub makes links of, where no markup asks for one
        assert alive not in page


def test_the_page_fits_into_a_comment_whatever_is_in_it() -> None:
    run, long = make_compared(), "x" * 10_000
    one = gate.judge(run, CASE).verdicts[0]
    bad = dataclasses.replace(one, status=gate.Status.REGRESSION, reason=long)
    judgement = gate.Judgement((bad,) * 300, (long,) * 300)
    outcome = verdict.Outcome((long,) * 300, (verdict.Found(MODEL, run, judgement),) * 3)
    page = text.page(outcome, (f"benchmarks/{long}",) * 200, None, HEAD, BASE)
    assert page.startswith("## perf-verdict: RED")
    assert len(page) <= text.MOST_CHARACTERS


def test_workloads_that_nobody_asked_for_are_red_and_not_judged() -> None:
    run = make_compared()
    more = tuple(f"workload-{number}" for number in range(100_000))
    outcome = decide(dataclasses.replace(run, workloads=(*run.workloads, *more)))
    assert [f"{len(more)} workloads that nobody asked for" in reason for reason in outcome.reasons] == [True]


def test_the_picture_has_a_bar_a_workload_and_the_limit() -> None:
    judgement = gate.judge(make_compared(device=1.1), CASE)
    lines = text.chart(judgement.verdicts)
    assert f'  x-axis ["{NAME}"]' in lines
    (bar,) = (line for line in lines if line.startswith("  bar"))
    assert bar == "  bar [10.0]"
    assert lines[-3] == "  line [1.0]"


def test_an_override_is_no_green() -> None:
    outcome = decide(judged(make_compared(device=1.1)))
    page = text.page(outcome, (), overrides.Override("maintainer", "a *reason*", "https://x/5"), HEAD, BASE)
    assert page.startswith("## perf-verdict: RED, overridden for this commit")
    assert r"Overridden by maintainer: a \*reason\* ([run](https://x/5))" in page


# Overrides


def run_of_override(**changes: Any) -> dict[str, Any]:
    return {
        "id": 5, "path": ".github/workflows/perf-override.yml", "event": "workflow_dispatch", "head_branch": "main",
        "conclusion": "success", "display_title": f"Override {HEAD}: for a reason", "html_url": "https://x/5",
        **changes,
    }  # fmt: skip


def approval(**changes: Any) -> dict[str, Any]:
    return {
        "state": "approved",
        "user": {"login": "maintainer"},
        "environments": [{"name": "perf-override"}],
        **changes,
    }


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


# Bends of the history


def change(first: str, machine: str = "h100", ratio: float = 1.1, **more: Any) -> Change:
    series = HistorySeries(machine, "bench.track_fused_us", (NAME, "device_us"), "us", True)
    return Change(series, "c1", first, 10.0, 10.0 * ratio, ratio - 0.01, ratio + 0.01, 0, more.pop("environment", {}))


COMMITS = [f"c{number}" for number in range(20)]


def test_one_issue_a_bend_and_none_again() -> None:
    (issue,) = issues.to_open([change("c5"), change("c5", ratio=1.2)], COMMITS, [])
    assert issue.title == "h100: 2 series worse by up to 20.0% at c5"
    assert issues.to_open([change("c5")], COMMITS, [issue.body]) == []
    assert issues.to_open([change("c6")], COMMITS, [issue.body]) == [], "the same, seen a commit later"
    assert len(issues.to_open([change("c9")], COMMITS, [issue.body])) == 1
    assert len(issues.to_open([change("c5", machine="a100")], COMMITS, [issue.body])) == 1


def test_no_issue_for_what_became_better_or_came_with_another_environment() -> None:
    assert issues.to_open([change("c5", ratio=0.9)], COMMITS, []) == []
    assert issues.to_open([change("c5", environment={"torch": ("2.11", "2.13")})], COMMITS, []) == []


def test_not_more_issues_than_anybody_reads() -> None:
    found = [change(f"c{number}", machine=f"m{number}") for number in range(15)]
    assert len(issues.to_open(found, COMMITS, [])) == issues.MOST


# The steps


@pytest.fixture
def step(tmp_path: Path, monkeypatch):
    """Runs a step's command; its exit code, outputs and summary."""
    with Api() as api:
        monkeypatch.setattr(session, "case_of", lambda run, require_baseline=False, asked=None: CASE)
        monkeypatch.setattr("benchmarks.service.ROOT", tmp_path)
        (tmp_path / ".github").mkdir()
        (tmp_path / gpus.FILE).write_text(json.dumps([dataclasses.asdict(MODEL)]))
        for name, value in {
            "GITHUB_API_URL": api.url, "GITHUB_REPOSITORY": REPOSITORY, "GITHUB_TOKEN": "x", "GITHUB_RUN_ID": "5",
            "GITHUB_SERVER_URL": "https://github.example", "GITHUB_EVENT_PATH": str(tmp_path / "event.json"),
            "GITHUB_OUTPUT": str(tmp_path / "output"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)

        def run(*arguments: str, event: Any = None, **environment: str) -> tuple[int, str]:
            (tmp_path / "event.json").write_text(json.dumps(event))
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            code = cli.main(["service", *arguments])
            summary = tmp_path / "summary"
            return code, summary.read_text() if summary.exists() else ""

        run.api = api
        run.folder = tmp_path
        run.outputs = lambda: dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())
        yield run


@pytest.fixture
def repository(step):
    """A base and a head that left it, as two commits."""

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=T", "-c", "user.email=t@localhost", *arguments]
        return subprocess.run(command, cwd=step.folder, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "--quiet", "--initial-branch=main")
    git("add", ".github")
    git("commit", "--quiet", "--message=base")
    base = git("rev-parse", "HEAD")
    (step.folder / "benchmarks").mkdir()
    (step.folder / "benchmarks" / 'a"b\nc.py').write_text("")
    (step.folder / "README.md").write_text("")
    (step.folder / gpus.FILE).write_text("[]")
    git("add", "benchmarks", "README.md", ".github")
    git("commit", "--quiet", "--message=head")
    head = git("rev-parse", "HEAD")
    git("checkout", "--quiet", "--detach", base)
    git("commit", "--quiet", "--allow-empty", "--message=main moved on")
    return base, git("rev-parse", "HEAD"), head


def test_the_plan(step, repository) -> None:
    base, tip, head = repository
    code, _ = step("plan", "--repository", str(step.folder), "--base", tip, "--head", head)
    outputs = step.outputs()
    assert code == 0
    assert outputs["base"] == base
    assert json.loads(outputs["gpus"]) == [{"name": "test", "runner": "gpu-test"}], "the merge base's list, not head's"
    assert json.loads(outputs["changed"]) == [gpus.FILE, 'benchmarks/a"b\nc.py']


def test_a_plan_without_such_a_commit_fails(step, repository, capsys) -> None:
    assert step("plan", "--repository", str(step.folder), "--base", "f" * 40, "--head", repository[2])[0] == 2
    assert "git merge-base" in capsys.readouterr().err


def pull_request(head: str) -> dict[str, Any]:
    return {
        "pull_request": {"head": {"sha": head}, "user": {"login": "author"}},
        "repository": {"default_branch": "main"},
    }


def needs(gpu: str = "success", changed: list[str] | None = None) -> str:
    plan = {"result": "success", "outputs": {"changed": json.dumps(changed or [])}}
    return json.dumps({"plan": plan, "gpu": {"result": gpu, "outputs": {}}})


@pytest.fixture
def measured(step, repository, artefact):
    """A folder with the artefact of head beside the merge base, which is checked out."""
    base, _, head = repository
    subprocess.run(["git", "checkout", "--quiet", base], cwd=step.folder, check=True)

    def measured(**changes: Any) -> str:
        environment = dataclasses.replace(GPU, commit=head)
        run = judged(make_compared(environment=environment, base=State(base, False, "x"), **changes))
        return str(artefact(("record.json", content_of(run, step.folder))))

    measured.head, measured.base = head, base
    return measured


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


def test_verdict_on_a_change_of_the_judge(step, measured) -> None:
    given = needs(changed=["benchmarks/policy.py"])
    code, summary = step("verdict", measured(), event=pull_request(measured.head), NEEDS=given)
    assert code == 1
    assert "- benchmarks/policy.py" in summary


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
    from benchmarks.service import _annotation

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


# The report


def finished(head: str, **changes: Any) -> dict[str, Any]:
    run = {
        "id": 77, "name": "GPU performance", "head_sha": head, "head_branch": "change", "conclusion": "success",
        "head_repository": {"owner": {"login": "stranger"}}, "html_url": "https://github.example/run/77", **changes,
    }  # fmt: skip
    return {"action": "completed", "workflow_run": run, "repository": {"default_branch": "main"}}


def listed(head: str, number: int = 7, repository: str = REPOSITORY) -> dict[str, Any]:
    return {"number": number, "head": {"sha": head}, "base": {"sha": BASE, "repo": {"full_name": repository}}}


def test_whose_run_it_was_is_known_from_github_alone(step) -> None:
    elsewhere = listed(HEAD, 3, "stranger/dllm-kernels")
    step.api.answers["pulls"] = [listed("b" * 40, 5), elsewhere, listed(HEAD, 9), listed(HEAD, 7)]
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


# History


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
