"""Where history bent: `python -m benchmarks history`.

Reads asv's results, any project's, in the order of the commits, and has asv's own step detection (`asv.step_detect`,
piecewise constant with an L1 penalty) name the commits from which on a series took another value. A step that comes
with another driver, PyTorch or Triton is the environment's and blamed on no commit.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.history.points import Point, Series, commits_of, read

LEAST = 0.01  # smaller steps are not told
ERROR = 0.05  # of the interval of a step's size
# What a step costs, in standard deviations of a point. asv's own choice of it misses a clean 5 % among 60 points of 1 %
# noise in 8 of 100 histories, this one in 1, and tells of no step in 300 without one (`tests/test_changes.py`).
PENALTY = 10
# Commits that a step has to show in: one alone may be a disturbed measurement.
LEAST_POINTS = 2
# Standard deviations within which a point may belong to either side of a step.
EITHER_SIDE = 3


@dataclass(frozen=True)
class Change:
    """From `first` on a series took another value than up to `last_before`."""

    series: Series
    last_before: str
    first: str
    before: float
    after: float
    low: float  # of after / before, with its interval
    high: float
    between: int  # commits after `last_before` and before `first` that have no point
    environment: dict[str, tuple[str, str]]  # what else became another at the same step, before and after

    @property
    def ratio(self) -> float:
        return self.after / self.before

    @property
    def worse(self) -> bool:
        return (self.after > self.before) is self.series.less_is_better


def changes(series: Series, points: Sequence[Point], commits: Sequence[str]) -> list[Change]:
    """The steps of one series, oldest first; on logarithms, because times differ by shares."""
    known = [point for point in points if point.value is not None and point.value > 0]
    if len(known) <= LEAST_POINTS:
        return []
    logs = [math.log(point.value or math.nan) for point in known]
    segments = _segments(logs)
    centres = [statistics.median(logs[left:right]) for left, right in segments]
    deviation = _deviation(logs, segments, centres)
    order = {commit: number for number, commit in enumerate(commits)}
    found = []
    for (left, right), before, after in zip(itertools.pairwise(segments), centres, centres[1:], strict=False):
        if abs(math.expm1(after - before)) < LEAST:
            continue
        reach = deviation * _reach(left, right, len(logs) - len(segments))
        last, first = known[left[1] - 1], known[right[0]]
        found.append(
            Change(
                series,
                last.commit,
                first.commit,
                math.exp(before),
                math.exp(after),
                math.exp(after - before - reach),
                math.exp(after - before + reach),
                order[first.commit] - order[last.commit] - 1,
                _environment_at(known, logs, right[0], (before, after), deviation),
            )
        )
    return found


def _segments(logs: Sequence[float]) -> list[tuple[int, int]]:
    """Between steps: the first index of each, and the one after its last."""
    from asv.step_detect import solve_potts_approx

    jumps = [abs(after - before) for before, after in itertools.pairwise(logs)]
    noise = 1.4826 * statistics.median(jumps) / math.sqrt(2)  # of a point, if it were normal: steps hardly change it
    if noise == 0:
        noise = 1e-9
    ends, *_ = solve_potts_approx(logs, [1.0] * len(logs), gamma=PENALTY * noise, min_size=LEAST_POINTS)
    return list(itertools.pairwise([0, *ends]))


def _deviation(logs: Sequence[float], segments: Sequence[tuple[int, int]], centres: Sequence[float]) -> float:
    """Standard deviation of the points about their segments' middles; inf where nothing is left to tell it by."""
    freedom = len(logs) - len(segments)
    squares = sum(
        (logs[index] - centre) ** 2
        for (left, right), centre in zip(segments, centres, strict=True)
        for index in range(left, right)
    )
    return math.sqrt(squares / freedom) if freedom > 0 else math.inf


def _reach(before: tuple[int, int], after: tuple[int, int], freedom: int) -> float:
    """Half of the interval of the difference of two segments' medians, in standard deviations of a point.

    A median of n has pi / 2 times the variance of a mean, from three on.
    """
    from scipy import stats

    lengths = [right - left for left, right in (before, after)]
    share = sum((math.pi / 2 if length > 2 else 1.0) / length for length in lengths)
    return float(stats.t.ppf(1 - ERROR / 2, freedom)) * math.sqrt(share)


def _environment_at(
    known: Sequence[Point], logs: Sequence[float], step: int, levels: tuple[float, float], deviation: float
) -> dict[str, tuple[str, str]]:
    """What else became another at a step before the point `step`; or a point earlier or later, where that point may
    as well belong to the step's other side."""
    before, after = levels
    places = [step]
    if step > 1 and abs(logs[step - 1] - after) < EITHER_SIDE * deviation:
        places.append(step - 1)
    if step + 1 < len(known) and abs(logs[step] - before) < EITHER_SIDE * deviation:
        places.append(step + 1)
    for place in places:
        old, new = known[place - 1].environment, known[place].environment
        if differences := {name: (old[name], new[name]) for name in old if name in new and old[name] != new[name]}:
            return differences
    return {}


def culprit(commits: Sequence[str], good: str, bad: str, is_bad: Callable[[str], bool]) -> str:
    """The first bad commit after `good` and up to `bad`, by halves: each question measures one commit beside `good`."""
    low, high = commits.index(good), commits.index(bad)
    while high - low > 1:
        middle = (low + high) // 2
        if is_bad(commits[middle]):
            high = middle
        else:
            low = middle
    return commits[high]


def line(change: Change) -> str:
    """One change, for a terminal."""
    where = f"at {change.first[:10]}"
    if change.between:
        where = f"between {change.last_before[:10]} and {change.first[:10]} ({change.between} commits not measured)"
    return f"{_size(change)}  {change.series.machine}  {change.series.name}  {where}{_of_the_environment(change)}"


def _size(change: Change) -> str:
    interval = ""
    if math.isfinite(change.high):
        interval = f" [{change.low - 1:+.1%}, {change.high - 1:+.1%}]"
    return f"{'worse' if change.worse else 'better':6} {change.ratio - 1:+.1%}{interval}"


def _of_the_environment(change: Change) -> str:
    if not change.environment:
        return ""
    return "; environment: " + ", ".join(f"{name} {old} to {new}" for name, (old, new) in change.environment.items())


def issue(found: Sequence[Change]) -> str:
    """The Markdown of an issue: what became worse by a commit, then what came with another environment."""
    blamed = [one for one in found if one.worse and not one.environment]
    lines = ["### Performance became worse", ""] if blamed else ["### Performance changed with the environment", ""]
    lines += ["| commit | machine | series | change | before | after |", "|---|---|---|--:|--:|--:|"]
    for one in blamed or [one for one in found if one.environment]:
        commit = one.first[:10] if not one.between else f"{one.last_before[:10]}..{one.first[:10]}"
        unit = f" {one.series.unit}".rstrip()
        lines.append(
            f"| {commit} | {one.series.machine} | `{one.series.name}` | {_size(one).split(maxsplit=1)[1]} "
            f"| {one.before:.4g}{unit} | {one.after:.4g}{unit} |"
        )
    coincided = [one for one in found if one.environment]
    if blamed and coincided:
        lines += ["", "Not blamed on a commit, because the environment changed at the same step:", ""]
        lines += [f"- {line(one)}" for one in coincided]
    lines += ["", "Steps by `asv.step_detect`; the interval is of the step's size, with 95 % confidence."]
    return "\n".join(lines)


def add_command(commands: Any, repository: Path, results: Path) -> None:
    """Add `history` to the subcommands of a parser."""
    parser = commands.add_parser("history", help="where the history of results bent, and by which commit")
    parser.add_argument("--results", type=Path, default=results, metavar="FOLDER", help="asv's (default .asv/results)")
    parser.add_argument("--repository", type=Path, default=repository, metavar="FOLDER", help="that they are of")
    parser.add_argument("--branch", default="HEAD", metavar="REVISION", help="whose commits count (default HEAD)")
    parser.add_argument("--json", action="store_true", help="print the changes as JSON")
    parser.add_argument("--issue", action="store_true", help="print them as Markdown for an issue")
    parser.add_argument(
        "--bisect",
        action="store_true",
        help="measure the commits between, beside the last good one, and name the first",
    )
    parser.set_defaults(command=_history)


def _history(options: argparse.Namespace) -> int:
    if not options.results.is_dir():
        raise ValueError(f"--results: expected a folder of asv's results; there is no {options.results}")
    commits = commits_of(options.repository, options.branch)
    series = read(options.results, commits)
    found = [change for one, points in series.items() for change in changes(one, points, commits)]
    found.sort(key=lambda change: commits.index(change.first))
    if options.json:
        print(json.dumps([dataclasses.asdict(change) for change in found], indent=1))
    elif options.issue:
        print(issue(found) if found else "No series changed.")
    else:
        points = sum(map(len, series.values()))
        print(f"{len(series)} series, {points} points, {len(commits)} commits on {options.branch}")
        for change in found:
            print(line(change))
        if not found:
            print("No series changed.")
    if options.bisect:
        for change in found:
            if change.worse and change.between and not change.environment:
                first = culprit(commits, change.last_before, change.first, _slower_than(change))
                print(f"{change.series.name}: {first[:10]} is the first that is slower than {change.last_before[:10]}")
    return 0


def _slower_than(change: Change) -> Callable[[str], bool]:
    """Whether a commit is slower than the last good one, on this machine, in the workload that the series is of.

    Raises:
        ValueError: the series is of another machine, or of no workload of this repository.
        RuntimeError: neither could be told.
    """
    from benchmarks import gate, session, workloads
    from benchmarks.history import machine_name
    from benchmarks.measure import sides

    workload, clock = change.series.parameters
    chosen, _ = workloads.select([workload], gpu=True)

    def is_bad(commit: str) -> bool:
        with sides.commit(commit) as head, sides.commit(change.last_before) as base:
            run, judgement, _ = session.judged(
                chosen,
                lambda run: gate.comparison(gate.judge(run, session.case_of(run, asked=[workload]))),
                title=f"{commit[:10]} beside {change.last_before[:10]}",
                head=head,
                base=base,
            )
        if machine_name(run) != change.series.machine:
            raise ValueError(f"--bisect: the series is of {change.series.machine}; this is {machine_name(run)}")
        (verdict,) = [one for one in judgement.verdicts if one.clock == clock]
        if verdict.status is gate.Status.INCONCLUSIVE:
            raise RuntimeError(f"{commit[:10]} beside {change.last_before[:10]}: {verdict.reason}")
        return verdict.status is gate.Status.REGRESSION

    return is_bad
