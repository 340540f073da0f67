"""Does the gate do what it claims: `python -m benchmarks selftest`.

Runs the gate on the same code on both sides, where it must not accuse, and on every planted slowdown, which it must
catch. Each run is written down when it ends, so that a selftest can be stopped, resumed, and merged with others. Runs
of the same code also tell the noise of the device, which the gate then knows.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import gate, measure, results, workloads
from benchmarks.measure import sides
from benchmarks.mutants import MUTANTS, Mutant

SAME = "same code"
NOISE = Path(__file__).with_name("baselines") / "noise"
PROCESSES = {"cuda": 4, "cpu": 5}
MORE_PROCESSES = 3
LEAST_PROCESSES = 30  # that a device's noise is taken from

Progress = Callable[[str, int], AbstractContextManager[measure.Progress]]
CaseOf = Callable[[results.Run], gate.Case]


@dataclass(frozen=True)
class Outcome:
    """One run of the gate."""

    planted: str  # a mutant's name, or "same code"
    seed: int
    status: str  # the verdict on the comparison with base
    slowdown: float  # the largest found, of the judged questions
    where: str  # workload and clock of it, or of the verdict
    looks: int
    seconds: float
    ratios: dict[str, list[float]]  # per process, log(head / base), by "workload clock pair": of the same code alone


def add_command(commands: Any, progress: Progress, case_of: CaseOf) -> None:
    """Add `selftest` to the subcommands of a parser."""
    parser = commands.add_parser("selftest", help="the gate against the same code and against planted slowdowns")
    parser.add_argument("--same", type=int, default=0, metavar="N", help="runs of the same code on both sides")
    parser.add_argument("--planted", type=int, default=0, metavar="N", help="runs of every planted slowdown")
    parser.add_argument(
        "--mutant", action="append", choices=MUTANTS, metavar="NAME", help="only this one; may be repeated"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="outcomes; resumed where it exists")
    parser.add_argument(
        "--merge", type=Path, nargs="+", default=[], metavar="FILE", help="take outcomes from these too"
    )
    parser.add_argument("--accept-noise", action="store_true", help="make these runs the known noise of this device")
    parser.add_argument("--seconds", type=float, metavar="S", help="start no further run after so long")
    parser.set_defaults(command=lambda options: _selftest(options, progress, case_of))


def _selftest(options: argparse.Namespace, progress: Progress, case_of: CaseOf) -> int:
    import torch

    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    record = results.load_selftest(options.output) if options.output.exists() else None
    for path in options.merge:
        record = _merged(record, results.load_selftest(path), path)
    wanted = [MUTANTS[name] for name in options.mutant] if options.mutant else list(MUTANTS.values())
    planted = [mutant for mutant in wanted if mutant.device_type == device_type]
    deadline = time.monotonic() + (options.seconds or float("inf"))
    todo: list[tuple[Mutant | None, int]] = [(None, number) for number in range(options.same)]
    todo += [(mutant, number) for number in range(options.planted) for mutant in planted]
    done = {(outcome.planted, outcome.seed) for outcome in _outcomes(record)}
    for mutant, number in todo:
        name, seed = mutant.name if mutant else SAME, 1 + number
        if (name, seed) in done:
            continue
        if time.monotonic() > deadline:
            print(f"The time is over; run the same command again for what is left, with --output {options.output}")
            break
        run, outcome = _one(mutant, seed, device_type, progress, case_of)
        record = _added(record, run, outcome)
        results.save_selftest(record, options.output)
        print(_line(outcome), flush=True)
    if record is None:
        raise ValueError("selftest: expected --same or --planted; there is nothing to show yet")
    results.save_selftest(record, options.output)
    if options.accept_noise:
        print(f"Known noise: {_accept_noise(record)}")
    print(table(_outcomes(record)))
    return 0 if _all_good(_outcomes(record)) else 1


def _one(
    mutant: Mutant | None, seed: int, device_type: str, progress: Progress, case_of: CaseOf
) -> tuple[results.Run, Outcome]:
    """The gate as `compare` runs it, quick workloads or those of the mutant, up to the policy's looks."""
    start = time.monotonic()
    name = mutant.name if mutant else SAME
    names = list(mutant.workloads if mutant else workloads.QUICK)
    run: results.Run | None = None
    with ExitStack() as stack:
        base = stack.enter_context(sides.working_tree())
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="mutant-")))
        if mutant:
            mutant.plant(folder)
        else:
            sides.copy_package(folder)
        assert base.state is not None
        head = sides.Side(folder, dataclasses.replace(base.state, file=f"{name} planted"))
        looks = 0
        judgement = None
        while looks < gate.Policy().looks and (judgement is None or judgement.status is gate.Status.INCONCLUSIVE):
            asked = names if judgement is None else judgement.doubtful()
            chosen, _ = workloads.select(asked, gpu=True)
            processes = PROCESSES[device_type] if run is None else MORE_PROCESSES
            first = 0 if run is None else 1 + max(check.process for check in run.checks)
            with progress(f"{name} {seed}", len(chosen) * processes) as line:
                more = measure.measure(
                    chosen, head=head, base=base, processes=processes, seed=seed, first_process=first, progress=line
                )
            run = more if run is None else run.with_more(more)
            looks += 1
            # The comparison alone: floors and baselines are tested elsewhere.
            case = gate.Case(noise=case_of(run).noise)
            judgement = gate.comparison(gate.judge(run, case))
    assert run is not None
    assert judgement is not None
    worst = _worst(judgement)
    ratios = {" ".join(key): logs for key, logs in gate.process_ratios(run).items()} if mutant is None else {}
    outcome = Outcome(
        name,
        seed,
        judgement.status.name,
        worst.ratio.estimate - 1 if worst.ratio else 0.0,
        f"{worst.workload} {worst.clock}",
        looks,
        round(time.monotonic() - start, 1),
        ratios,
    )
    return run, outcome


def _worst(judgement: gate.Judgement) -> gate.Verdict:
    ranks = {gate.Status.REGRESSION: 2, gate.Status.INCONCLUSIVE: 1, gate.Status.PASS: 0}
    return max(judgement.verdicts, key=lambda v: (ranks[v.status], v.ratio.estimate if v.ratio else 0.0))


def _added(record: dict[str, Any] | None, run: results.Run, outcome: Outcome) -> dict[str, Any]:
    environment = {**dataclasses.asdict(run.environment), "device_hash": None}
    if record is None:
        record = {"environment": environment, "runs": []}
    return {**record, "command": run.command, "runs": [*record["runs"], dataclasses.asdict(outcome)]}


def _outcomes(record: dict[str, Any] | None) -> list[Outcome]:
    return [Outcome(**fields) for fields in record["runs"]] if record else []


def _merged(record: dict[str, Any] | None, other: dict[str, Any], path: Path) -> dict[str, Any]:
    if record is None:
        return other
    if other["environment"]["device"] != record["environment"]["device"]:
        raise results.RecordError(f"{path}: of {other['environment']['device']}, not {record['environment']['device']}")
    return {**record, "runs": record["runs"] + [run for run in other["runs"] if run not in record["runs"]]}


def _accept_noise(record: dict[str, Any]) -> Path:
    runs = [
        {tuple(key.split(" ", 2)): logs for key, logs in outcome.ratios.items()}
        for outcome in _outcomes(record)
        if outcome.planted == SAME
    ]
    environment = record["environment"]
    processes = sum(len(next(iter(run.values()))) for run in runs)
    if processes < LEAST_PROCESSES:
        raise ValueError(
            f"--accept-noise: expected runs of the same code in {LEAST_PROCESSES} processes; got {processes}"
        )
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    noise = results.NoiseRecord(environment["device"], created, environment["commit"], gate.noise_entries(runs))  # type: ignore[arg-type]
    path = results.device_path(NOISE, environment["device"])
    results.save_noise(noise, path)
    return path


def _good(outcome: Outcome) -> bool:
    return outcome.status == ("PASS" if outcome.planted == SAME else "REGRESSION")


def _all_good(outcomes: Sequence[Outcome]) -> bool:
    return all(_good(one) or (one.planted == SAME and one.status == "INCONCLUSIVE") for one in outcomes)


def _line(outcome: Outcome) -> str:
    return (
        f"{outcome.planted:22} {outcome.status:13} {outcome.slowdown:+8.1%}  {outcome.where:36} "
        f"{outcome.looks} looks {outcome.seconds:5.0f} s"
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Every kind of run: how often it ended as it should, the slowdown found, the time taken; and what that shows."""
    from scipy import stats

    lines = [f"{'planted':22} {'right':>7}  {'slowdown found':>16}  {'where':36} {'s a run':>7}"]
    for name in dict.fromkeys(outcome.planted for outcome in outcomes):
        runs = [outcome for outcome in outcomes if outcome.planted == name]
        right = sum(map(_good, runs))
        found = f"{min(r.slowdown for r in runs):+.1%} to {max(r.slowdown for r in runs):+.1%}"
        seconds = sum(r.seconds for r in runs) / len(runs)
        lines.append(f"{name:22} {right:>3}/{len(runs):<3}  {found:>16}  {runs[0].where:36} {seconds:7.0f}")
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
    return "\n".join(lines)
