"""The dashboard: an overview of the history on one page, the gate's last verdict, and asv's pages as the explorer.

`build` takes asv's results, any project's, and a repository; what it writes needs no network and opens from a folder.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import whole
from benchmarks.history import changes, points
from benchmarks.history.survey import Survey, sound_content, survey
from benchmarks.site import commits, explorer
from benchmarks.site.curves import RECENT, Curve
from benchmarks.site.overview import Verdict
from benchmarks.site.page import Page

NOISE = Path(__file__).parent.parent / "baselines" / "noise"
PARTS = {"index.html", "verdict.html", "assets", "data", "asv"}  # of a site
STEPS = 5  # that `build` tells of


def build(
    source: Path,
    repository: Path,
    output: Path,
    *,
    branch: str = "HEAD",
    verdict: Verdict | None = None,
    noise: Path = NOISE,
    remark: str = "",
    step: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write the site into `output`, in place of an earlier one; the path of its first page.

    Args:
        source: asv's results; where there are none, the page says so.
        repository: that the results are of; commits count as they lie on `branch`.
        verdict: a judged record, for `verdict.html`.
        noise: folder of what is known of machines' noise, by machine.
        remark: what the page should say of where the results come from.
        step: is told what begins, `STEPS` times.

    Raises:
        ValueError: there is no such revision, `output` holds something else than a site, or a file that all others
            depend on is damaged. Other damaged files are listed on the page.
        RuntimeError: asv failed.
    """
    _refuse_what_is_no_site(output)
    step("reading commits")
    order = points.commits_of(repository, branch)
    known = commits.described(repository, branch)
    history = [known[one] for one in order]
    config = points.asv_config(repository, source)
    step("reading results")
    found = survey(source, order) if source.is_dir() else Survey()
    series = points.read(source, found, order)
    step("looking for changes")
    curves = _curves(series, order, config)
    with tempfile.TemporaryDirectory() as folder:
        step("asv's pages")
        part = Path(folder, "site")
        link = commits.link_prefix(repository, config)
        part.mkdir()
        if found.sound:
            everything = _staged(
                source, [path for paths in found.sound.values() for path in paths], Path(folder, "all")
            )
            explorer.publish(everything, repository, branch, config, link, history, part / "asv")
        step("writing the overview")
        page = Page(
            project=str(config.get("project") or repository.resolve().name),
            branch=branch,
            commits=history,
            curves=curves,
            survey=found,
            strays=commits.described_strays(repository, found.strays),
            link=link,
            noise=noise,
            verdict=verdict,
            explorer=bool(found.sound),
            remark=remark,
        )
        page.write(part, source)
        with whole.folder(output) as new:
            shutil.copytree(part, new, dirs_exist_ok=True)
    return output / "index.html"


def _refuse_what_is_no_site(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output: expected a new folder or an earlier site, which is replaced; {output} is a file")
    others = sorted({path.name for path in output.iterdir()} - PARTS) if output.is_dir() else []
    if others:
        raise ValueError(
            f"--output: expected a new folder or an earlier site, which is replaced; {output} holds {others[0]}"
        )


def _staged(source: Path, paths: Iterable[Path], folder: Path) -> Path:
    """What can be read of these results, and what they need, in a folder of their own: asv reads whatever lies in one,
    and takes it for what it wrote."""
    folder.mkdir()
    shutil.copy(source / "benchmarks.json", folder)
    for path in paths:
        machine = folder / path.parent.name
        if not machine.exists():
            machine.mkdir()
            shutil.copy(path.parent / "machine.json", machine)
        content, as_written = sound_content(path)
        if as_written:
            (machine / path.name).symlink_to(path.resolve())
        else:
            (machine / path.name).write_text(json.dumps(content))
    return folder


def _curves(
    series: dict[points.Series, list[points.Point]], order: Sequence[str], config: dict[str, Any]
) -> list[Curve]:
    ignored = points.left_out(config)
    measured: dict[str, set[str]] = {}
    for one, known in series.items():
        measured.setdefault(one.machine, set()).update(point.commit for point in known if point.value is not None)
    near = {
        machine: frozenset([commit for commit in order if commit in some][-RECENT:])
        for machine, some in measured.items()
    }
    found = changes.of_every(series, order)
    curves = []
    names = sorted({one.benchmark for one in series})
    ordered = sorted(series.items(), key=lambda item: (names.index(item[0].benchmark), item[0].machine))
    for number, (one, known) in enumerate(ordered):
        judged = points.is_searched(one, ignored)
        curves.append(Curve(f"s{number}", one, known, found[one], judged, near[one.machine]))
    return curves
