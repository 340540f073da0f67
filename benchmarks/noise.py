"""What runs of the same code teach about a device: how far processes differ though nothing does. Pure.

Known apart for every way in which two things were held beside each other: fused beside base's fused or base's reference
in two processes, fused beside the reference in one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from benchmarks import stats
from benchmarks.results import VERSIONS, Noise, NoiseRecord, Run, Series, expect_one, expect_versions_of
from benchmarks.workloads import WORKLOADS

SAME = ("device", *VERSIONS)  # in all runs that are learned from
ALONE = "fused alone"  # under which a noise record keeps what is known of times
LEAST_PROCESSES = 6  # that a pair's noise is taken from; how many there were counts where it is used
Key = tuple[str, str, str]  # workload, clock, pair


def pair_name(series: Series) -> str:
    """Under which a noise record keeps what is known of such pairs."""
    return f"{series.implementation} beside {series.beside}"


def learned(runs: Sequence[Run], known: NoiseRecord | None = None) -> NoiseRecord:
    """The noise that runs show of commits alone or beside themselves; of pairs of today's workloads that they do not
    hold, what was known before.

    Raises:
        ValueError: one run is there twice, of another device or version than the others, of a commit beside another, of
            edited code, or with a wrong result; or there are too few processes of every pair; or what would be kept of
            `known` was measured with another version.
    """
    expect_one(SAME, runs)
    first = runs[0].environment
    for run in runs:
        environment = run.environment
        if runs.count(run) > 1:
            raise ValueError(f"records: expected each once; got that of {run.created} again")
        if environment.commit is None or environment.dirty:
            raise ValueError("records: expected a clean commit; got one measured with uncommitted changes")
        if run.base is not None and (run.base.commit, run.base.dirty) != (environment.commit, False):
            raise ValueError(
                f"records: expected a commit beside itself, as from `compare HEAD HEAD`; got {environment.commit} "
                f"beside {run.base.commit}"
            )
        if failed := [check for check in run.checks if not check.passed]:
            raise ValueError(f"records: a result was wrong, {failed[0].workload}: {failed[0].detail}")
    commits = list(dict.fromkeys(run.environment.commit for run in runs))
    entries = _entries([_logs(run) for run in runs], ", ".join(map(str, commits)) if len(commits) > 1 else "")
    if not entries:
        raise ValueError(f"records: expected {LEAST_PROCESSES} processes of a pair in all; got fewer of every pair")
    record = NoiseRecord(
        first.device, runs[0].created, first.commit, first.torch, first.triton, first.driver, entries
    )  # fmt: skip
    if known is not None and known.device == first.device:
        _add_known(record, known)
    ordered = {name: entries[name] for name in WORKLOADS if name in entries}
    return dataclasses.replace(record, entries=ordered)


def _add_known(record: NoiseRecord, known: NoiseRecord) -> None:
    for workload in known.entries.keys() & WORKLOADS.keys():
        for clock, pairs in known.entries[workload].items():
            if clock == "graph_us":  # measured in one process of a run, so not learned again, and judged by nobody
                continue
            found = record.entries.setdefault(workload, {}).setdefault(clock, {})
            for pair, noise in pairs.items():
                if pair not in found:
                    expect_versions_of(known, record)
                    source = noise.source or f"{known.commit}, {known.created}"
                    found[pair] = dataclasses.replace(noise, source=source)


def _logs(run: Run) -> dict[Key, list[float]]:
    """Each process's middle log ratio, by workload, clock and pair; and of fused, the middle log time."""
    grouped: dict[Key, list[Series]] = {}
    for one in run.series:
        grouped.setdefault((one.workload, one.clock, pair_name(one)), []).append(one)
    found = {key: stats.ratios(series) for key, series in grouped.items()}
    for (workload, clock, pair), series in grouped.items():
        if pair in ("fused beside reference", "fused beside base reference"):
            found[workload, clock, ALONE] = stats.times(series)
    return found


def _entries(runs: Sequence[dict[Key, list[float]]], source: str) -> dict[str, dict[str, dict[str, Noise]]]:
    entries: dict[str, dict[str, dict[str, Noise]]] = {}
    for key in dict.fromkeys(key for run in runs for key in run):
        workload, clock, pair = key
        groups = [run[key] for run in runs if key in run]
        if (noise := _around_zero(groups) if _is_same(pair) else _within(groups)) is not None:
            entries.setdefault(workload, {}).setdefault(clock, {})[pair] = dataclasses.replace(noise, source=source)
    return entries


def _is_same(pair: str) -> bool:
    left, right = pair.split(" beside base ") if " beside base " in pair else (pair, "")
    return left == right


def _around_zero(groups: Iterable[Sequence[float]]) -> Noise | None:
    """Of the same code beside itself, whose true log ratio is 0: what a whole run is off by counts too."""
    values = [value for group in groups for value in group]
    if len(values) < LEAST_PROCESSES:
        return None
    return Noise(math.sqrt(sum(value**2 for value in values) / len(values)), len(values))


def _within(groups: Sequence[Sequence[float]]) -> Noise | None:
    """Of a ratio that nobody knows, within runs: a shift between runs may be another GPU's."""
    freedom = sum(len(group) - 1 for group in groups)
    if freedom < LEAST_PROCESSES - 1:
        return None
    squares = sum(sum((value - sum(group) / len(group)) ** 2 for value in group) for group in groups)
    return Noise(math.sqrt(squares / freedom), freedom + 1)
