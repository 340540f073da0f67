"""Measure, judge, and look again where in doubt: what every command that ends in a verdict does."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import gate, measure, results, stats, workloads
from benchmarks.measure.sides import INSTALLED, Side
from benchmarks.policy import BESIDE_BASE, Policy, processes_wanted

BASELINES = Path(__file__).with_name("baselines")
PROCESSES = {"cuda": 3, "cpu": 5}  # of each side
# For workloads in doubt, at the further looks; on a GPU as many again each time. Where processes differ by 0.58 %,
# 2 % are seen in 72 of 100 simulated runs with 9 processes, and in 92 with 12.
MORE_PROCESSES = {"cuda": (3, 6), "cpu": (3, 3)}
# Beside a base, the last look goes on in rounds of as many, up to so many in all, where it takes them to see twice the
# tolerance; not at once, because all processes hold the logits. On a CPU it would mostly be the most.
MOST_PROCESSES = {"cuda": 30, "cpu": 11}
LINE_SECONDS = 15.0  # between lines of progress in a log


def seed(text: str) -> int:
    """Of --seed: what PyTorch's generators take, with room for what a process adds to it.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2**63 - 1; got {text!r}")
    return number


def judged(
    chosen: Sequence[workloads.AnyWorkload],
    judge: Callable[[results.Run], gate.Judgement],
    *,
    title: str = "Measuring",
    head: Side = INSTALLED,
    base: Side | None = None,
    skipped: Sequence[workloads.AnyWorkload] = (),
    processes: int | None = None,
    seed: int = 0,
    keep: Callable[[results.Run], None] = lambda run: None,
) -> tuple[results.Run, gate.Judgement, int]:
    """Measure until `judge` has decided everything, or there is no further look; the run, the judgement, and how many
    looks it took.

    What is in doubt is measured in further processes, on the clocks in doubt. `keep` is given the run whenever it has
    grown.
    """
    policy = Policy()
    run = measured(chosen, title=title, head=head, base=base, skipped=skipped, processes=processes, seed=seed)
    keep(run)
    judgement = judge(run)
    device_type = run.environment.device_type
    for look, at_once in enumerate(MORE_PROCESSES[device_type][: policy.looks - 1], start=2):
        if not (clocks := judgement.doubtful()):
            return run, judgement, look - 1
        ends = _last_processes(policy, run, judgement) if look == policy.looks else {}
        while clocks:
            more = measured(
                workloads.select(list(clocks), gpu=True)[0], title="In doubt, measuring more", head=head, base=base,
                processes=at_once, seed=seed, first_process=1 + max(check.process for check in run.checks),
                clocks=clocks,
            )  # fmt: skip
            run = run.with_more(more)
            keep(run)
            clocks = _of_further_rounds(run, ends)
        judgement = judge(run)
    return run, judgement, policy.looks


def _of_further_rounds(run: results.Run, ends: dict[tuple[str, str], int]) -> dict[str, set[str]]:
    """Workloads, and of them the clocks, that have been measured in fewer processes than when the last look ends."""
    found: dict[str, set[str]] = {}
    for (workload, clock), end in ends.items():
        taken = {check.process for check in run.checks if check.workload == workload and check.covers(clock)}
        if len(taken) < end:
            found.setdefault(workload, set()).add(clock)
    return found


def _last_processes(policy: Policy, run: results.Run, judgement: gate.Judgement) -> dict[tuple[str, str], int]:
    """By workload and clock whose slowdown is in doubt, in how many processes they have been measured when the last
    look ends."""
    known = noise_of(run.environment.device)
    found: dict[tuple[str, str], int] = {}
    for doubt in judgement.doubts():
        if doubt.question != "slowdown" or not (series := gate.slowdown_series(run, doubt.workload, doubt.clock)):
            continue
        noise = known.of(doubt.workload, doubt.clock, BESIDE_BASE) if known else None
        count = last_processes(
            policy, run.environment.device_type, doubt.clock, stats.ratios(series), noise, judgement.comparisons
        )
        found[doubt.workload, doubt.clock] = count
    return found


def last_processes(
    policy: Policy, device_type: str, clock: str, logs: Sequence[float], noise: results.Noise | None, comparisons: int
) -> int:
    """In how many processes a comparison has been measured when the last look ends, which begins after these: one round
    at least, and further ones while they are wanted and there may be as many."""
    at_once, most = MORE_PROCESSES[device_type][-1], MOST_PROCESSES[device_type]
    wanted = processes_wanted(policy, device_type, clock, logs, noise, comparisons, most)
    count = len(logs) + at_once
    while count < wanted and count + at_once <= most:
        count += at_once
    return count


def measured(
    chosen: Sequence[workloads.AnyWorkload],
    *,
    title: str = "Measuring",
    head: Side = INSTALLED,
    base: Side | None = None,
    skipped: Sequence[workloads.AnyWorkload] = (),
    processes: int | None = None,
    seed: int = 0,
    first_process: int = 0,
    clocks: Mapping[str, Collection[str]] | None = None,
) -> results.Run:
    """Measure under a progress bar; each workload, where `clocks` are given, on its own there alone.

    Raises:
        ValueError: fewer than one process.
    """
    if processes is None:
        processes = PROCESSES["cuda" if measure.has_gpu() else "cpu"]
    if processes < 1:
        raise ValueError(f"--processes: expected at least 1; got {processes}")
    with progress(title, len(chosen) * processes) as step:
        return measure.measure(
            chosen, head=head, base=base, skipped=skipped, processes=processes, seed=seed, first_process=first_process,
            clocks=clocks, progress=step, waiting=lambda text: print(f"{title}: {text}", file=sys.stderr, flush=True),
        )  # fmt: skip


@contextmanager
def progress(title: str, steps: int) -> Iterator[measure.Progress]:
    """A bar on standard error, and where that is a log a line every `LINE_SECONDS`; what is yielded moves it on by a
    step that begins, with a line of text."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=steps)
        begun = 0
        began = told = time.monotonic()

        def step(text: str) -> None:
            nonlocal begun, told
            bar.update(task, completed=begun, description=text)
            begun += 1
            now = time.monotonic()
            if not console.is_terminal and now - told >= LINE_SECONDS:
                told = now
                print(f"{title}: {begun} of {steps} after {now - began:.0f} s: {text}", file=sys.stderr, flush=True)

        yield step
        bar.update(task, completed=steps, description="done")


def case_of(run: results.Run, require_baseline: bool = False, asked: Sequence[str] | None = None) -> gate.Case:
    """What this repository judges such a run by. Expected are the workloads that were asked for, or else all of this
    repository's and of the baseline's.

    Raises:
        ValueError: a baseline is required, and there is none for the run's device; or see `rules_of`.
    """
    gpu = run.environment.device_type == "cuda"
    if require_baseline:
        expect_baseline(run.environment.device)
    baseline, noise, accepted = rules_of(run.environment.device)
    whole = [workload.name for workload in workloads.select(None, gpu=gpu)[0]]
    whole += baseline.entries if baseline else []
    # For base: see `measure`.
    too_new = {name for name in run.skipped if run.base is not None and workloads.may_be_absent(name)}
    whole = [name for name in whole if name not in too_new]
    return gate.Case(
        baseline=baseline,
        noise=noise,
        accepted=accepted,
        expected=tuple(dict.fromkeys(whole if asked is None else asked)),
    )


def expect_baseline(device: str) -> None:
    """That there is a baseline for a device.

    Raises:
        ValueError: there is none.
    """
    path = results.device_path(BASELINES, device)
    if not path.exists():
        raise ValueError(f"baseline: none for {device}, expected {path}; see `baseline --help`")


def rules_of(
    device: str,
) -> tuple[results.Baseline | None, results.NoiseRecord | None, tuple[results.AcceptedSlowdown, ...]]:
    """What this repository has for a device: baseline, known noise, and the slowdowns that were accepted.

    Raises:
        RecordError: one of the files is damaged.
        ValueError: one is of another device, whose name makes the same file's.
    """
    path = results.device_path(BASELINES, device)
    baseline = results.load(results.Baseline, path) if path.exists() else None
    noise = noise_of(device)
    for name, record in (("baseline", baseline), ("noise", noise)):
        if record is not None and record.device != device:
            raise ValueError(f"{name}: expected that of {device} in {path.name}; got that of {record.device}")
    accepted = BASELINES / "accepted-slowdowns.json"
    return baseline, noise, results.load(results.AcceptedSlowdowns, accepted).entries if accepted.exists() else ()


def noise_of(device: str) -> results.NoiseRecord | None:
    """What is known of the noise of a device."""
    path = noise_path(device)
    return results.load(results.NoiseRecord, path) if path.exists() else None


def noise_path(device: str) -> Path:
    return results.device_path(BASELINES / "noise", device)
