"""gpu-history.yml, run by act: main adds points to the branch of results, and runners at once lose none."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from tests.workflows.api import REPOSITORY, Api
from tests.workflows.forge import Done, Forge, edit, git

MACHINE = "nvidia-h100-80gb-hbm3"


def results_of(forge: Forge) -> dict[str, str]:
    """Commits that have results on the branch, each with the file of them."""
    names = git(forge.remote, "ls-tree", "-r", "--name-only", "benchmark-results").splitlines()
    found = {}
    for name in names:
        if name.startswith(f"{MACHINE}/") and name.endswith(".json") and not name.endswith("machine.json"):
            text = git(forge.remote, "show", f"benchmark-results:{name}")
            found[json.loads(text)["commit_hash"]] = text
    return found


def run(forge: Forge, event: dict, api: Api) -> Done:
    return forge.act("gpu-history.yml", "push", event, GITHUB_API_URL=api.url, GITHUB_REPOSITORY=REPOSITORY)


def test_main_pushes_a_point_and_publishes_the_dashboard(forge: Forge, api: Api) -> None:
    api.answers["issues"] = []
    done = run(forge, forge.push(), api)
    assert done.code == 0, done.output[-4000:]
    assert done.jobs == dict.fromkeys(
        ["Plan", "Measure on h100", "Append h100", "Bends and dashboard", "Dashboard"], True
    )
    head = git(forge.main, "rev-parse", "HEAD")
    assert list(results_of(forge)) == [head]
    assert "samples" in results_of(forge)[head]
    assert git(forge.remote, "rev-parse", "main") == head, "the branch of results alone was pushed to"
    page = (done.folder / "artefacts" / "pages" / "index.html").read_text()
    assert "nvidia-h100-80gb-hbm3" in page
    summary = done.summary("publish")
    assert "slowdowns from" in summary, "the smallest that a run like this tells"
    assert api.written == [], "no history has bent"


def test_two_at_once_lose_nothing(forge: Forge, api: Api) -> None:
    api.answers["issues"] = []
    first = forge.push()
    edit(forge.main / "README.md", lambda text: text + "\nA word more.\n")
    forge.commit_to_main("Second")
    second = forge.push()
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda event: run(forge, event, api), [first, second]))
    assert [one.jobs["Append h100"] for one in done] == [True, True], done[0].output[-3000:] + done[1].output[-3000:]
    assert set(results_of(forge)) == {first["after"], second["after"]}
