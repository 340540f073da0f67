"""`python -m benchmarks history`: where the history of results bent, for a terminal, a machine, or an issue."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import gate, measure, policy, session, workloads
from benchmarks.history.changes import LEAST_KNOWN, Beside, Change, narrowed, of_every
from benchmarks.history.machine import machine_name, this_machine
from benchmarks.history.points import Point, Series, asv_config, commits_of, is_searched, left_out, read
from benchmarks.history.survey import Survey, survey
from benchmarks.measure import sides

EXAMPLES = """examples:
  python -m benchmarks history                     every change on the checked-out branch, oldest first
  python -m benchmarks history --since HEAD~20     those of the last twenty commits
  python -m benchmarks history --bisect            and measure the commits between, where several may be to blame
  python -m benchmarks history --issue             Markdown for an issue
  python -m benchmarks history --results FOLDER --repository FOLDER    another project's

Exits 0 whether or not it found a change: judging is the gate's.
"""


def add_command(commands: Any, repository: Path, results: Path) -> None:
    """Add `history` to the subcommands of a parser."""
    parser = commands.add_parser(
        "history",
        help="where the history of results bent, and by which commit",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=results, metavar="FOLDER", help="asv's (default .asv/results)")
    parser.add_argument("--repository", type=Path, default=repository, metavar="FOLDER", help="that they are of")
    parser.add_argument("--branch", default="HEAD", metavar="REVISION", help="whose commits count (default HEAD)")
    parser.add_argument("--since", metavar="REVISION", help="only changes after this commit of the branch")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the changes as JSON")
    form.add_argument("--issue", action="store_true", help="print what became worse as Markdown for an issue")
    parser.add_argument(
        "--bisect",
        action="store_true",
        help="where several commits may be to blame, measure those between beside the last good one",
    )
    parser.set_defaults(command=_history)


def _history(options: argparse.Namespace) -> int:
    if not options.results.is_dir():
        raise ValueError(f"--results: expected a folder of asv's results; there is no {options.results}")
    commits = commits_of(options.repository, options.branch)
    surveyed = survey(options.results, commits)
    points = read(options.results, surveyed, commits)
    _warn(surveyed)
    found = bent(points, commits, left_out(asv_config(options.repository, options.results)))
    if options.since is not None:
        (since, *_) = reversed(commits_of(options.repository, options.since))
        if since not in commits:
            raise ValueError(f"--since: expected a commit of {options.branch}; got {options.since}")
        found = [one for one in found if commits.index(one.first) > commits.index(since)]
    not_here = ""
    if options.bisect:
        found, not_here = _bisected(found, commits)
    if options.json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=1))
    elif options.issue:
        print(issue(found) if found else untold(points))
    else:
        print(summary(points, commits, options.branch))
        messages = subjects(options.repository, [one.first for one in found])
        print(told(found, messages) if found else untold(points))
    if not_here:
        raise ValueError(not_here)
    return 0


def _warn(surveyed: Survey) -> None:
    """Of what is left out, each reason once."""
    reasons: dict[str, list[Path]] = {}
    for path, reason in [*surveyed.damaged, *surveyed.faulty]:
        reasons.setdefault(reason, []).append(path)
    for reason, paths in reasons.items():
        others = f", and in {len(paths) - 1} other files" if len(paths) > 1 else ""
        print(f"{paths[0]}: left out, {reason}{others}", file=sys.stderr)
    if surveyed.older:
        print(f"{len(surveyed.older)} of an older format: left out, `asv update` converts them", file=sys.stderr)


def bent(points: dict[Series, list[Point]], commits: Sequence[str], without: Sequence[str] = ()) -> list[Change]:
    """The changes of every series that matches none of the patterns, oldest first."""
    order = {commit: number for number, commit in enumerate(commits)}
    found = [
        change for series, some in of_every(points, commits).items() if is_searched(series, without) for change in some
    ]
    return sorted(
        found, key=lambda one: (order[one.first], one.series.machine, one.series.environment, one.series.name)
    )


def subjects(repository: Path, commits: Iterable[str]) -> dict[str, str]:
    """First lines of commit messages."""
    wanted = list(dict.fromkeys(commits))
    if not wanted:
        return {}
    command = ["git", "-c", "log.showSignature=false", "log", "-z", "--no-walk=unsorted", "--format=%s", *wanted, "--"]
    done = subprocess.run(command, cwd=repository, capture_output=True, check=True)
    return dict(zip(wanted, done.stdout.decode(errors="replace").removesuffix("\0").split("\0"), strict=True))


def summary(points: dict[Series, list[Point]], commits: Sequence[str], branch: str) -> str:
    """How much there is to look at."""
    measured = {point.commit for values in points.values() for point in values if point.value is not None}
    machines = sorted({series.machine for series in points})
    text = f"{len(points)} series on {', '.join(machines) or 'no machine'}; "
    return text + f"{len(measured)} of the {len(commits)} commits of {branch} measured"


def untold(points: dict[Series, list[Point]]) -> str:
    """That there are no changes, as far as that can be told."""
    few = sum(sum(point.value is not None for point in values) < LEAST_KNOWN for values in points.values())
    if few == len(points):
        return f"Too few commits measured to tell: no step shows in fewer than {LEAST_KNOWN}."
    return "No series changed" + (f"; of {few} too few commits were measured to tell." if few else ".")


def told(found: Sequence[Change], messages: dict[str, str]) -> str:
    """The changes for a terminal, by the commit and machine that they are of."""
    lines = []
    for (first, machine, environment), group in itertools.groupby(
        found, key=lambda one: (one.first, one.series.machine, one.series.environment)
    ):
        every = list(group)
        lines.append(f"\n{first[:10]}  {_plain(messages.get(first, ''))}\n  on {machine} {environment}".rstrip())
        lines += [f"    {size(one)}  {_plain(one.series.name)}{_remark(one)}" for one in every]
    return "\n".join(lines).lstrip("\n")


def _plain(text: str) -> str:
    """Nothing that moves a terminal's cursor or turns what follows around."""
    return "".join(one if one.isprintable() else "?" for one in text)


def size(change: Change) -> str:
    """Direction, size and interval."""
    interval = ""
    if math.isfinite(change.high):
        interval = f" [{change.low - 1:+.1%}, {change.high - 1:+.1%}]"
    return f"{'worse' if change.worse else 'better':6} {change.ratio - 1:+.1%}{interval}"


def _remark(change: Change) -> str:
    text = ""
    if change.between:
        text = f"; or by one of the {change.between} commits after {change.last_before[:10]} that were not measured"
    if change.environment:
        text += "; environment: " + environment_of(change)
    if change.beside:
        text += "; " + beside_of(change.beside)
    return text


def beside_of(beside: Beside) -> str:
    """What else may have had a part in a step, in words."""
    commits = "one measured commit" if abs(beside.points) == 1 else f"{abs(beside.points)} measured commits"
    where = f"{commits} {'later' if beside.points > 0 else 'earlier'}"
    return f"part of it may be {_differences(beside.differences)}, {where}"


def environment_of(change: Change) -> str:
    """What else became another, in words."""
    return _differences(change.environment)


def _differences(differences: dict[str, tuple[str, str]]) -> str:
    return ", ".join(f"{name} {old} to {new}" for name, (old, new) in differences.items())


def issue(found: Sequence[Change]) -> str:
    """The Markdown of an issue: what became worse by a commit; then, blamed on none, what came with another
    environment."""
    worse = [one for one in found if one.worse]
    blamed = [one for one in worse if not one.environment]
    coincided = [one for one in worse if one.environment]
    if not worse:
        return "No series became worse."
    lines = []
    if blamed:
        lines += ["### Performance became worse", "", *_table(blamed), ""]
    if coincided:
        lines += ["### Slower since the environment changed", "", "Blamed on no commit:", "", *_table(coincided), ""]
    lines.append("Steps found by `asv.step_detect`; the interval is of the step's size, with 95 % confidence.")
    return "\n".join(lines)


def _table(found: Iterable[Change]) -> list[str]:
    lines = ["| commit | machine | series | change | before | after | environment |", "|---|---|---|--:|--:|--:|---|"]
    for one in found:
        commit = one.first[:10] if not one.between else f"{one.last_before[:10]}..{one.first[:10]}"
        unit = _cell(one.series.unit)
        environment = beside_of(one.beside) if one.beside else environment_of(one)
        cells = [
            commit, _cell(one.series.machine), _cell(one.series.name), size(one).split(maxsplit=1)[1],
            f"{one.before:.4g} {unit}", f"{one.after:.4g} {unit}", _cell(environment),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(text: str) -> str:
    """Names of another's benchmarks are data: no markup, link, mention or end of the cell."""
    kept = re.sub(r"[`|\s]+", " ", text).strip()
    return f"`{kept}`" if re.search(r"[^\w .%,:+-]", kept) else kept


def _bisected(found: Sequence[Change], commits: Sequence[str]) -> tuple[list[Change], str]:
    """The changes, those of fused times with as few commits between as measuring here can tell; and what is wrong where
    all of these are of other machines."""
    asked = [one for one in found if _may_be_bisected(one)]
    if not asked:
        return list(found), ""
    here = machine_name(this_machine())
    elsewhere = Counter(one.series.machine for one in asked if one.series.machine != here)
    if elsewhere.total() == len(asked):
        machines = " or ".join(sorted(elsewhere))
        return list(found), f"--bisect: expected to run on {machines}, which the series are of; this is {here}"
    for machine, count in elsewhere.items():
        print(f"--bisect: {count} series of {machine} left as they are, because this is {here}", file=sys.stderr)
    return [_bisect(one, commits) if one in asked and one.series.machine == here else one for one in found], ""


def _may_be_bisected(change: Change) -> bool:
    asked = change.worse and change.between and not change.environment
    return bool(asked) and change.series.benchmark.endswith(".track_fused_us") and _judged_clock(change)


def _judged_clock(change: Change) -> bool:
    workload, clock = change.series.values
    return workload in workloads.WORKLOADS and any(clock in clocks for clocks in policy.CLOCKS.values())


def _bisect(change: Change, commits: Sequence[str]) -> Change:
    good, bad = narrowed(commits, change.last_before, change.first, _slower_than(change))
    between = commits.index(bad) - commits.index(good) - 1
    return dataclasses.replace(change, last_before=good, first=bad, between=between)


def _slower_than(change: Change) -> Callable[[str], bool | None]:
    """Whether a commit is slower than the last good one by more than half of the change; None where that cannot be
    told."""
    workload, clock = change.series.values
    chosen, _ = workloads.select([workload], gpu=measure.has_gpu())
    half = min((change.ratio - 1) / 2, 0.5)  # of a larger one, less tells the sides apart

    def judge(run: Any) -> gate.Judgement:
        case = session.case_of(run, asked=[workload])
        bounds = {**case.policy.slowdowns[run.environment.device_type], clock: half}
        slowdowns = {**case.policy.slowdowns, run.environment.device_type: bounds}
        case = dataclasses.replace(case, policy=dataclasses.replace(case.policy, slowdowns=slowdowns))
        found = gate.comparison(gate.judge(run, case))
        return dataclasses.replace(found, verdicts=tuple(one for one in found.verdicts if one.clock == clock))

    def is_bad(commit: str) -> bool | None:
        title = f"{commit[:10]} beside {change.last_before[:10]}"
        try:
            with sides.commit(commit) as head, sides.commit(change.last_before) as base:
                run, judgement, _ = session.judged(chosen, judge, title=title, head=head, base=base)
        except (ValueError, RuntimeError) as error:  # it holds no package, or one that does not run
            print(f"{title}: cannot be measured: {error}", file=sys.stderr)
            return None
        wrong = [f"wrong result: {check.detail}" for check in run.checks if not check.passed]
        if wrong or not judgement.verdicts:  # for the gate, wrong results are a regression too
            print(f"{title}: cannot be told: {[*wrong, f'not judged on {clock}'][0]}", file=sys.stderr)
            return None
        (verdict,) = judgement.verdicts
        print(f"{title}: {verdict.status.name}, {verdict.reason}", file=sys.stderr)
        return None if verdict.status is gate.Status.INCONCLUSIVE else verdict.status is gate.Status.REGRESSION

    return is_bad
