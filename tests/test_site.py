"""The dashboard without a browser: what it says of histories with something planted in them, of other projects'
results, and of what is missing or damaged. With real repositories, asv and asv-tachyon."""

from __future__ import annotations

import dataclasses
import hashlib
import html.parser
import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from benchmarks import __main__ as cli
from benchmarks import gate, site
from benchmarks.history.points import read
from benchmarks.history.survey import survey
from benchmarks.site import command, explorer
from benchmarks.site.overview import Verdict
from tests.records import make_run, steady
from tests.synthetic_history import MACHINES, Benchmark, History, Step, Updated, make

SPEEDUP = "bench_post_process.track_speedup"
EVIL = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>"
OTHERS = (
    Benchmark("sorting.time_sort", "seconds", 0.0032, {"n": ("10", "1000"), "kind": ("quick", EVIL)}, None, "time"),
    Benchmark("loading.peakmem_load", "bytes", 52e6, {}, None, "peakmemory"),
)  # fmt: skip


class Page(html.parser.HTMLParser):
    """What a browser would make of it: elements with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    def all(self, tag: str, name: str) -> list[str]:
        return [attributes[name] or "" for one, attributes in self.elements if one == tag and name in attributes]


def data_of(site_folder: Path, name: str, machine: str = MACHINES[0]) -> dict:
    """The points of a series, as the page's script gets them."""
    for path in (site_folder / "data" / "series").glob("*.js"):
        found = re.fullmatch(r"dashboard\.series\(\"\w+\", (.*)\);\n", path.read_text())
        assert found, path
        content = json.loads(found[1])
        if content["name"] == name and content["machine"] == machine:
            return content
    raise AssertionError(f"no data of {name}")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[History, Path]:
    """A slowdown by commit 50 of 60 on one machine, another driver at 30 with a step, nothing on another machine;
    results of a commit that is not on the branch; a damaged file."""
    folder = tmp_path_factory.mktemp("planted")
    history = make(
        folder,
        machines=(MACHINES[0], "calm"),
        noise=0.003,
        steps=[Step(50, 1.05, "fused", "h100"), Step(50, 1.05, "speedup", "h100"), Step(30, 1.08, "", "h100")],
        updates=[Updated(30, "driver", "590.11", "h100")],
        failed=[10, 11],
        not_measured={"calm": [58, 59]},
        subjects={50: f"Planted {EVIL}"},
    )
    subprocess.run(
        ["git", "remote", "add", "origin", "git@github.com:someone/project.git"], cwd=history.repository, check=True
    )
    (history.repository / "asv.conf.json").write_text(
        '// as of this repository\n{"project": "kernels", "regressions_first_commits": {".*reference.*": null}}'
    )
    stray = json.loads((history.results / "calm" / f"{history.commits[0][:8]}-shared-py3.json").read_text())
    stray["commit_hash"] = "f" * 40
    (history.results / "calm" / "ffffffff-shared-py3.json").write_text(json.dumps(stray))
    (history.results / "calm" / f"{history.commits[1][:8]}-shared-py3.json").write_text('{"commit_hash": ')
    page = site.build(history.results, history.repository, folder / "site")
    return history, page


def test_the_overview_answers_at_once(planted: tuple[History, Path]) -> None:
    history, path = planted
    page = Page(path)
    assert f"Worse on {MACHINES[0]} since {history.commits[50][:10]}" in page.words.partition("Machines")[0]
    assert "Planted <img src=x" in page.words
    assert f"https://github.com/someone/project/commit/{history.commits[50]}" in page.all("a", "href")
    assert "12.0 %" in page.words or "11.1 %" in page.words, "distance to the limit"


def test_the_chart_has_the_planted_change_at_its_commit(planted: tuple[History, Path]) -> None:
    _, path = planted
    data = data_of(path.parent, "track_speedup(1x32x128000-fp16-100, device_us)")
    assert [(one["place"], one["worse"], bool(one["environment"])) for one in data["changes"]] == [
        (30, True, True), (50, True, False),
    ]  # fmt: skip
    assert data["places"] == list(range(60))
    assert data["values"][10:12] == [None, None], "a gap, not a zero"
    assert data["low"][50] < data["values"][50] < data["high"][50]
    assert [one["place"] for one in data["environments"]] == [30]


def test_where_several_commits_may_be_to_blame_none_is_named_as_the_one(tmp_path: Path) -> None:
    history = make(tmp_path, steps=[Step(55, 1.2, "fused")], not_measured={MACHINES[0]: range(53, 56)})
    page = Page(site.build(history.results, history.repository, tmp_path / "site"))
    good = history.commits[52][:10]
    assert f"Worse on {MACHINES[0]} after {good}" in page.words.partition("Machines")[0]
    assert f"After {good}, track_fused_us" in page.words
    assert f"since {history.commits[56][:10]}" not in page.words.lower()


def test_another_driver_is_named_and_no_commit_blamed_for_its_step(planted: tuple[History, Path]) -> None:
    history, path = planted
    words = Page(path).words
    assert "driver 580.159.04 → 590.11" in words
    assert "Came with driver 580.159.04 → 590.11: no commit is blamed" in words
    before, _, after = words.partition("What else changed")
    assert history.commits[30][:10] in after
    blamed = re.findall(r"(?:worse|better) [+-][\d.]+ %.*?([0-9a-f]{10})", before.partition("Where history bent")[2])
    assert blamed == [history.commits[50][:10]]


def test_a_machine_without_the_latest_commit_says_so(planted: tuple[History, Path]) -> None:
    history, path = planted
    words = Page(path).words
    assert f"Fine up to {history.commits[57][:10]}" in words
    assert f"Measured up to {history.commits[57][:10]}: 2 commits of the branch came since." in words


def test_results_that_are_not_shown_are_counted_and_named(planted: tuple[History, Path]) -> None:
    history, path = planted
    words = Page(path).words.partition("Not shown")[2]
    assert "1 damaged file" in words
    assert f"{history.commits[1][:8]}-shared-py3.json" in words
    assert "Results of 1 commit that is not on HEAD" in words
    assert "ffffffffff not in this repository on calm" in words


def test_what_the_data_say_is_text_and_never_markup(planted: tuple[History, Path]) -> None:
    _, path = planted
    page = Page(path)
    assert not [tag for tag, _ in page.elements if tag in ("img", "b", "iframe")]
    assert page.all("script", "src") == ["assets/vendor/uplot/uPlot.iife.min.js", "assets/site.js"]
    assert sum(tag == "script" for tag, _ in page.elements) == 2, "no script inside the page"
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    for script in (path.parent / "data").rglob("*.js"):
        assert "<" not in script.read_text()
        assert script.read_text().isascii()


def test_the_site_asks_no_other_host(planted: tuple[History, Path]) -> None:
    _, path = planted
    page = Page(path)
    asked = [*page.all("script", "src"), *page.all("link", "href"), *page.all("img", "src")]
    assert asked
    for name in asked:
        assert name == "data:," or (path.parent / name).is_file()
    assert "default-src 'none'" in next(one["content"] or "" for tag, one in page.elements if "http-equiv" in one)
    for file in path.parent.rglob("*.html"):
        for other in [*Page(file).all("script", "src"), *Page(file).all("link", "href")]:
            assert not other.startswith(("http:", "https:", "//")), file


def test_the_explorer_has_what_it_asks_for_and_none_of_asvs_pages(planted: tuple[History, Path]) -> None:
    history, path = planted
    folder = path.parent / "asv"
    assert json.loads((folder / "commits.json").read_text())["by_hash"][history.commits[7]] == "Change number 7"
    for name in ("profiles.json", "regressions-ignore.json", "regressions.json", "index.json", "favicon.svg"):
        json.loads((folder / name).read_text()) if name.endswith("json") else (folder / name).read_bytes()
    left = {one.name for one in folder.iterdir() if one.suffix in (".html", ".js", ".css")}
    assert left == {"index.html"}
    assert "../index.html" in Page(folder / "index.html").all("a", "href"), "a way back"
    graphs = list(folder.rglob(f"{SPEEDUP}.json"))
    assert len([one for one in graphs if "summary" not in str(one)]) == 2, (
        "one of each machine: versions split no curve"
    )


def test_the_vendored_library_is_as_published() -> None:
    folder = Path(site.__file__).parent / "vendor" / "uplot"
    noted = dict(re.findall(r"^\| (\S+) \| ([0-9a-f]{64}) \|$", (folder / "README.md").read_text(), re.MULTILINE))
    assert set(noted) == {"uPlot.iife.min.js", "uPlot.min.css"}
    for name, digest in noted.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert "MIT" in (folder / "LICENSE").read_text()


def test_another_project_is_told_of_in_its_own_terms(tmp_path: Path) -> None:
    history = make(
        tmp_path, commits=40, benchmarks=OTHERS, machines=("runner",), environment={}, steps=[Step(35, 1.2, "sort")]
    )
    words = Page(site.build(history.results, history.repository, tmp_path / "site", branch="main")).words
    assert f"Worse on runner since {history.commits[35][:10]}" in words
    assert re.search(r"sort\s*3\.[789]\d ms", words), "the time stands for the machine, in a unit that fits"
    assert "MiB" in words
    assert "Nothing, as far as the results say: they tell of arch, os." in words
    for term in ("fused", "reference", "by the gate", "GPU", "bandwidth"):
        assert term not in words.partition("How to read this")[0]


def test_of_a_benchmark_that_is_judged_in_part_the_page_says_how_much(tmp_path: Path) -> None:
    history = make(tmp_path, commits=6)
    left_out = {"regressions_first_commits": {".*track_fused_us.*device_us": None, ".*track_speedup": None}}
    (history.repository / "asv.conf.json").write_text(json.dumps(left_out))
    words = Page(site.build(history.results, history.repository, tmp_path / "site")).words
    assert "track_fused_us 8 series, µs, less is better; 4 for reading, not judged" in words
    assert "track_speedup 8 series, x, more is better; for reading, not judged" in words
    assert words.count("for reading, not judged") == 2


def test_an_update_one_commit_beside_a_step_is_told_with_it(tmp_path: Path) -> None:
    history = make(tmp_path, commits=40, noise=0.003, steps=[Step(30, 1.2)], updates=[Updated(29, "driver", "590.11")])
    words = Page(site.build(history.results, history.repository, tmp_path / "site")).words
    assert "Part of it may be driver 580.159.04 → 590.11, one measured commit earlier." in words


def test_what_asv_itself_says_of_machine_and_libraries_takes_the_blame(tmp_path: Path) -> None:
    history = make(
        tmp_path,
        commits=40,
        benchmarks=OTHERS,
        machines=("runner",),
        environment={},
        noise=0.003,
        steps=[Step(30, 1.2)],
    )
    for place, commit in enumerate(history.commits):
        path = history.results / "runner" / f"{commit[:8]}-shared-py3.json"
        content = json.loads(path.read_text())
        content["params"]["os"] = "Linux 6.1" if place >= 30 else "Linux 5.4"
        content["requirements"] = {"numpy": "2.0" if place >= 35 else "1.26"}
        path.write_text(json.dumps(content))
    words = Page(site.build(history.results, history.repository, tmp_path / "site")).words
    assert "Came with os Linux 5.4 → Linux 6.1: no commit is blamed" in words
    assert "numpy 1.26 → 2.0" in words.partition("What else changed")[2]
    assert "The latest commit is fine" in words


def test_an_environment_of_asv_that_follows_another_is_told_and_its_end_is_none_of_the_latest_commit(
    tmp_path: Path,
) -> None:
    """The old one had become slower, and nobody mended it before its name changed."""
    history = make(tmp_path, commits=40, benchmarks=OTHERS[1:], noise=0.003, steps=[Step(20, 1.2), Step(25, 1 / 1.2)])
    for commit in history.commits[25:]:
        path = history.results / MACHINES[0] / f"{commit[:8]}-shared-py3.json"
        content = {**json.loads(path.read_text()), "env_name": "other-py3"}
        path.with_name(path.name.replace("shared", "other")).write_text(json.dumps(content))
        path.unlink()
    words = Page(site.build(history.results, history.repository, tmp_path / "site")).words
    assert f"The latest commit is fine on {MACHINES[0]}" in words
    changed = words.partition("What else changed")[2].partition("All series")[0]
    assert "environment shared-py3 → other-py3" in changed
    assert history.commits[25][:10] in changed
    assert "ended" in words.partition("All series")[2]


def test_two_environments_of_asv_are_two_series(tmp_path: Path) -> None:
    history = make(tmp_path, commits=6, benchmarks=OTHERS[1:], machines=("runner",))
    for path in list((history.results / "runner").glob("*-shared-py3.json")):
        content = {**json.loads(path.read_text()), "env_name": "other-py3"}
        path.with_name(path.name.replace("shared", "other")).write_text(json.dumps(content))
    page = Page(site.build(history.results, history.repository, tmp_path / "site"))
    assert len(page.all("option", "value")) == 2
    assert "peakmem_load other-py3" in page.words


def test_without_results_the_page_says_what_to_do(tmp_path: Path) -> None:
    history = make(tmp_path, commits=3)
    words = Page(site.build(tmp_path / "nothing", history.repository, tmp_path / "site")).words
    assert "No commit of this branch was measured yet" in words
    assert "No history yet" in words
    assert "make bench" in words


def test_results_of_another_branch_alone_are_no_history_and_the_page_says_why(tmp_path: Path) -> None:
    history = make(tmp_path / "one", commits=3)
    other = make(tmp_path / "two", commits=3, subjects={0: "another beginning"})
    words = Page(site.build(history.results, other.repository, tmp_path / "site")).words
    assert "results of 3 commits" in words
    assert "none of them is on HEAD" in words
    assert "--unshallow" in words


@pytest.mark.parametrize(
    ("commits", "told"),
    [(1, "No step can be told from 1 measured commit."), (4, "from 4 measured commits."), (5, "No series changed")],
)
def test_a_few_points_are_too_early_to_tell(tmp_path: Path, commits: int, told: str) -> None:
    history = make(tmp_path, commits=commits, benchmarks=OTHERS[1:])
    words = Page(site.build(history.results, history.repository, tmp_path / "site")).words
    assert (f"Too early to tell on {MACHINES[0]}" in words) is (commits < 5)
    assert told in words
    assert ("No series changed" in words) is (commits == 5)


def test_few_points_of_each_of_two_machines_are_too_few(tmp_path: Path) -> None:
    history = make(tmp_path, commits=8, machines=("m1", "m2"), not_measured={"m1": range(4), "m2": range(4, 8)})
    words = Page(site.build(history.results, history.repository, tmp_path / "site")).words
    assert "8 of 8 commits" in words
    assert "No step can be told from 4 measured commits." in words


# What the command line does


def test_the_command_builds_from_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    history = make(tmp_path, commits=6)
    bundle = tmp_path / "history.zip"
    with zipfile.ZipFile(bundle, "w") as archive:
        for path in history.results.rglob("*.json"):
            archive.write(path, Path("results") / path.relative_to(history.results))
    output = tmp_path / "site"
    arguments = ["--results", str(bundle), "--repository", str(history.repository), "--output", str(output)]
    assert cli.main(["dashboard", *arguments]) == 0
    assert "6 of 6 commits" in Page(output / "index.html").words
    told = capsys.readouterr().out
    assert str(output / "index.html") in told
    assert "http.server" in told


def test_before_anything_was_measured_the_demonstration_is_shown_and_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = make(tmp_path, commits=6)
    evidence = history.repository / "benchmarks" / "evidence"
    evidence.mkdir(parents=True)
    monkeypatch.setattr(command, "EVIDENCE", evidence)
    shutil.make_archive(str(evidence / "history-some-gpu"), "zip", history.results)
    words = Page(command.build(tmp_path / "site", history.repository)).words
    assert "A demonstration" in words
    assert "benchmarks/evidence/history-some-gpu.zip" in words
    assert "6 of 6 commits" in words

    shutil.copytree(history.results, history.repository / ".asv" / "results")
    assert "A demonstration" not in Page(command.build(tmp_path / "site", history.repository)).words


@pytest.mark.parametrize("damage", ["no zip", "no results", "no folder", "an empty folder", "no results yet"])
def test_results_that_cannot_be_used_exit_2_and_are_named(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture
) -> None:
    given = tmp_path / "given.zip"
    if damage == "no zip":
        given.write_text("PK")
    elif damage == "no results":
        with zipfile.ZipFile(given, "w") as archive:
            archive.writestr("readme.txt", "")
    elif damage == "an empty folder":
        given.mkdir()
    elif damage == "no results yet":  # what asv writes before it measures
        with zipfile.ZipFile(given, "w") as archive:
            archive.writestr("results/benchmarks.json", '{"version": 2}')
            archive.writestr("results/somewhere/machine.json", "{}")
    assert cli.main(["dashboard", "--results", str(given), "--output", str(tmp_path / "site")]) == 2
    assert str(given) in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    history = make(tmp_path, commits=2)
    arguments = ["--results", str(history.results), "--repository", str(history.repository)]
    assert cli.main(["dashboard", *arguments, "--output", str(history.repository)]) == 2
    assert "holds .git" in capsys.readouterr().err
    assert (history.repository / "version.txt").exists()
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(["dashboard", *arguments, "--output", str(tmp_path / "notes.txt")]) == 2
    assert "notes.txt is a file" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_unknown_branch_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    history = make(tmp_path, commits=2)
    arguments = ["--results", str(history.results), "--repository", str(history.repository), "--branch", "nope"]
    assert cli.main(["dashboard", *arguments, "--output", str(tmp_path / "site")]) == 2
    assert "nope" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


def test_a_judged_record_of_the_latest_commit_counts(tmp_path: Path) -> None:
    history = make(tmp_path, commits=8, noise=0.003)
    environment = dataclasses.replace(make_run(steady()).environment, commit=history.commits[-1])
    run = make_run(steady(device=1.0), environment)
    judgement = gate.judge(run, gate.Case())
    assert judgement.status is gate.Status.REGRESSION
    verdict = Verdict(MACHINES[0], run, judgement)
    page = site.build(history.results, history.repository, tmp_path / "site", verdict=verdict)
    words = Page(page).words
    assert f"Worse on {MACHINES[0]}" in words
    assert f"The gate judged {history.commits[-1][:10]}: REGRESSION." in words
    assert "verdict.html" in Page(page).all("a", "href")
    assert 'href="index.html"' in (page.parent / "verdict.html").read_text()

    older = dataclasses.replace(run, environment=dataclasses.replace(environment, commit=history.commits[0]))
    page = site.build(
        history.results, history.repository, tmp_path / "site", verdict=dataclasses.replace(verdict, run=older)
    )
    assert f"The latest commit is fine on {MACHINES[0]}" in Page(page).words, "an older commit's verdict is not its"


# Parts


def machine_file(folder: Path, content: object) -> None:
    (folder / "m").mkdir(parents=True)
    (folder / "benchmarks.json").write_text('{"version": 2, "b": {"version": "1"}, "c": {"version": "1"}}')
    (folder / "m" / "machine.json").write_text(json.dumps(content))


def result(**changes: object) -> dict:
    content = {
        "commit_hash": "a" * 40, "env_name": "e", "date": 1, "python": "3", "requirements": {}, "version": 2,
        "params": {"machine": "m"}, "result_columns": ["result", "params"],
        "results": {"b": [[1.0, 2.0], [["1", "2"]]]},
    }  # fmt: skip
    return {**content, **changes}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "expected a JSON object"),
        ("{", "Expecting"),
        pytest.param("[" * 100_000, "nested too deeply", id="deep"),
        (json.dumps(result(version=3)), "format 2"),
        (json.dumps(result(commit_hash=None)), "commit_hash"),
        (json.dumps(result(params={"machine": "other"})), "is of other"),
        (json.dumps(result(requirements=["numpy"])), "requirements"),
        (json.dumps(result(result_columns=["params"])), "no result"),
        (json.dumps(result(result_columns=["result", "params", "colour"])), "colour"),
    ],
)
def test_a_damaged_file_is_named_with_its_reason_and_the_rest_is_sound(
    tmp_path: Path, content: str, reason: str
) -> None:
    machine_file(tmp_path, {"machine": "m", "version": 1})
    (tmp_path / "m" / "good.json").write_text(json.dumps(result()))
    (tmp_path / "m" / "bad.json").write_text(content)
    found = survey(tmp_path, ["a" * 40])
    assert found.sound == {"e": [tmp_path / "m" / "good.json"]}
    ((path, why),) = found.damaged
    assert path == tmp_path / "m" / "bad.json"
    assert reason in why


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([[1.0], [["1", "2"]]], "expected 2 values of result"),
        (7, "columns"),
        ([], "expected a result"),
        ([[1.0]], "expected lists of parameters"),
        ([[1.0], None], "expected lists of parameters"),
        ([[1.0, 2.0], [[1, None]]], "in words"),
        (None, "columns"),
        ([["n/a", 2.0], [["1", "2"]]], "expected numbers as result"),
        ([[True, 2.0], [["1", "2"]]], "expected numbers as result"),
        ([[10**400, 2.0], [["1", "2"]]], "expected numbers as result"),
    ],
)
def test_of_a_benchmark_that_cannot_be_read_the_rest_of_its_file_is_shown(
    tmp_path: Path, row: object, reason: str
) -> None:
    machine_file(tmp_path, {"machine": "m", "version": 1})
    path = tmp_path / "m" / "some.json"
    path.write_text(json.dumps(result(results={"b": row, "c": [[3.0], []]}, requirements=None)))
    found = survey(tmp_path, ["a" * 40])
    assert found.damaged == []
    ((of, why),) = found.faulty
    assert found.outdated == set()
    assert of == path
    assert why.startswith("b: ")
    assert reason in why
    points = read(tmp_path, found, ["a" * 40])
    assert [(one.benchmark, values[0].value) for one, values in points.items()] == [("c", 3.0)]


def test_files_of_an_older_format_are_not_called_damaged(tmp_path: Path) -> None:
    history = make(tmp_path, commits=3, benchmarks=OTHERS[1:])
    for path in history.results.glob(f"*/{history.commits[0][:8]}*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "version": 1}))
    words = Page(site.build(history.results, history.repository, tmp_path / "site")).words
    assert "1 file of an older format, which asv update converts" in words
    assert "damaged" not in words


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 1.7e308])
def test_values_in_which_asv_would_search_for_ever_are_gaps(tmp_path: Path, value: float) -> None:
    history = make(tmp_path, commits=30, benchmarks=OTHERS[1:])
    for number, commit in enumerate(history.commits[10:16]):
        path = history.results / MACHINES[0] / f"{commit[:8]}-shared-py3.json"
        content = json.loads(path.read_text())
        content["results"]["loading.peakmem_load"][0] = [value * (-1) ** (number // 2)]
        path.write_text(json.dumps(content))
    page = site.build(history.results, history.repository, tmp_path / "site")
    assert data_of(page.parent, "peakmem_load")["values"][9:17].count(None) == 6


def test_asv_that_does_not_end_is_ended_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = make(tmp_path, commits=2, benchmarks=OTHERS[1:])
    stuck = tmp_path / "asv.py"
    stuck.write_text(
        "import subprocess, time; child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid)); time.sleep(600)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(explorer, "LONGEST_S", 2)
    with pytest.raises(RuntimeError, match="had not ended after 2 s"):
        site.build(history.results, history.repository, tmp_path / "site")
    state = subprocess.run(
        ["ps", "-o", "stat=", (tmp_path / "child").read_text()], capture_output=True, text=True, check=False
    ).stdout
    assert state.strip() in ("", "Z")


@pytest.mark.parametrize("content", ["{", "[" * 100_000], ids=["half", "deep"])
def test_a_file_beside_a_result_that_is_damaged_is_named_too(tmp_path: Path, content: str) -> None:
    machine_file(tmp_path, {"machine": "m"})
    (tmp_path / "m" / "good.json").write_text(json.dumps(result()))
    (tmp_path / "m" / "good.environment").write_text(content)
    found = survey(tmp_path, ["a" * 40])
    assert not found.sound
    assert [path.name for path, _ in found.damaged] == ["good.json"]
    assert "good.environment" in found.damaged[0][1]


@pytest.mark.parametrize("content", [{"machine": "another"}, []])
def test_a_damaged_machine_is_named(tmp_path: Path, content: object) -> None:
    machine_file(tmp_path, content)
    (tmp_path / "m" / "good.json").write_text(json.dumps(result()))
    found = survey(tmp_path, ["a" * 40])
    assert not found.sound
    assert [path.name for path, _ in found.damaged] == ["machine.json"]


@pytest.mark.parametrize("content", ["{", None, '{"version": 1}'])
def test_a_damaged_or_missing_list_of_benchmarks_is_an_error_that_names_it(tmp_path: Path, content: str | None) -> None:
    machine_file(tmp_path, {"machine": "m"})
    (tmp_path / "benchmarks.json").unlink()
    if content:
        (tmp_path / "benchmarks.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "benchmarks.json"))):
        survey(tmp_path, [])
    assert survey(tmp_path / "m", []).sound == {}, "an empty folder is no error"


def test_a_benchmark_that_failed_as_a_whole_or_is_no_more_is_no_fault_and_is_not_searched(tmp_path: Path) -> None:
    history = make(tmp_path, commits=8, benchmarks=OTHERS)
    for number, commit in enumerate(history.commits):
        path = history.results / MACHINES[0] / f"{commit[:8]}-shared-py3.json"
        content = json.loads(path.read_text())
        content["results"]["sorting.time_sort"][0] = None if number == 3 else content["results"]["sorting.time_sort"][0]
        content["results"]["old.time_gone"] = [[0.5 + number], []]
        path.write_text(json.dumps(content))
    page = site.build(history.results, history.repository, tmp_path / "site")
    assert data_of(page.parent, "time_sort(10, quick)")["values"][3] is None
    with pytest.raises(AssertionError, match="no data of time_gone"):
        data_of(page.parent, "time_gone")
    assert "no more in it, of old.time_gone." in Page(page).words
    assert "Not shown" not in Page(page).words


def test_parameters_that_differ_by_their_quotes_are_two_series_and_numbers_have_names(tmp_path: Path) -> None:
    machine_file(tmp_path, {"machine": "m", "version": 1})
    about = {"version": "1", "param_names": ["x", "kind"]}
    (tmp_path / "benchmarks.json").write_text(json.dumps({"version": 2, "a.b": about}))
    content = result(results={"a.b": [[1.0, 50.0], [["1", "'1'"], ["'quick'"]]]})
    (tmp_path / "m" / "some.json").write_text(json.dumps(content))
    points = read(tmp_path, survey(tmp_path, ["a" * 40]), ["a" * 40])
    assert {one.name: values[0].value for one, values in points.items()} == {"b(x=1, quick)": 1.0, "b(1, quick)": 50.0}


@pytest.mark.parametrize("version", ["2", None])
def test_an_edited_benchmark_is_blamed_on_no_commit(tmp_path: Path, version: str | None) -> None:
    """asv counts an edited benchmark's version up; what an old asv stored has none, and belongs to every version."""
    history = make(tmp_path, commits=40, benchmarks=OTHERS[1:], noise=0.003, steps=[Step(30, 2.0)])
    for commit in history.commits[30:]:
        path = history.results / MACHINES[0] / f"{commit[:8]}-shared-py3.json"
        content = json.loads(path.read_text())
        content["results"]["loading.peakmem_load"][2] = version
        path.write_text(json.dumps(content))
    about = json.loads((history.results / "benchmarks.json").read_text())
    about["loading.peakmem_load"]["version"] = version or "1"
    (history.results / "benchmarks.json").write_text(json.dumps(about))
    page = site.build(history.results, history.repository, tmp_path / "site")
    data = data_of(page.parent, "peakmem_load")
    assert [one["place"] for one in data["changes"]] == ([] if version else [30])
    assert data["places"] == list(range(30 if version else 0, 40))
