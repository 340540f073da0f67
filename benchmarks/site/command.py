"""`python -m benchmarks dashboard`: build the site from what there is, and say where it lies."""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import gate, results, session, site
from benchmarks.history.machine import machine_name
from benchmarks.site.overview import Verdict

EVIDENCE = Path(__file__).resolve().parent.parent / "evidence"
EXAMPLES = """examples:
  python -m benchmarks dashboard                       from .asv/results, or else the demonstration in the repository
  python -m benchmarks dashboard run.json              with the verdict on that record beside it
  python -m benchmarks dashboard --results ../numpy/results --repository ../numpy --branch main --output numpy-site
"""


def add_command(commands: Any, repository: Path, output: Path) -> None:
    """Add `dashboard` to the subcommands of a parser.

    Args:
        repository: whose results are shown if no other is named.
        output: where records and the site are written if nothing else is said.
    """
    parser = commands.add_parser(
        "dashboard",
        help="build the site: is the latest commit fine, where history bent, every series",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    latest = output / "latest.json"
    parser.add_argument("record", type=Path, nargs="?", help="whose verdict is shown too (default: the latest)")
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="of asv, any project's, or a .zip of one (default .asv/results)"
    )
    parser.add_argument("--repository", type=Path, default=repository, metavar="FOLDER", help="that they are of")
    parser.add_argument("--branch", default="HEAD", metavar="REV", help="whose commits are shown (default HEAD)")
    parser.add_argument("--output", type=Path, default=output / "dashboard", metavar="FOLDER", help="of the site")
    parser.set_defaults(command=lambda options: _dashboard(options, repository, latest))


def _dashboard(options: argparse.Namespace, own: Path, latest: Path) -> int:
    record = options.record
    if record is None and options.repository == own and latest.exists():
        record = latest
    verdict = None
    if record is not None:
        run = results.load(results.Run, record)
        judgement = gate.judge(run, session.case_of(run, asked=run.workloads))
        verdict = Verdict(machine_name(run.environment), run, judgement)
    print_where(build(options.output, options.repository, options.results, options.branch, verdict))
    return 0


def build(
    output: Path,
    repository: Path,
    given: Path | None = None,
    branch: str = "HEAD",
    verdict: Verdict | None = None,
) -> Path:
    """The site under a progress bar; the path of its first page.

    Args:
        given: results, or a bundle of them (default: those of the repository, or else its demonstration).

    Raises:
        ValueError: what was given holds no results; and as `site.build`.
        RuntimeError: as `site.build`.
    """
    with ExitStack() as stack:
        source, remark = given or repository / ".asv" / "results", ""
        bundle = next(iter(sorted(EVIDENCE.glob("history-*.zip"))), None)
        if given is None and repository == EVIDENCE.parent.parent and bundle and not any(source.glob("*/*-*.json")):
            source = bundle
            remark = "A demonstration: nothing was measured here yet. These results came with the repository"
            remark += f", in {bundle.relative_to(repository)}."
        if source.is_file():
            source = _unpacked(source, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        elif given is not None and not given.is_dir():
            raise ValueError(f"--results: expected a folder of asv's results, or a .zip of one; got {given}")
        if given is not None and not any(source.glob("*/*-*.json")):
            raise ValueError(f"--results: expected asv's results, MACHINE/COMMIT-ENVIRONMENT.json; {given} holds none")
        step = stack.enter_context(session.progress("Dashboard", site.STEPS))
        return site.build(source, repository, output, branch=branch, verdict=verdict, remark=remark, step=step)


def print_where(page: Path) -> None:
    print(f"Dashboard: {page}")
    print("Open it in a browser; asv's explorer, which it links to, needs a web server:")
    print(f"  python3 -m http.server --bind 127.0.0.1 --directory {page.parent}    and http://localhost:8000")


def _unpacked(bundle: Path, folder: Path) -> Path:
    """The folder with `benchmarks.json` of a bundle.

    Raises:
        ValueError: it is no .zip, or holds no asv results.
    """
    try:
        with zipfile.ZipFile(bundle) as archive:
            archive.extractall(folder)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{bundle}: damaged, {error}; expected a .zip of asv's results") from error
    found = min(folder.rglob("benchmarks.json"), key=lambda path: len(path.parts), default=None)
    if found is None:
        raise ValueError(f"{bundle}: expected asv's results; there is no benchmarks.json in it")
    return found.parent
