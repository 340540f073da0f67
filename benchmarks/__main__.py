"""Measure, judge and publish from the command line: `python -m benchmarks --help`.

Exit codes: 0 pass, 1 regression, 2 usage or environment error, 3 inconclusive.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import gate, history, measure, report, results, workloads

ROOT = Path(__file__).resolve().parent.parent
BASELINES = Path(__file__).with_name("baselines")
OUTPUT = ROOT / ".bench"
USAGE_ERROR = 2
PROCESSES = {"cuda": 4, "cpu": 5}
MORE_PROCESSES = 3  # for workloads in doubt, at every further look

EXAMPLES = """examples:
  python -m benchmarks bench                     measure, judge, add to the history, publish: what `make bench` does
  python -m benchmarks run --quick               four workloads into .bench/latest.json, no verdict
  python -m benchmarks run --workload 1x32x128000-fp16-100 --output one.json
  python -m benchmarks gate .bench/latest.json --require-baseline
  python -m benchmarks report .bench/latest.json --markdown
  python -m benchmarks baseline .bench/latest.json --accept --reason "first measurement on an H100"
"""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (results.RecordError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    selecting = argparse.ArgumentParser(add_help=False)
    selecting.add_argument("--quick", action="store_true", help="four workloads instead of all")
    selecting.add_argument("--workload", action="append", metavar="NAME", help="only this one; may be repeated")
    measuring = argparse.ArgumentParser(add_help=False, parents=[selecting])
    measuring.add_argument("--processes", type=int, metavar="N", help="fresh processes to measure in")
    measuring.add_argument("--seed", type=int, default=0, help="of inputs and of the order in pairs (default 0)")
    measuring.add_argument("--output", type=Path, default=OUTPUT / "latest.json", metavar="FILE", help="the record")
    judging = argparse.ArgumentParser(add_help=False)
    judging.add_argument("--require-baseline", action="store_true", help="no baseline for this device is an error")
    judging.add_argument("--markdown", action="store_true", help="print Markdown, as for a pull request's summary")

    run = commands.add_parser("run", parents=[measuring], help="measure into a record")
    run.set_defaults(command=_run)
    judge = commands.add_parser("gate", parents=[selecting, judging], help="judge a record")
    judge.add_argument("record", type=Path)
    judge.set_defaults(command=_gate)
    show = commands.add_parser("report", parents=[judging], help="show a record's table; exits 0 whatever the verdict")
    show.add_argument("record", type=Path)
    show.set_defaults(command=_report)
    baseline = commands.add_parser("baseline", help="make a record the baseline of its device, for review")
    baseline.add_argument("record", type=Path)
    baseline.add_argument("--accept", action="store_true", required=True, help="say that you mean it")
    baseline.add_argument("--reason", required=True, metavar="TEXT", help="why; it is stored in the baseline")
    baseline.set_defaults(command=_baseline)
    bench = commands.add_parser(
        "bench", parents=[measuring, judging], help="the whole path, from measuring to the page"
    )
    bench.set_defaults(command=_bench)
    dashboard = commands.add_parser("dashboard", help="publish the page from a record and the history as it is")
    dashboard.add_argument("record", type=Path, nargs="?", default=OUTPUT / "latest.json")
    dashboard.set_defaults(command=_dashboard)
    return parser


def _run(options: argparse.Namespace) -> int:
    run = _measure(options)
    results.save_run(run, options.output)
    print(f"Record: {options.output}")
    return 0


def _gate(options: argparse.Namespace) -> int:
    run = results.load_run(options.record)
    gpu = run.environment.device_type == "cuda"
    expected, _ = workloads.select(options.workload, gpu=gpu, quick=options.quick)
    baseline = baseline_of(run, options.require_baseline)
    judgement = gate.judge(run, gate.Policy(), baseline, [workload.name for workload in expected])
    _show(run, judgement, options.markdown)
    return judgement.status.value


def _report(options: argparse.Namespace) -> int:
    run = results.load_run(options.record)
    _show(run, _judge_as_asked(run, baseline_of(run, options.require_baseline)), options.markdown)
    return 0


def _judge_as_asked(run: results.Run, baseline: results.Baseline | None) -> gate.Judgement:
    """Judge what the run was asked to measure; a note says if that is a part."""
    return gate.judge(run, gate.Policy(), baseline, run.workloads)


def _baseline(options: argparse.Namespace) -> int:
    run = results.load_run(options.record)
    policy = gate.Policy()
    gpu = run.environment.device_type == "cuda"
    expected, _ = workloads.select(None, gpu=gpu)
    judgement = gate.judge(run, policy, None, [workload.name for workload in expected])
    if judgement.status is not gate.Status.PASS:
        raise ValueError(f"record: only a run that passes can become a baseline; {report.headline(run, judgement)}")
    if run.environment.dirty:
        raise ValueError("record: it was measured with uncommitted changes; commit them and measure again")
    entries: dict[str, dict[str, results.BaselineEntry]] = {}
    for verdict in judgement.verdicts:
        assert verdict.speedup is not None
        assert verdict.fused_us is not None
        assert verdict.reference_us is not None
        series = [one for one in run.series if (one.workload, one.clock) == (verdict.workload, verdict.clock)]
        tolerance = gate.tolerance_of(series, verdict.clock, policy)
        entries.setdefault(verdict.workload, {})[verdict.clock] = results.BaselineEntry(
            verdict.speedup.estimate, verdict.fused_us, verdict.reference_us, tolerance
        )
    environment = run.environment
    path = results.baseline_path(BASELINES, environment.device)
    baseline = results.Baseline(
        environment.device, run.created, environment.commit, options.reason,
        environment.torch, environment.triton, environment.driver, entries,
    )  # fmt: skip
    against_itself = gate.judge(run, policy, baseline)
    if against_itself.status is not gate.Status.PASS:
        raise ValueError(f"record: too noisy to be held against itself; {report.headline(run, against_itself)}")
    results.save_baseline(baseline, path)
    print(f"Baseline of {environment.device}: {path}. It counts once it is reviewed and merged.")
    return 0


def _bench(options: argparse.Namespace) -> int:
    """Up to three looks: what is in doubt is measured in more processes, and judged again."""
    policy = gate.Policy()
    run = _measure(options)
    results.save_run(run, options.output)
    baseline = baseline_of(run, options.require_baseline)
    judgement = _judge_as_asked(run, baseline)
    for _ in range(policy.looks - 1):
        if not judgement.doubtful():
            break
        print(f"In doubt, measuring more: {', '.join(judgement.doubtful())}")
        run = _measure_more(run, judgement.doubtful(), options)
        judgement = _judge_as_asked(run, baseline)
    results.save_run(run, options.output)
    page = history.record_and_publish(options.output, run, judgement, OUTPUT / "dashboard")
    _show(run, judgement, options.markdown)
    print(f"Record:    {options.output}")
    print(f"Dashboard: {page}")
    return judgement.status.value


def _dashboard(options: argparse.Namespace) -> int:
    run = results.load_run(options.record)
    judgement = _judge_as_asked(run, baseline_of(run, required=False))
    print(f"Dashboard: {history.publish(run, judgement, OUTPUT / 'dashboard')}")
    return 0


def _measure(options: argparse.Namespace) -> results.Run:
    import torch

    gpu = torch.cuda.is_available()
    chosen, skipped = workloads.select(options.workload, gpu=gpu, quick=options.quick)
    processes = options.processes or PROCESSES["cuda" if gpu else "cpu"]
    if processes < 1:
        raise ValueError(f"--processes: expected at least 1; got {processes}")
    with _progress(len(chosen) * processes) as progress:
        return measure.measure(chosen, skipped=skipped, processes=processes, seed=options.seed, progress=progress)


def _measure_more(run: results.Run, names: list[str], options: argparse.Namespace) -> results.Run:
    chosen, _ = workloads.select(names, gpu=True)
    first = 1 + max(check.process for check in run.checks)
    with _progress(len(chosen) * MORE_PROCESSES) as progress:
        more = measure.measure(
            chosen, processes=MORE_PROCESSES, seed=options.seed, first_process=first, progress=progress
        )
    if more.environment != run.environment:
        raise RuntimeError(f"the machine or the checkout changed: {run.environment}, then {more.environment}")
    return dataclasses.replace(run, checks=run.checks + more.checks, series=run.series + more.series)


@contextmanager
def _progress(steps: int) -> Iterator[measure.Progress]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("Measuring"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("starting", total=steps)
        begun = 0

        def progress(text: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, description=text)
            begun += 1

        yield progress
        bar.update(task, completed=steps, description="done")


def baseline_of(run: results.Run, required: bool) -> results.Baseline | None:
    path = results.baseline_path(BASELINES, run.environment.device)
    if path.exists():
        return results.load_baseline(path)
    if required:
        raise ValueError(f"baseline: none for {run.environment.device}, expected {path}; see `baseline --help`")
    return None


def _show(run: results.Run, judgement: gate.Judgement, as_markdown: bool) -> None:
    if as_markdown:
        print(report.markdown(run, judgement))
    else:
        report.print_terminal(run, judgement)


if __name__ == "__main__":
    sys.exit(main())
