"""History: what asv stores is what was judged, and what must not enter does not. With asv itself, in a repository of
its own whose package is a stand-in: nothing is measured here."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest

from benchmarks import bench_post_process, gate, history, results
from benchmarks.history import machine
from benchmarks.history.machine import machine_name
from benchmarks.history.points import read
from benchmarks.history.survey import survey
from benchmarks.results import Check, Environment, Run, Series
from benchmarks.site import command as dashboard
from benchmarks.site.overview import Verdict

ROOT = Path(__file__).parent.parent
WORKLOAD, OTHER = "1x32x128000-fp16-100", "1x32x157184-bf16-100"
FURTHER = "32x32x157184-bf16-100"  # asv takes a process for every series, of one workload like of all
FUSED, REFERENCE = (10.0, 11.0, 12.5), (40.0, 41.0, 40.5)


def make_run(commit: str | None, *, dirty: bool = False, fused: tuple[float, ...] = FUSED) -> Run:
    environment = Environment(
        device="Some CPU @ 2.0GHz", device_type="cpu", device_hash=None, cpu_cores=2, python="3.11.7",
        torch="2.13.0", triton=None, cuda=None, driver=None, commit=commit, dirty=dirty,
    )  # fmt: skip
    return Run(
        created="2026-01-01T00:00:00+00:00", command="python -m benchmarks bench", seconds=20.0, seed=0,
        environment=environment, base=None, files={"head": "__init__.py"}, workloads=(WORKLOAD,), skipped=(),
        clock_methods={"call_us": "host clock"}, checks=(Check(WORKLOAD, 0, True, ""),), blocks=(), counts={},
        series=(Series(WORKLOAD, "call_us", 0, "fused", "reference", fused, REFERENCE, True),),
    )  # fmt: skip


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with today's measuring side, of few workloads, and an empty package, at a detached HEAD."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "benchmarks" / "workloads.py").open("a") as file:
        file.write(f"\nWORKLOADS = {{name: WORKLOADS[name] for name in (*QUICK, {FURTHER!r})}}\n")
    for name in ("asv.conf.json", "pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    (folder / "dllm_kernels").mkdir()
    (folder / "dllm_kernels" / "__init__.py").write_text('__version__ = "0"\n')
    git(folder, "init", "--quiet", "--initial-branch", "topic")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    git(folder, "checkout", "--quiet", "--detach")
    return folder


@pytest.fixture
def here(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`history` at work in the checkout; asv's list of machines is not the user's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # under which nothing is compiled
    monkeypatch.setattr(history, "ROOT", checkout)
    monkeypatch.setattr(history, "RESULTS", checkout / ".asv" / "results")
    return checkout


def record_and_publish(folder: Path, run: Run) -> Path:
    record = folder / ".bench" / "latest.json"
    results.save(run, record)
    history.record(record, run)
    verdict = Verdict(machine_name(run.environment), run, gate.judge(run, gate.Case()))
    return dashboard.build(folder / ".bench" / "dashboard", folder, verdict=verdict)


def stored_medians(folder: Path, commit: str, series: str) -> list[float]:
    (path,) = (folder / ".asv" / "results").glob(f"*/{commit[:8]}-*.json")
    medians = json.loads(path.read_text())["results"][f"bench_post_process.Quick.{series}"][0]
    return [value for value in medians if isinstance(value, float) and not math.isnan(value)]


def test_asv_stores_what_was_judged_and_a_repetition_replaces_it(here: Path, capsys: pytest.CaptureFixture) -> None:
    commit = git(here, "rev-parse", "HEAD")
    page = record_and_publish(here, make_run(commit))
    assert "added" in capsys.readouterr().out
    assert stored_medians(here, commit, "track_fused_us") == [statistics.median(FUSED)]
    assert stored_medians(here, commit, "track_reference_us") == [statistics.median(REFERENCE)]
    relative = [fused / reference for fused, reference in zip(FUSED, REFERENCE, strict=True)]
    assert stored_medians(here, commit, "track_relative") == pytest.approx([statistics.median(relative)], rel=1e-4)

    assert 'href="asv/index.html"' in page.read_text()
    index = json.loads((page.parent / "asv" / "index.json").read_text())
    assert list(index["machines"]) == ["some-cpu-2-0ghz-2-cores"]
    graphs = [
        path for path in (page.parent / "asv" / "graphs").rglob("*track_fused_us.json") if "summary" not in str(path)
    ]
    assert graphs, "a detached HEAD is published too"

    updated = dataclasses.replace(make_run(commit).environment, torch="2.14.0")
    record_and_publish(here, dataclasses.replace(make_run(commit, fused=(20.0, 21.0, 22.0)), environment=updated))
    assert stored_medians(here, commit, "track_fused_us") == [21.0]
    points = read(history.RESULTS, survey(history.RESULTS, [commit]), [commit])
    (series,) = {one for one in points if one.benchmark.endswith("Quick.track_fused_us")
                 and one.values == (WORKLOAD, "call_us")}  # fmt: skip
    (point,) = points[series]
    assert point.environment["torch"] == "2.14.0", "what it was measured with the second time"
    assert (series.machine, series.unit, series.less_is_better) == ("some-cpu-2-0ghz-2-cores", "µs", True)


def test_a_record_of_some_workloads_leaves_those_of_others_unless_other_versions_measured_them(
    here: Path, capsys: pytest.CaptureFixture
) -> None:
    """Versions are noted for a commit's whole result, so that it holds what was measured with the same alone."""
    git(here, "commit", "--quiet", "--allow-empty", "--message", "measured twice")
    run = make_run(git(here, "rev-parse", "HEAD"))
    commit = str(run.environment.commit)

    def add(workload: str, median: float, **versions: str) -> None:
        one = dataclasses.replace(run.series[0], workload=workload, us=(median,) * 3)
        some = dataclasses.replace(
            run, workloads=(workload,), series=(one,), checks=(Check(workload, 0, True, ""),),
            environment=dataclasses.replace(run.environment, **versions),
        )  # fmt: skip
        results.save(some, here / "record.json")
        assert history.record(here / "record.json", some)

    add(WORKLOAD, 10.0)
    add(OTHER, 20.0)
    assert stored_medians(here, commit, "track_fused_us") == [10.0, 20.0]
    add(WORKLOAD, 30.0)
    assert stored_medians(here, commit, "track_fused_us") == [30.0, 20.0]
    assert "replaced" not in capsys.readouterr().out
    add(OTHER, 40.0, torch="2.14.0")
    assert stored_medians(here, commit, "track_fused_us") == [40.0]
    assert "is replaced as a whole, because it was measured otherwise: torch 2.13.0" in capsys.readouterr().out
    add(WORKLOAD, 50.0, torch="2.14.0", image="sha256:1")
    assert stored_medians(here, commit, "track_fused_us") == [50.0]
    assert "measured otherwise: no image" in capsys.readouterr().out
    add(OTHER, 60.0, torch="2.14.0")
    assert "measured otherwise: image sha256:1" in capsys.readouterr().out
    add(WORKLOAD, 70.0, torch="2.14.0")  # the image is noted no more
    assert stored_medians(here, commit, "track_fused_us") == [70.0, 60.0]


@pytest.mark.parametrize(("commit", "dirty"), [("0" * 40, True), (None, True)])
def test_uncommitted_changes_enter_no_history(
    here: Path, commit: str | None, dirty: bool, capsys: pytest.CaptureFixture
) -> None:
    before = sorted((here / ".asv").rglob("results/*/*.json"))
    page = record_and_publish(here, make_run(commit, dirty=dirty))
    assert page.exists()
    assert "not added" in capsys.readouterr().out
    assert sorted((here / ".asv").rglob("results/*/*.json")) == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"checks": (Check(WORKLOAD, 0, False, "3 ids differ"),)}, "results were wrong"),
        ({"series": ()}, "there are no samples of fused beside the reference"),
    ],
)
def test_a_run_without_right_results_or_samples_enters_no_history_and_is_shown(
    here: Path, changes: dict[str, tuple[Check, ...]], reason: str, capsys: pytest.CaptureFixture
) -> None:
    before = sorted((here / ".asv").rglob("results/*/*.json"))
    run = dataclasses.replace(make_run(git(here, "rev-parse", "HEAD")), **changes)
    assert record_and_publish(here, run).exists()
    assert f"not added, because {reason}" in capsys.readouterr().out
    assert sorted((here / ".asv").rglob("results/*/*.json")) == before


def test_a_result_that_asv_did_not_save_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git(here, "rev-parse", "HEAD")
    monkeypatch.setattr(history, "_asv", lambda *arguments, record=None: None)
    with pytest.raises(RuntimeError, match="saved no result"):
        record_and_publish(here, make_run(commit))


def test_a_series_that_asv_did_not_save_is_an_error(here: Path) -> None:
    run = make_run(git(here, "rev-parse", "HEAD"))
    record = here / "record.json"
    results.save(run, record)
    other = dataclasses.replace(run.series[0], workload="1x32x157184-bf16-100")
    more = dataclasses.replace(run, series=(*run.series, other))
    with pytest.raises(RuntimeError, match=r"without .*1x32x157184-bf16-100"):
        history.add(record, more, str(run.environment.commit))


def test_a_workload_that_is_registered_no_more_is_left_out_and_named(here: Path, capsys: pytest.CaptureFixture) -> None:
    run = make_run(git(here, "rev-parse", "HEAD"))
    gone = dataclasses.replace(run.series[0], workload="7x7x70-fp16-100")
    more = dataclasses.replace(run, workloads=(*run.workloads, gone.workload), series=(*run.series, gone))
    results.save(more, here / "record.json")
    assert history.record(here / "record.json", more)
    assert "Without 7x7x70-fp16-100, which is registered no more." in capsys.readouterr().out
    assert stored_medians(here, str(run.environment.commit), "track_fused_us") == [statistics.median(FUSED)]


@pytest.mark.parametrize(("of", "dirty"), [("1" * 40, False), ("2" * 40, True)])
def test_the_suite_takes_no_record_of_another_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str, dirty: bool
) -> None:
    results.save(make_run(of, dirty=dirty), tmp_path / "record.json")
    monkeypatch.setenv(bench_post_process.RECORD, str(tmp_path / "record.json"))
    monkeypatch.setenv("ASV_COMMIT", "2" * 40)
    with pytest.raises(results.RecordError, match="asv asks for 2222"):
        bench_post_process.Quick().setup_cache()


def test_the_suite_takes_no_times_of_wrong_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = dataclasses.replace(make_run("2" * 40), checks=(Check(WORKLOAD, 0, False, "3 ids differ"),))
    results.save(run, tmp_path / "record.json")
    monkeypatch.setenv(bench_post_process.RECORD, str(tmp_path / "record.json"))
    monkeypatch.setenv("ASV_COMMIT", "2" * 40)
    monkeypatch.setenv("ASV_ENV_NAME", "shared-py3")
    monkeypatch.setattr(history, "RESULTS", tmp_path / "results")
    suite = bench_post_process.Quick()
    with pytest.raises(NotImplementedError, match="3 ids differ"):
        suite.setup(suite.setup_cache(), WORKLOAD, "call_us")


@pytest.mark.parametrize("recorded", [False, True])
def test_what_compiled_is_noted_where_no_record_says_what_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    here = dataclasses.replace(make_run("2" * 40).environment, python="3.12.9", triton="3.9.0")
    monkeypatch.setattr(machine, "this_machine", lambda: here)
    monkeypatch.setattr(machine, "expect_registered", lambda environment: None)
    monkeypatch.setattr(bench_post_process.codegen, "figures", lambda *_: {"plain": {"registers": 40}})
    monkeypatch.setattr(history, "RESULTS", tmp_path)
    monkeypatch.setenv("ASV_COMMIT", "2" * 40)
    monkeypatch.setenv("ASV_ENV_NAME", "shared-py3")
    monkeypatch.delenv(bench_post_process.RECORD, raising=False)
    if recorded:
        monkeypatch.setenv(bench_post_process.RECORD, "record.json")
    assert bench_post_process.Compiled().setup_cache() == {"plain": {"registers": 40}}
    told = machine.noted(tmp_path / machine_name(here) / "22222222-shared-py3.json")
    assert told == ({} if recorded else {"python": "3.12.9", "triton": "3.9.0"})
