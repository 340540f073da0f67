"""Does the gate do what it claims: `python -m benchmarks selftest`.

Runs the gate on the same code on both sides, where it must not accuse, and on every planted slowdown, which it must
catch. Each run is written down when it ends, so that a selftest can be stopped, resumed, and merged with others. What
the gate can catch at all follows from the noise that is known of the device, by simulation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat

from benchmarks import gate, measure, results, session, stats, whole, workloads
from benchmarks.measure import sides
from benchmarks.mutants import MUTANTS, Mutant
from benchmarks.policy import BESIDE_BASE, Policy, slowdown_tolerance
from benchmarks.report import printable

SAME = "same code"
MOST_DOUBTED = 0.05  # of runs of the same code
SIMULATED_RUNS = 1000
SLOWDOWNS = {"device_us": 0.02, "call_us": 0.10}  # that are simulated


@dataclass(frozen=True)
class Outcome(results.Strict):
    """One run of the gate."""

    planted: str  # a mutant's name, or "same code"
    seed: int
    status: str  # the verdict on the comparison with base
    slowdown: float  # the largest found, of the judged questions
    where: str  # workload and clock of it, or of the verdict
    reason: str
    looks: Annotated[int, Field(ge=1)]
    seconds: NonNegativeFloat  # for which the device was used
    commit: str | None  # that was tested, and tested with; a + behind it, of a checkout with changes

    def __post_init__(self) -> None:
        if self.status not in gate.Status.__members__:
            raise ValueError(f"status: expected one of {', '.join(gate.Status.__members__)}; got {self.status!r}")


@dataclass(frozen=True)
class Power(results.Strict):
    """What the gate can catch of one workload on one clock, given the noise that is known."""

    workload: str
    clock: str
    deviation: float  # of a process
    told_from_none: float  # the smallest slowdown that the first look tells from none in 95 % of runs
    slowdown: float
    caught: float  # the share of simulated runs with that slowdown that end in REGRESSION
    accused: float  # and of runs without one
    doubted: float  # and of runs without one that end INCONCLUSIVE


@dataclass(frozen=True)
class Selftest(results.Record):
    """All runs so far on one device."""

    KIND = "selftest"
    VERSION = 3

    environment: results.Environment
    command: str  # those of the parts, where it was merged
    runs: Annotated[tuple[Outcome, ...], Field(min_length=1)]
    power: tuple[Power, ...]


def add_command(commands: Any) -> None:
    """Add `selftest` to the subcommands of a parser."""
    parser = commands.add_parser("selftest", help="the gate against the same code and against planted slowdowns")
    parser.add_argument("--same", type=_count, default=0, metavar="N", help="runs of the same code on both sides")
    parser.add_argument("--planted", type=_count, default=0, metavar="N", help="runs of every planted slowdown")
    parser.add_argument(
        "--mutant", action="append", choices=MUTANTS, metavar="NAME", help="only this one; may be repeated"
    )
    parser.add_argument(
        "--first-seed", type=session.seed, default=1, metavar="S", help="of the runs; the next one's is S + 1"
    )
    record = parser.add_mutually_exclusive_group(required=True)
    record.add_argument("--output", type=Path, metavar="FILE", help="outcomes; resumed where it exists")
    record.add_argument("--show", type=Path, metavar="FILE", help="a record's table again; nothing is run or written")
    parser.add_argument(
        "--merge", type=Path, nargs="+", default=[], metavar="FILE", help="take outcomes from these too"
    )
    parser.add_argument("--seconds", type=_seconds, metavar="S", help="start no further run after so long")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="save the runs of the same code there, for `noise` to learn from"
    )
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of the table")
    parser.set_defaults(command=_selftest)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected how many there are to be; got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above zero; got {text!r}")
    return seconds


def _selftest(options: argparse.Namespace) -> int:
    if options.show:
        return _show(options)
    whole.expect_writable("--output", options.output)
    if options.keep:
        whole.expect_writable("--keep", options.keep / "same-code.json")
    planted = _planted(options.mutant, "cuda" if measure.has_gpu() else "cpu")
    record = results.load(Selftest, options.output) if options.output.exists() else None
    for path in options.merge:
        record = _merged(record, results.load(Selftest, path), path)
    deadline = time.monotonic() + (options.seconds or float("inf"))
    seeds = range(options.first_seed, options.first_seed + max(options.same, options.planted))
    todo: list[tuple[Mutant | None, int]] = [(None, seed) for seed in seeds[: options.same]]
    todo += [(mutant, seed) for seed in seeds[: options.planted] for mutant in planted]
    done = {(outcome.planted, outcome.seed) for outcome in record.runs} if record else set()
    todo = [(mutant, seed) for mutant, seed in todo if (mutant.name if mutant else SAME, seed) not in done]
    left = len(todo)
    if todo:
        session.rules_of(measure.device())  # before minutes of measuring, that they can be read
        if record:
            _expect_device(measure.device(), record, options.output)
    for mutant, seed in todo:
        if time.monotonic() > deadline:
            print(
                f"The time is over; run the same command again for the {left} that are left: --output {options.output}",
                file=sys.stderr,
            )
            break
        run, outcome = _one(mutant, seed)
        if options.keep and not mutant:
            results.save(run, options.keep / f"same-code-{seed}.json")
        before = record.runs if record else ()
        environment = dataclasses.replace(run.environment, device_hash=None)
        if record:
            _expect_versions(environment, record, options.output)
        record = Selftest(environment, run.command, (*before, outcome), ())
        results.save(record, options.output)
        left -= 1
        print(_line(outcome), flush=True, file=sys.stderr if options.json else sys.stdout)
    if record is None:
        raise ValueError("selftest: expected --same or --planted; there is nothing to show yet")
    noise = session.noise_of(record.environment.device)
    if noise is not None:
        record = dataclasses.replace(record, power=_powers(noise, record.environment.device_type))
    results.save(record, options.output)
    _print(record, options)
    verdict = _verdict(record.runs)
    return gate.Status.INCONCLUSIVE.value if left and verdict is gate.Status.PASS else verdict.value


def _show(options: argparse.Namespace) -> int:
    others = (options.same, options.planted, options.mutant, options.merge, options.seconds, options.keep)
    if any(others) or options.first_seed != 1:
        raise ValueError("--show: expected no other option, because nothing is run or written")
    shown = results.load(Selftest, options.show)
    _print(shown, options)
    return _verdict(shown.runs).value


def _print(record: Selftest, options: argparse.Namespace) -> None:
    print(json.dumps(dataclasses.asdict(record), indent=1) if options.json else table(record))


def _planted(names: Sequence[str] | None, device_type: str) -> list[Mutant]:
    """The mutants of that name, or else all that are for such a device."""
    possible = [mutant.name for mutant in MUTANTS.values() if mutant.device_type == device_type]
    for name in names or ():
        if name not in possible:
            raise ValueError(f"--mutant: expected one for what is measured here, {', '.join(possible)}; got {name}")
    return [MUTANTS[name] for name in names or possible]


def _expect_device(device: str, record: Selftest, path: Path) -> None:
    if record.environment.device != device:
        raise results.RecordError(f"{path}: of {record.environment.device}, not {device}")


def _expect_versions(environment: results.Environment, record: Selftest, path: Path) -> None:
    for name, here, there in results.differing_versions(environment, record.environment):
        raise results.RecordError(f"{path}: with {name} {there}, not {here}")


def _one(mutant: Mutant | None, seed: int) -> tuple[results.Run, Outcome]:
    """The gate as `compare` runs it, quick workloads or those of the mutant."""
    name = mutant.name if mutant else SAME
    chosen, _ = workloads.select(list(mutant.workloads if mutant else workloads.QUICK), gpu=True)
    with ExitStack() as stack:
        base = stack.enter_context(sides.working_tree())
        folder = stack.enter_context(sides.temporary_folder())
        if mutant:
            mutant.plant(folder)
        else:
            sides.copy_package(folder)
        assert base.state is not None
        head = sides.Side(folder, dataclasses.replace(base.state, origin=f"{name} planted"))
        run, judgement, looks = session.judged(
            chosen,
            _comparison,
            title=f"{name} {seed}",
            head=head,
            base=base,
            seed=seed,
        )
    worst = _worst(judgement)
    assert run.seconds is not None
    return run, Outcome(
        name,
        seed,
        judgement.status.name,
        worst.ratio.estimate - 1 if worst.ratio else 0.0,
        f"{worst.workload} {worst.clock}",
        worst.reason,
        looks,
        run.seconds,
        run.environment.commit and run.environment.commit + "+" * run.environment.dirty,
    )


def _comparison(run: results.Run) -> gate.Judgement:
    """With base alone: floors and baselines are tested elsewhere. Who is accused is so whatever becomes of the doubts
    about others, which are not looked at again."""
    judgement = gate.comparison(gate.judge(run, gate.Case(noise=session.noise_of(run.environment.device))))
    accused = tuple(one for one in judgement.verdicts if one.status is gate.Status.REGRESSION)
    return dataclasses.replace(judgement, verdicts=accused or judgement.verdicts)


def _worst(judgement: gate.Judgement) -> gate.Verdict:
    ranks = {gate.Status.REGRESSION: 2, gate.Status.INCONCLUSIVE: 1, gate.Status.PASS: 0}
    return max(
        judgement.verdicts,
        key=lambda v: (ranks[v.status], v.reason.startswith(gate.WRONG), v.ratio.estimate if v.ratio else 0.0),
    )


def _merged(record: Selftest | None, other: Selftest, path: Path) -> Selftest:
    if record is None:
        return other
    _expect_device(record.environment.device, other, path)
    _expect_versions(record.environment, other, path)
    return dataclasses.replace(
        record,
        command="; ".join(dict.fromkeys([*record.command.split("; "), other.command])),
        runs=(*record.runs, *(run for run in other.runs if run not in record.runs)),
    )


def _powers(noise: results.NoiseRecord, device_type: str) -> tuple[Power, ...]:
    """For every workload and clock, as parts of a run over all of them."""
    policy = Policy()
    known = [
        (workload, clock, pairs[BESIDE_BASE])
        for workload, clocks in noise.entries.items()
        for clock, pairs in clocks.items()
        if clock in policy.slowdowns[device_type] and BESIDE_BASE in pairs
    ]
    limits = sum(clock in policy.fused_tolerances for _, clock, _ in known)
    comparisons = len(known) * 2 + limits  # as in `gate.judge`, beside the reference and its baseline too
    return tuple(_power(workload, clock, one, device_type, comparisons) for workload, clock, one in known)


def _power(workload: str, clock: str, noise: results.Noise, device_type: str, comparisons: int) -> Power:
    policy = Policy()
    rng = random.Random(f"{workload} {clock}")
    first = session.PROCESSES[device_type]
    early = session.MORE_PROCESSES[device_type][:-1]
    most = session.MOST_PROCESSES[device_type]
    error = policy.look_error()
    slowdown = SLOWDOWNS[clock]

    def decided(logs: Sequence[float]) -> gate.Status:
        tolerance = slowdown_tolerance(policy, device_type, clock, noise, len(logs))
        return gate.slowdown_status(logs, noise, tolerance, error, error / comparisons)[0]

    def end(slower: float) -> gate.Status:
        # The deviation is known from so many processes: its square lies about the estimate as 1 / chi2 does.
        deviation = noise.deviation * math.sqrt(noise.processes / rng.gammavariate(noise.processes / 2, 2))
        logs = [rng.gauss(math.log1p(slower), deviation) for _ in range(most)]
        count = first
        for more in early:
            if (status := decided(logs[:count])) is not gate.Status.INCONCLUSIVE:
                return status
            count += more
        if (status := decided(logs[:count])) is not gate.Status.INCONCLUSIVE:
            return status
        return decided(logs[: session.last_processes(policy, device_type, clock, logs[:count], noise, comparisons)])

    slower = [end(slowdown) for _ in range(SIMULATED_RUNS)]
    same = [end(0.0) for _ in range(SIMULATED_RUNS)]
    return Power(
        workload,
        clock,
        noise.deviation,
        stats.detectable(noise, first, 0.0, error, policy.power),
        slowdown,
        slower.count(gate.Status.REGRESSION) / SIMULATED_RUNS,
        same.count(gate.Status.REGRESSION) / SIMULATED_RUNS,
        same.count(gate.Status.INCONCLUSIVE) / SIMULATED_RUNS,
    )


def _good(outcome: Outcome) -> bool:
    """What was planted leaves the right results, only later: a wrong one is a slowdown that was not caught."""
    if outcome.planted == SAME:
        return outcome.status == "PASS"
    return outcome.status == "REGRESSION" and not outcome.reason.startswith(gate.WRONG)


def _verdict(outcomes: Sequence[Outcome]) -> gate.Status:
    """Of the gate: none of the same code accused and all that was planted caught, or not; and whether it doubts the
    same code too often to be of use."""
    same = [one for one in outcomes if one.planted == SAME]
    if not all(_good(one) or (one.planted == SAME and one.status == "INCONCLUSIVE") for one in outcomes):
        return gate.Status.REGRESSION
    doubted = sum(one.status == "INCONCLUSIVE" for one in same)
    return gate.Status.INCONCLUSIVE if doubted > MOST_DOUBTED * len(same) else gate.Status.PASS


def _line(outcome: Outcome) -> str:
    return (
        f"{outcome.planted:22} {outcome.status:13} {outcome.slowdown:+8.1%}  {outcome.where:36} "
        f"{outcome.looks} looks {outcome.seconds:5.0f} s"
    )


def _clocks(places: Iterable[str]) -> str:
    return ", ".join(sorted({place.rpartition(" ")[2] for place in places}))


def table(record: Selftest) -> str:
    """Every kind of run: how often it ended as it should, the slowdown found, the time taken; and what that shows."""
    from scipy import stats

    outcomes = record.runs
    lines = [f"{'planted':22} {'right':>7}  {'slowdown found':>16}  {'where':36} {'s a run':>7}"]
    for name in dict.fromkeys(outcome.planted for outcome in outcomes):
        runs = [outcome for outcome in outcomes if outcome.planted == name]
        right = sum(map(_good, runs))
        found = f"{min(r.slowdown for r in runs):+.1%} to {max(r.slowdown for r in runs):+.1%}"
        seconds = sum(r.seconds for r in runs) / len(runs)
        places = {outcome.where for outcome in runs}
        where = runs[0].where if len(places) == 1 else f"{len(places)} places, on {_clocks(places)}"
        lines.append(f"{name:22} {right:>3}/{len(runs):<3}  {found:>16}  {where:36} {seconds:7.0f}")
    same = [outcome for outcome in outcomes if outcome.planted == SAME]
    if same:
        false = sum(outcome.status == "REGRESSION" for outcome in same)
        doubt = sum(outcome.status == "INCONCLUSIVE" for outcome in same)
        bound = stats.binomtest(false, len(same)).proportion_ci(0.95, method="exact").high
        lines.append(
            f"same code: {false} of {len(same)} accused (with 95 % confidence below {bound:.1%}), {doubt} in doubt"
        )
    caught = [outcome for outcome in outcomes if outcome.planted != SAME]
    if caught:
        lines.append(f"planted: {sum(map(_good, caught))} of {len(caught)} runs caught")
    commits = Counter((one.commit or "none")[:10] + "+" * (one.commit or "").endswith("+") for one in outcomes)
    lines.append(f"commits: {', '.join(f'{commit} ({runs} runs)' for commit, runs in commits.items())}")
    if record.power:
        lines += ["", "of a run over all workloads, by simulation from the known noise of this device:"]
        heads = f"{'deviation':>9} {'seen from':>9} {'caught, of':>16} {'accused':>8} {'in doubt':>8}"
        lines.append(f"{'workload':33} {'clock':10} {heads}")
    lines += [
        f"{p.workload:33} {p.clock:10} {p.deviation:9.2%} {p.told_from_none:9.2%} {p.caught:9.1%} {p.slowdown:+6.0%} "
        f"{p.accused:8.1%} {p.doubted:8.1%}"
        for p in record.power
    ]
    return "\n".join(map(printable, lines))
