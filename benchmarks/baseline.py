"""A baseline from records that pass: what later runs on the same model of GPU are held against. Pure.

A record of one commit holds fused beside the reference of its process, a comparison beside the reference of base's: on
an H200's call clock the two speedups differ by up to a fifth, so each is held against what was measured its way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from benchmarks import gate, workloads
from benchmarks.noise import pair_name
from benchmarks.policy import Policy, baseline_tolerance
from benchmarks.results import VERSIONS, Baseline, BaselineEntry, NoiseRecord, Run, expect_one, expect_versions_of

Entries = dict[str, dict[str, dict[str, BaselineEntry]]]

SAME = ("device", "commit", *VERSIONS)  # in all records of a baseline


def accepted(runs: Sequence[Run], reason: str, known: NoiseRecord | None, older: Baseline | None = None) -> Baseline:
    """The baseline that these runs make of today's workloads, at most one of each way to measure.

    What the runs do not hold, a workload or a way to measure, keeps its entry of `older`: a new one changes no other's.

    Raises:
        ValueError: one of them does not pass, holds a wrong result, was measured with uncommitted changes, is so noisy
            that it would not pass beside itself, or is of another device, commit or version than the others; or what
            would be kept of `older` was measured with another version, or on another device.
    """
    expect_one(SAME, runs)
    first = runs[0].environment
    for run in runs:
        if failed := [check for check in run.checks if not check.passed]:
            raise ValueError(f"record: a result was wrong, {failed[0].workload}: {failed[0].detail}")
        if run.environment.commit is None or run.environment.dirty:
            raise ValueError("record: it was measured with uncommitted changes; commit them and measure again")
    if older is not None and older.device != first.device:
        raise ValueError(f"records: expected {older.device}, as the baseline; got {first.device}")
    if len({run.base is None for run in runs}) < len(runs):
        raise ValueError("records: expected at most one of `run` and one of `compare`; got two of a kind")
    kept = _kept(older) if older else {}
    baseline = Baseline(
        first.device, runs[0].created, first.commit, reason, first.torch, first.triton, first.driver, kept
    )  # fmt: skip
    cases = [_case(run, known, kept) for run in runs]
    for run, case in zip(runs, cases, strict=True):
        _add_entries(baseline, run, _passing(run, case, "only a run that passes can become a baseline"), known)
    for run, case in zip(runs, cases, strict=True):
        _passing(run, dataclasses.replace(case, baseline=baseline), "too noisy to be held against itself")
    if older is not None and any(entry.source for *_, entry in entries(baseline)):
        expect_versions_of(older, baseline)
    ordered = {name: baseline.entries[name] for name in workloads.WORKLOADS if name in baseline.entries}
    return dataclasses.replace(baseline, entries=ordered)


def entries(baseline: Baseline) -> Iterator[tuple[str, str, str, BaselineEntry]]:
    """All of them, each behind its workload, its clock and what it is beside."""
    for workload, clocks in baseline.entries.items():
        for clock, ways in clocks.items():
            for beside, entry in ways.items():
                yield workload, clock, beside, entry


def _kept(older: Baseline) -> Entries:
    """Its entries of today's workloads, each with what it was taken from: what is measured now takes their place."""
    kept: Entries = {}
    for workload, clock, beside, entry in entries(older):
        if workload in workloads.WORKLOADS:
            ways = kept.setdefault(workload, {}).setdefault(clock, {})
            source = entry.source or f"{older.commit}, {older.created}: {older.reason}"
            ways[beside] = dataclasses.replace(entry, source=source)
    return kept


def _case(run: Run, known: NoiseRecord | None, kept: Entries) -> gate.Case:
    whole, _ = workloads.select(None, gpu=run.environment.device_type == "cuda")
    return gate.Case(noise=known, expected=tuple(workload.name for workload in whole if workload.name not in kept))


def _passing(run: Run, case: gate.Case, otherwise: str) -> gate.Judgement:
    judgement = gate.judge(run, case)
    worst = [v for v in judgement.verdicts if v.status is not gate.Status.PASS and v.workload in workloads.WORKLOADS]
    if worst:
        raise ValueError(f"record: {otherwise}; {worst[0].workload} on {worst[0].clock}: {worst[0].reason}")
    return judgement


def _add_entries(baseline: Baseline, run: Run, judgement: gate.Judgement, known: NoiseRecord | None) -> None:
    for verdict in judgement.verdicts:
        if verdict.question != "speedup" or verdict.workload not in workloads.WORKLOADS:
            continue
        assert verdict.ratio is not None
        assert verdict.fused_us is not None
        assert verdict.beside_us is not None
        series = gate.speedup_series(run, verdict.workload, verdict.clock)
        one = known.of(verdict.workload, verdict.clock, pair_name(series[0])) if known else None
        tolerance = baseline_tolerance(series, Policy(), one)
        ways = baseline.entries.setdefault(verdict.workload, {}).setdefault(verdict.clock, {})
        ways[series[0].beside] = BaselineEntry(verdict.ratio.estimate, verdict.fused_us, verdict.beside_us, tolerance)
