"""asv's own pages of the same results, with asv-tachyon: every series with every filter, below `asv/`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.site.commits import Commit

# Of asv's own pages, which load scripts from other hosts. asv-tachyon needs none of it.
UNUSED = (
    "index.legacy.html", "error.html", "asv.css", "asv.js", "asv_ui.js", "graphdisplay.js",
    "jquery.flot.axislabels.js", "regressions.css", "regressions.js", "summarygrid.js", "summarylist.css",
    "summarylist.js", "swallow.ico", "swallow.png",
)  # fmt: skip
BACK = '<p style="margin: .5rem 1rem; font: 1rem sans-serif"><a href="../index.html">Back to the dashboard</a></p>'
LONGEST_S = 1800  # that asv may take; for 2,000 commits of 40 series it takes half a minute
KEPT = ("project", "project_url", "hash_length", "regressions_first_commits", "regressions_thresholds")


def publish(
    results: Path,
    repository: Path,
    branch: str,
    config: dict[str, Any],
    link: str,
    commits: Iterable[Commit],
    html: Path,
) -> None:
    """Have asv publish and asv-tachyon install itself into `html`.

    Raises:
        RuntimeError: one of them failed.
    """
    chosen = {name: config[name] for name in KEPT if name in config}
    chosen["show_commit_url"] = link or "#"
    path = results / "asv.conf.json"
    path.write_text(
        json.dumps(
            {
                "version": 1, "project": repository.resolve().name, **chosen, "dvcs": "git",
                "repo": str(repository.resolve()), "branches": [branch], "results_dir": str(results),
                "html_dir": str(html.resolve()), "environment_type": "virtualenv",
            }
        )
    )  # fmt: skip
    _run("asv", "--config", str(path), "publish", "--no-pull")
    _run("asv_tachyon", "install", str(html))
    for name in UNUSED:
        (html / name).unlink(missing_ok=True)
    page = html / "index.html"
    page.write_text(page.read_text().replace("<body>", f"<body>{BACK}", 1))
    subjects = {"by_hash": {one.hash: one.subject for one in commits}}
    wanted: dict[str, Any] = {"commits.json": subjects, "profiles.json": {"paths": {}}, "regressions-ignore.json": []}
    for name, content in wanted.items():
        (html / name).write_text(json.dumps(content))


def _run(module: str, *arguments: str) -> None:
    """In a session of its own: asv's workers outlive asv, and would go on for ever."""
    command = [sys.executable, "-m", module, *arguments]
    told = " ".join(command[1:])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{told} had not ended after {LONGEST_S} s, and was ended") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        raise RuntimeError(f"{told} ended with exit code {process.returncode}:\n{output.strip()}")
