"""What runs of the same code teach about a device: how far processes differ though nothing does. Pure.

Known apart for every way in which two things were held beside each other: fused beside base's fused or base's reference
in two processes, fused beside the reference in one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Sequence

from benchmarks import stats
from benchmarks.policy import BESIDE_BASE
from benchmarks.results import (
    VERSIONS,
    Environment,
    Noise,
    NoiseRecord,
    Run,
    Series,
    differing_versions,
    expect_one,
    expect_versions_of,
)
from benchmarks.workloads import WORKLOADS

SAME = ("device", *VERSIONS)  # in all runs that are learned from
ALONE = "fused alone"  # under which a noise record keeps what is known of times
LEAST_PROCESSES = 6  # that a pair's noise is taken from; how many there were counts where it is used
WANTED_PROCESSES = 30  # of what head is held beside base by
Key = tuple[str, str, str]  # workload, clock, pair


def pair_name(series: Series) -> str:
    """Under which a noise record keeps what is known of such pairs."""
    return f"{series.implementation} beside {series.beside}"


def learned(runs: Sequence[Run], known: NoiseRecord | None = None, *, add: bool = False) -> NoiseRecord:
    """The noise that runs show of commits alone or beside themselves; of pairs of today's workloads that they do not
    hold, what was known before. With `add`, of the others too: these runs are further processes of it.

    Raises:
        ValueError: one run is there twice, or was added before, is of another device or version than the others or than
            what it is added to, of a commit beside another, of edited code, or with a wrong result or none; or there
            are too few processes of every pair, or they differ as none of the same code do; or what would be kept of
            `known` was measured with another version; or there is nothing to add to.
    """
    expect_one(SAME, runs)
    first = runs[0].environment
    if known is not None and known.device != first.device:
        raise ValueError(
            f"records: expected of {known.device}, of which there is known noise in that file; got {first.device}"
        )
    for run in runs:
        _expect_same_code(run)
    samples = [_digest(run) for run in runs]
    before = known.samples if known else ()
    for run, digest in zip(runs, samples, strict=True):
        if samples.count(digest) > 1:
            raise ValueError(f"records: expected each once; got that of {run.created} again")
        if add and digest in before:
            raise ValueError(f"records: that of {run.created} is in the known noise already")
    if add:
        _expect_to_add_to(known, first)
    entries = _entries(runs, known if add else None)
    if not entries:
        raise ValueError(f"records: expected {LEAST_PROCESSES} processes of a pair in all; got fewer of every pair")
    record = NoiseRecord(
        first.device, runs[0].created, first.commit, first.torch, first.triton, first.driver, entries, tuple(samples)
    )
    if known is not None and (_add_known(record, known) or add):
        record = dataclasses.replace(record, samples=tuple(dict.fromkeys([*before, *samples])))
    ordered = {name: entries[name] for name in WORKLOADS if name in entries}
    return dataclasses.replace(record, entries=ordered)


def _expect_same_code(run: Run) -> None:
    environment = run.environment
    if environment.commit is None or environment.dirty:
        raise ValueError("records: expected a clean commit; got one measured with uncommitted changes")
    if run.base is not None and (run.base.commit, run.base.dirty) != (environment.commit, False):
        raise ValueError(
            f"records: expected a commit beside itself, as from `compare HEAD HEAD`; got {environment.commit} "
            f"beside {run.base.commit}"
        )
    if failed := [check for check in run.checks if not check.passed]:
        raise ValueError(f"records: a result was wrong, {failed[0].workload}: {failed[0].detail}")
    checked = {(check.workload, check.process) for check in run.checks}
    if unchecked := [one for one in run.series if (one.workload, one.process) not in checked]:
        raise ValueError(f"records: expected a check of all results; got none of {unchecked[0].workload}")


def _digest(run: Run) -> str:
    """Of the samples: two records with the same were the same run, whatever was noted beside them."""
    return hashlib.sha256(repr(run.series).encode()).hexdigest()


def _expect_to_add_to(known: NoiseRecord | None, environment: Environment) -> None:
    if known is None:
        raise ValueError(f"--add: expected known noise of {environment.device} to add to; there is none")
    if not known.samples:
        raise ValueError("--add: the known noise does not say which runs it was learned from, which may be these")
    for name, here, there in differing_versions(environment, known):
        raise ValueError(f"--add: expected records with {name} {there}, as the known noise; got {here}")


def _add_known(record: NoiseRecord, known: NoiseRecord) -> bool:
    """Into the record, what is known of pairs that it lacks; whether there was any."""
    added = False
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
                    added = True
    return added


def fewest_processes(record: NoiseRecord) -> int:
    """Of the judged comparisons of head and base, the one with the fewest processes behind it."""
    found = (
        pairs[BESIDE_BASE].processes
        for clocks in record.entries.values()
        for clock, pairs in clocks.items()
        if clock != "graph_us" and BESIDE_BASE in pairs
    )
    return min(found, default=0)


def _grouped(run: Run) -> dict[Key, list[Series]]:
    """Series by workload, clock and pair; those of fused beside a reference under its own times too."""
    grouped: dict[Key, list[Series]] = {}
    for one in run.series:
        pair = pair_name(one)
        for name in (pair, ALONE) if pair in ("fused beside reference", "fused beside base reference") else (pair,):
            grouped.setdefault((one.workload, one.clock, name), []).append(one)
    return grouped


def _entries(runs: Sequence[Run], known: NoiseRecord | None) -> dict[str, dict[str, dict[str, Noise]]]:
    """Of what the runs hold, together with what is known of it already."""
    of_runs = [_grouped(run) for run in runs]
    commits = list(dict.fromkeys(str(run.environment.commit) for run in runs))
    entries: dict[str, dict[str, dict[str, Noise]]] = {}
    for workload, clock, pair in dict.fromkeys(key for grouped in of_runs for key in grouped):
        there = [grouped[workload, clock, pair] for grouped in of_runs if (workload, clock, pair) in grouped]
        # Each process's middle log ratio, or of fused alone the middle log time.
        groups = [stats.times(series) if pair == ALONE else stats.ratios(series) for series in there]
        pairs = min(len(one.us) for series in there for one in series)
        to_the_mean = 0 if _is_same(pair) else 1  # degrees of freedom that its estimate takes
        squares, freedom = (_within if to_the_mean else _around_zero)(groups)
        source = ", ".join(commits) if len(commits) > 1 else ""
        before = known.of(workload, clock, pair) if known else None
        if known and before:
            pairs = min(pairs, before.pairs)  # of which 0 says that they were not noted
            squares += before.deviation**2 * (before.processes - to_the_mean)
            freedom += before.processes - to_the_mean
            source = ", ".join(dict.fromkeys([*(before.source or str(known.commit)).split(", "), *commits]))
        if freedom + to_the_mean >= LEAST_PROCESSES:
            deviation = math.sqrt(squares / freedom)
            if deviation > 1:
                raise ValueError(
                    f"records: processes of {workload} differ by {deviation:.0%} on {clock}, {pair}: not the same code"
                )
            noise = Noise(deviation, freedom + to_the_mean, source, pairs)
            entries.setdefault(workload, {}).setdefault(clock, {})[pair] = noise
    return entries


def _is_same(pair: str) -> bool:
    left, right = pair.split(" beside base ") if " beside base " in pair else (pair, "")
    return left == right


def _around_zero(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Squares and degrees of freedom of the same code beside itself, whose true log ratio is 0: what a whole run is off
    by counts too."""
    values = [value for group in groups for value in group]
    return sum(value**2 for value in values), len(values)


def _within(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Of a ratio that nobody knows, within runs: a shift between runs may be another GPU's."""
    squares = sum(sum((value - sum(group) / len(group)) ** 2 for value in group) for group in groups)
    return squares, sum(len(group) - 1 for group in groups)
