"""Measure, judge and publish from the command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

try:
    from benchmarks import (
        baseline,
        codegen,
        doctor,
        gate,
        history,
        measure,
        noise,
        policy,
        report,
        results,
        selftest,
        service,
        session,
        verification,
        whole,
        workloads,
    )
    from benchmarks.e2e import command as e2e
    from benchmarks.history import command, machine, store
    from benchmarks.measure import sides
    from benchmarks.site import command as dashboard
    from benchmarks.site.overview import Verdict
except ModuleNotFoundError as missing:  # which Python would end with the code of a regression
    if __name__ != "__main__":
        raise
    print(f"error: {missing}: it is in the dependency group bench: pip install --group bench", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    print("interrupted before anything was measured", file=sys.stderr)
    sys.exit(130)

OUTPUT = Path(os.environ.get("DLLM_KERNELS_OUTPUT", Path(__file__).resolve().parent.parent / ".bench"))
USAGE_ERROR = 2

EXIT_CODES = "Exit codes: 0 pass, 1 regression, 2 usage or environment error, 3 inconclusive, 130 interrupted."
WITHOUT_VERDICT = ("run", "report", "baseline", "noise", "record", "machine", "results")
EXIT_CODES_WITHOUT = "Exit codes: 0 done, 2 usage or environment error, 130 interrupted."
EXAMPLES = """examples:
  python -m benchmarks doctor                    is this machine fit to measure on
  python -m benchmarks bench                     measure, judge, add to the history, publish: what `make bench` does
  python -m benchmarks compare main              the working tree beside main, in lock-step
  python -m benchmarks compare v0.1 v0.2 --quick any two commits, four workloads
  python -m benchmarks run --quick               four workloads into .bench/latest.json, no verdict
  python -m benchmarks run --workload 1x32x128000-fp16-100 --output one.json
  python -m benchmarks gate .bench/latest.json --require-baseline
  python -m benchmarks verify .bench/latest.json derive the recorded verdicts again from the raw samples
  python -m benchmarks report .bench/latest.json --markdown
  python -m benchmarks baseline .bench/latest.json --accept --reason "first measurement on an H100"
  python -m benchmarks compare HEAD HEAD --processes 10 --output same-1.json
  python -m benchmarks noise same-1.json same-2.json same-3.json --accept
  python -m benchmarks e2e                       decode word problems with the step in three modes
  python -m benchmarks noise more.json --accept --add  further processes of the same code
  python -m benchmarks selftest --same 30 --planted 5 --output selftest.json
  python -m benchmarks selftest --show benchmarks/evidence/selftest-nvidia-h200.json
"""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # Workers end with us however we are told to; a shell starts background jobs with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        code = int(options.command(options))
        sys.stdout.flush()
        return code
    except (BrokenPipeError, SystemExit):
        # Whoever read our output has had enough. rich makes of it an exit with the code of a regression, and Python
        # would complain again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USAGE_ERROR
    except (ValueError, RuntimeError, OSError) as error:
        # What a record says may be in it; of several lines, each.
        print("error: " + "\n".join(map(report.printable, str(error).splitlines())), file=sys.stderr)
        return USAGE_ERROR
    except Exception as error:  # after a traceback, Python's own exit code is that of a regression
        traceback.print_exception(error)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted; what was measured since the last record is lost, nothing is half written", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\n{EXIT_CODES}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    selecting = argparse.ArgumentParser(add_help=False)
    selecting.add_argument("--quick", action="store_true", help="four workloads instead of all")
    selecting.add_argument("--workload", action="append", metavar="NAME", help="this one; may be repeated")
    measuring = argparse.ArgumentParser(add_help=False, parents=[selecting])
    measuring.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="fresh processes a side to measure in (default 3 on a GPU, 5 without)",
    )
    measuring.add_argument(
        "--seed", type=session.seed, default=0, help="of inputs and of the order in pairs (default 0)"
    )
    measuring.add_argument("--output", type=Path, default=OUTPUT / "latest.json", metavar="FILE", help="the record")
    judging = argparse.ArgumentParser(add_help=False)
    judging.add_argument("--require-baseline", action="store_true", help="no baseline for this device is an error")
    judging.add_argument(
        "--max-slowdown", type=_percent, metavar="PERCENT", help="of device time against base, instead of 1 %%"
    )
    form = judging.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print Markdown, as for a pull request's summary")
    form.add_argument("--json", action="store_true", help="print the verdicts as JSON")

    run = commands.add_parser("run", parents=[measuring], help="measure into a record")
    run.add_argument("--json", action="store_true", help="print where the record is, and of what, as JSON")
    run.set_defaults(command=_run)
    compare = commands.add_parser(
        "compare", parents=[measuring, judging], help="two states of the package side by side, and the verdict"
    )
    compare.add_argument("base", help="a commit")
    compare.add_argument("head", nargs="?", help="a commit (default: the working tree, edits included)")
    compare.set_defaults(command=_compare)
    judge = commands.add_parser("gate", parents=[selecting, judging], help="judge a record")
    judge.add_argument("record", type=Path, help="what `run`, `bench` or `compare` wrote")
    judge.set_defaults(command=_gate)
    verify = commands.add_parser("verify", help="derive a record's verdicts again from its raw samples")
    verify.add_argument("record", type=Path, help="what `bench` or `compare` wrote")
    verify.add_argument("--json", action="store_true", help="print the verdicts as JSON")
    verify.set_defaults(command=_verify)
    show = commands.add_parser("report", parents=[judging], help="show a record's table; exits 0 whatever the verdict")
    show.add_argument("record", type=Path, help="what `run`, `bench` or `compare` wrote")
    show.set_defaults(command=_report)
    becoming = commands.add_parser("baseline", help="make records the baseline of their device, for review")
    becoming.add_argument(
        "records", type=Path, nargs="+", metavar="RECORD", help="one of `run`, one of `compare`, or both"
    )
    becoming.add_argument("--accept", action="store_true", required=True, help="say that you mean it")
    becoming.add_argument("--reason", required=True, metavar="TEXT", help="why; it is stored in the baseline")
    becoming.add_argument("--json", action="store_true", help="print the baseline as JSON")
    becoming.set_defaults(command=_baseline)
    learn = commands.add_parser("noise", help="make records of a commit beside itself the known noise of their device")
    learn.add_argument(
        "records",
        type=Path,
        nargs="+",
        metavar="RECORD",
        help=f"of `compare HEAD HEAD`; {noise.LEAST_PROCESSES} processes of a pair in all",
    )
    learn.add_argument("--accept", action="store_true", required=True, help="say that you mean it")
    learn.add_argument(
        "--add", action="store_true", help="to what is known already of the same code, as further processes of it"
    )
    learn.add_argument("--json", action="store_true", help="print what is known as JSON")
    learn.set_defaults(command=_noise)
    bench = commands.add_parser(
        "bench", parents=[measuring, judging], help="the whole path, from measuring to the page"
    )
    bench.set_defaults(command=_bench)
    recording = commands.add_parser("record", help="write a record into asv's results, as its commit's")
    recording.add_argument("record", type=Path, nargs="?", default=OUTPUT / "latest.json")
    recording.set_defaults(command=_record)
    naming = commands.add_parser("machine", help="tell asv this machine's name, the device's model, and print it")
    naming.set_defaults(command=_machine)
    command.add_command(commands, history.ROOT, history.RESULTS)
    store.add_command(commands, history.ROOT, history.RESULTS)
    dashboard.add_command(commands, history.ROOT, OUTPUT)
    selftest.add_command(commands)
    doctor.add_command(commands)
    codegen.add_command(commands)
    e2e.add_command(commands, OUTPUT)
    service.add_command(commands)
    for name, one in commands.choices.items():
        if one.epilog is None:
            examples = [line for line in EXAMPLES.splitlines() if f"benchmarks {name} " in line]
            codes = EXIT_CODES_WITHOUT if name in WITHOUT_VERDICT else EXIT_CODES
            one.epilog = "\n".join([*(["examples:"] if examples else []), *examples, "", codes])
            one.formatter_class = argparse.RawDescriptionHelpFormatter
    return parser


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 100; got {text}")
    return value


def _run(options: argparse.Namespace) -> int:
    whole.expect_writable("--output", options.output)
    chosen, skipped = _chosen(options)
    run = session.measured(chosen, skipped=skipped, processes=options.processes, seed=options.seed)
    results.save(run, options.output)
    if options.json:
        told = {"device": run.environment.device, "workloads": run.workloads, "seconds": run.seconds}
        print(json.dumps({"record": str(options.output), **told}))
    else:
        print(f"Record: {options.output}")
    return 0


def _gate(options: argparse.Namespace) -> int:
    run = results.load(results.Run, options.record)
    judgement = gate.judge(run, _case(run, options))
    _show(run, judgement, options)
    return judgement.status.value


def _report(options: argparse.Namespace) -> int:
    run = results.load(results.Run, options.record)
    _show(run, gate.judge(run, _case(run, options, run.workloads)), options)
    return 0


def _verify(options: argparse.Namespace) -> int:
    run = results.load(results.Run, options.record)
    judgement, differences = verification.verify(run)
    if differences:
        raise ValueError(f"{options.record}: its samples do not give its verdicts:\n" + "\n".join(differences))
    case = session.case_of(run)
    others = [f"It was judged by another {one}" for one in verification.judged_otherwise(run, case)]
    here = verification.by_the_rules_of(run, case) if others else judgement
    status = gate.worst([judgement.status, here.status])
    if options.json:
        told = {"status": status.name, "recorded_status": judgement.status.name, "judged_otherwise": others}
        print(json.dumps({**report.plain(run, judgement), **told}, indent=1))
        return status.value
    print(f"{options.record}: all {len(judgement.verdicts)} verdicts follow from its samples.")
    print(report.headline(run, judgement))
    for other in others:
        print(other)
    if others:
        print(f"On the same workloads by this repository's rules: {report.headline(run, here)}")
    return status.value


def _baseline(options: argparse.Namespace) -> int:
    runs = [results.load(results.Run, path) for path in options.records]
    device = runs[0].environment.device
    path = results.device_path(session.BASELINES, device)
    older = results.load(results.Baseline, path) if path.exists() else None
    accepted = baseline.accepted(runs, options.reason, session.noise_of(device), older)
    results.save(accepted, path)
    if options.json:
        print(json.dumps(dataclasses.asdict(accepted), indent=1))
        return 0
    if older is not None:
        _print_lower(accepted, older)
    kept = sum(bool(entry.source) for *_, entry in baseline.entries(accepted))
    of_others = f", {kept} entries as they were" if kept else ""
    print(f"Baseline of {device}{of_others}: {path}. It counts once it is reviewed and merged.")
    return 0


def _print_lower(accepted: results.Baseline, older: results.Baseline) -> None:
    """What is allowed from now on and was not before."""
    for workload, clock, beside, entry in baseline.entries(accepted):
        before = older.of(workload, clock, beside)
        if before is not None and entry.speedup < before.speedup * (1 - before.tolerance):
            print(f"Lower: {workload} on {clock} beside {beside}, {before.speedup:.2f}x to {entry.speedup:.2f}x")


def _noise(options: argparse.Namespace) -> int:
    runs = [results.load(results.Run, path) for path in options.records]
    learned = noise.learned(runs, session.noise_of(runs[0].environment.device), add=options.add)
    path = session.noise_path(learned.device)
    results.save(learned, path)
    if options.json:
        print(json.dumps(dataclasses.asdict(learned), indent=1))
        return 0
    print(f"Known noise of {learned.device}: {path}. It counts once it is reviewed and merged.")
    return 0


def _bench(options: argparse.Namespace) -> int:
    run, judgement = _measure_and_judge(options)
    _show(run, judgement, options)  # first: what may fail from here on loses no verdict
    with redirect_stdout(sys.stderr if options.json else sys.stdout):
        history.record(options.output, run)
    verdict = Verdict(machine.machine_name(run.environment), run, judgement)
    page = dashboard.build(OUTPUT / "dashboard", history.ROOT, verdict=verdict)
    if not options.json:
        print(f"Record:    {options.output}")
        print(f"Dashboard: {page}")
    return judgement.status.value


def _compare(options: argparse.Namespace) -> int:
    with ExitStack() as stack:
        base = stack.enter_context(sides.commit(options.base))
        head = stack.enter_context(sides.commit(options.head) if options.head else sides.working_tree())
        run, judgement = _measure_and_judge(options, head, base)
    _show(run, judgement, options)
    if not options.json:
        print(f"Record: {options.output}")
    return judgement.status.value


def _measure_and_judge(
    options: argparse.Namespace, head: sides.Side = sides.INSTALLED, base: sides.Side | None = None
) -> tuple[results.Run, gate.Judgement]:
    whole.expect_writable("--output", options.output)
    chosen, skipped = _chosen(options)
    _expect_judgeable(options, [workload.name for workload in chosen], base is not None)
    run, judgement, _ = session.judged(
        chosen,
        lambda run: gate.judge(run, _case(run, options)),
        head=head,
        base=base,
        skipped=skipped,
        processes=options.processes,
        seed=options.seed,
        keep=lambda run: results.save(run, options.output),
    )
    run = verification.with_verdicts(run, _case(run, options), judgement)
    results.save(run, options.output)
    return run, judgement


def _expect_judgeable(options: argparse.Namespace, names: Sequence[str], is_compared: bool) -> None:
    """Before minutes of measuring, that what is measured here can be judged as it is asked for."""
    device = measure.device()
    if options.require_baseline:
        session.expect_baseline(device)
    _, known, _ = session.rules_of(device)
    if options.max_slowdown is not None:
        _expect_slowdown_of_a_gpu(measure.has_gpu(), is_compared)
        if known is not None:
            count = options.processes or session.PROCESSES["cuda"]
            policy.refuse_what_noise_forbids(dict.fromkeys(names, count), _policy(options), known)


def _policy(options: argparse.Namespace) -> policy.Policy:
    usual = policy.Policy()
    if options.max_slowdown is None:
        return usual
    asked = {**usual.slowdowns["cuda"], "device_us": options.max_slowdown / 100}
    return dataclasses.replace(usual, slowdowns={**usual.slowdowns, "cuda": asked})


def _expect_slowdown_of_a_gpu(gpu: bool, is_compared: bool) -> None:
    if not gpu:
        raise ValueError("--max-slowdown: expected a run on a GPU; on a CPU there is no device clock")
    if not is_compared:
        raise ValueError("--max-slowdown: expected a record of `compare`; this one has no base to be slower than")


def _chosen(options: argparse.Namespace) -> tuple[list[workloads.AnyWorkload], list[workloads.AnyWorkload]]:
    from rich.console import Console

    with Console(stderr=True).status("importing PyTorch"):
        gpu = measure.has_gpu()
    return workloads.select(options.workload, gpu=gpu, quick=options.quick)


def _record(options: argparse.Namespace) -> int:
    run = results.load(results.Run, options.record)
    return 0 if history.record(options.record, run) else USAGE_ERROR


def _machine(_options: argparse.Namespace) -> int:
    print(machine.register(machine.this_machine()))
    return 0


def _case(run: results.Run, options: argparse.Namespace, asked: Sequence[str] | None = None) -> gate.Case:
    if asked is None and (options.workload or options.quick):
        gpu = run.environment.device_type == "cuda"
        asked = [workload.name for workload in workloads.select(options.workload, gpu=gpu, quick=options.quick)[0]]
    case = session.case_of(run, options.require_baseline, asked)
    if options.max_slowdown is None:
        return case
    _expect_slowdown_of_a_gpu(run.environment.device_type == "cuda", run.base is not None)
    case = dataclasses.replace(case, policy=_policy(options))
    if case.noise is not None:
        on_the_device = {(check.workload, check.process) for check in run.checks if check.covers("device_us")}
        processes = Counter(workload for workload, _ in on_the_device)
        policy.refuse_what_noise_forbids(processes, case.policy, case.noise)
    return case


def _show(run: results.Run, judgement: gate.Judgement, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(report.plain(run, judgement), indent=1))
    elif options.markdown:
        print(report.markdown(run, judgement))
    else:
        report.print_terminal(run, judgement)


if __name__ == "__main__":
    sys.exit(main())
