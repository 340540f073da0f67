"""The kernel beside others that do the same step, and beside what bounds them, as far as was found.

Results come first: what does not leave the reference's ids on the very inputs to be timed is named and not timed. They
come last, too: of what does not leave them any more, the times are dropped.

Exit codes: 0 measured, 1 a result is wrong or fused, the reference, a limit or the inputs failed, 2 usage or
environment error.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from pathlib import Path

if not __package__:  # started by its path: Python put this folder first, whose modules nobody means by their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import implementations, results, session, table, whole, workloads

MODULE = "benchmarks.bench_triton_post_process"
WRONG, USAGE_ERROR = 1, 2
PICTURES = (".png", ".svg")

EXAMPLES = """examples:
  python benchmarks/bench_triton_post_process.py             every workload; cold, and warm where the cache holds it
  python benchmarks/bench_triton_post_process.py --quick     four workloads
  python benchmarks/bench_triton_post_process.py --overview  1 to 128 blocks, every dtype, all to no rows masked
  python benchmarks/bench_triton_post_process.py --workload 2x16x32000-bf16-50 --workload 2x16x32000-bf16-50-warm
  python benchmarks/bench_triton_post_process.py --peer mine.py:post_process --json table.json --plot table.svg
  python benchmarks/bench_triton_post_process.py --show table.json --plot table.png
  ncu --profile-from-start off --clock-control none --set full --export fused \\
    python benchmarks/bench_triton_post_process.py --ncu 1x32x157184-bf16-100
"""


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.ncu:
            return _call_under_profiler(options.ncu, options.seed)
        if options.plot:
            _check_picture(options.plot)
            whole.expect_writable("--plot", options.plot)
        if options.json:
            whole.expect_writable("--json", options.json)
        shown = results.load(results.KernelTable, options.show) if options.show else _measured(options)
        if options.json:
            results.save(shown, options.json)
        table.print_terminal(shown)
        if options.plot:
            table.plot(shown, options.plot)
            print(f"Picture: {options.plot}")
        if options.json:
            print(f"Record: {options.json}")
        return 0 if options.show else _exit_code(shown)
    except (results.RecordError, ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        what = f"what had ended is in {options.json}, if anything" if options.json else "what was measured is lost"
        print(f"interrupted; {what}, nothing is half written", file=sys.stderr)
        return 130


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="four workloads instead of all")
    what.add_argument(
        "--overview", action="store_true",
        help=f"{len(workloads.OVERVIEW)} others: one to 128 blocks, every dtype, all to none of the rows masked",
    )  # fmt: skip
    what.add_argument(
        "--workload", action="append", metavar="NAME",
        help="BLOCKSxPOSITIONSxVOCABULARY-DTYPE-PERCENT_MASKED[-warm], any; may be repeated",
    )  # fmt: skip
    what.add_argument("--show", type=Path, metavar="FILE", help="a record's table again; nothing is measured")
    what.add_argument(
        "--ncu", nargs="?", const="1x32x128000-fp16-100", metavar="NAME",
        help="one fused call of a workload (default 1x32x128000-fp16-100), for Nsight Compute: see below",
    )  # fmt: skip
    parser.add_argument(
        "--peer", action="append", default=[], metavar="FILE.py:FUNCTION",
        help="measure this as well, called with logits (B, L, V), input_ids (B, L), mask_id and threshold, of which it "
        "updates input_ids alone; may be repeated",
    )  # fmt: skip
    parser.add_argument("--skip-correctness", action="store_true", help="time what may be wrong; the output says so")
    parser.add_argument("--seed", type=session.seed, help="of inputs and of the order of turns (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record, with every sample")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it, as .png or .svg")
    options = parser.parse_args(arguments)
    if (options.show or options.ncu) and (options.peer or options.skip_correctness or options.json):
        parser.error("--show and --ncu measure no table: --peer, --skip-correctness and --json are not for them")
    if options.ncu and options.plot:
        parser.error("--ncu measures no table: --plot is not for it")
    if options.show and options.seed is not None:
        parser.error("--show measures nothing: --seed is not for it")
    options.seed = options.seed or 0
    return options


def _measured(options: argparse.Namespace) -> results.KernelTable:
    names = workloads.OVERVIEW if options.overview else dict.fromkeys(options.workload or ())
    named = [workloads.parse(name) for name in names]
    peers = [implementations.peer(place) for place in options.peer]
    peer_names = [peer.name for peer in peers]
    if len(set(peer_names)) < len(peer_names):
        raise ValueError(f"--peer: expected each name once; got {', '.join(peer_names)}")
    import torch

    from benchmarks.measure.table import measure_table

    gpu = torch.cuda.is_available()
    chosen, skipped = named, []
    if options.overview and not gpu:
        chosen, skipped = ([one for one in named if one.needs_gpu is needs] for needs in (False, True))
    elif not named:
        chosen, skipped = (
            [one for one in some if isinstance(one, workloads.Workload)]
            for some in workloads.select(None, gpu=gpu, quick=options.quick)
        )
    if gpu and not named and not options.quick:
        chosen = workloads.with_warm(chosen, torch.cuda.get_device_properties(0).L2_cache_size)
    with session.progress("Measuring", len(chosen)) as step:
        return measure_table(
            chosen, peers=peers, skipped=skipped, checked=not options.skip_correctness, seed=options.seed,
            module=MODULE, progress=step,
            keep=lambda table: results.save(table, options.json) if options.json else None,
        )  # fmt: skip


def _call_under_profiler(name: str, seed: int) -> int:
    workload = workloads.parse(name)
    import torch

    from benchmarks.measure.bench import Bench

    if not torch.cuda.is_available():
        raise ValueError("--ncu: expected a CUDA GPU to profile on; there is none here")
    bench = Bench(workload.name, seed)
    del bench.implementations["reference"]
    bench.warm_up()
    bench.call_under_profiler()
    print(f"{workload.name}: one fused call between cudaProfilerStart and cudaProfilerStop", file=sys.stderr)
    return 0


def _check_picture(path: Path) -> None:
    """Before anything is measured for it."""
    if path.suffix not in PICTURES:
        raise ValueError(f"--plot: expected a file that ends in {' or '.join(PICTURES)}; got {str(path)!r}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot: matplotlib is not installed; it is in the dependency group bench: pip --group bench")


def _exit_code(shown: results.KernelTable) -> int:
    """A wrong peer counts; one that fails does not."""
    ours = ("fused", "reference", results.INPUTS, *shown.limits)
    grave = [
        one for one in shown.absences if one.kind == "wrong" or (one.kind == "failed" and one.implementation in ours)
    ]
    return WRONG if grave else 0


if __name__ == "__main__":
    sys.exit(main())
