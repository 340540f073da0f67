"""Is this machine fit to measure on, and what to mend: `python -m benchmarks doctor`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import noise, results, session
from benchmarks.measure import machine

BUSY = 0.25  # of the processors: load from others above which times on the host's clock are not worth taking
HOT_C = 85
USAGE_ERROR = 2


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    fit: bool | None  # None: worth knowing, and no obstacle
    what: str
    mend: str = ""


def add_command(commands: Any) -> None:
    """Add `doctor` to the subcommands of a parser."""
    parser = commands.add_parser("doctor", help="is this machine fit to measure on, and what to mend")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    environment = machine.describe_environment()
    found = list(_host())
    if gpu := machine.current_gpu():
        found += _gpu(gpu)
    else:
        found.append(
            Finding(None, "no CUDA device: the CPU backend is measured; processes differ by several percent here")
        )
    found += _records(environment.device)
    unfit = sum(finding.fit is False for finding in found)
    code = USAGE_ERROR if unfit else 0
    if options.json:
        plain = {"environment": dataclasses.asdict(environment), "findings": [dataclasses.asdict(one) for one in found]}
        print(json.dumps({"fit": not unfit, **plain}, indent=1))
        return code
    print(f"{environment.device}, torch {environment.torch}, triton {environment.triton or 'none'}")
    marks = {True: "ok  ", False: "MEND", None: "note"}
    for finding in found:
        print(f"{marks[finding.fit]}  {finding.what}" + (f"\n      {finding.mend}" if finding.mend else ""))
    print("Fit to measure on." if not unfit else f"Not fit, to mend: {unfit}.")
    return code


def _host() -> Iterator[Finding]:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    yield Finding(
        load <= BUSY * processors,
        f"load of the last minute {load:.2f} on {processors} processors",
        "" if load <= BUSY * processors else "end other work on this machine, or wait for it",
    )
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor.exists():
        name = governor.read_text().strip()
        mend = "" if name == "performance" else "the call clock is steadier with: cpupower frequency-set -g performance"
        yield Finding(name == "performance" or None, f"processor frequency governor: {name}", mend)


def _gpu(gpu: machine.Gpu) -> Iterator[Finding]:
    state = gpu.state([os.getpid()])
    yield Finding(
        not state.throttled,
        f"clocks {state.sm_mhz} / {state.memory_mhz} MHz, throttled by: {', '.join(state.throttled) or 'nothing'}",
        "see to cooling and the power limit: blocks of samples taken in such a state are dropped"
        if state.throttled
        else "",
    )
    yield Finding(state.temperature_c < HOT_C, f"temperature {state.temperature_c} C, power {state.power_w:.0f} W")
    yield Finding(
        state.foreign_processes == 0,
        f"{state.foreign_processes} other processes compute on this GPU",
        "end them, or give this runner a GPU of its own" if state.foreign_processes else "",
    )
    persistent = gpu.question("PersistenceMode")
    if persistent is not None:
        mend = (
            ""
            if persistent
            else "the driver unloads between runs, and clocks start cold: nvidia-smi -pm 1, on the host"
        )
        yield Finding(bool(persistent) or None, f"persistence mode {'on' if persistent else 'off'}", mend)
    mode = gpu.question("MigMode")
    if mode is not None and mode[0]:
        yield Finding(None, "MIG is on: this is a slice of a GPU, and needs a baseline of its own")


def _records(device: str) -> Iterator[Finding]:
    accept = "run a measurement, then `python -m benchmarks baseline RECORD --accept --reason TEXT`"
    compare = "`python -m benchmarks compare HEAD HEAD --processes 10`, three times, then `noise RECORD ... --accept`"
    for name, path, make in (
        ("baseline", results.device_path(session.BASELINES, device), accept),
        ("known noise", session.noise_path(device), compare),
    ):
        there = path.exists()
        yield Finding(there or None, f"{name} of this device: {'there' if there else 'none'}", "" if there else make)
    if (known := session.noise_of(device)) and (fewest := noise.fewest_processes(known)) < noise.WANTED_PROCESSES:
        what = f"known noise of this device: {fewest} processes of a pair, where {noise.WANTED_PROCESSES} are wanted"
        yield Finding(None, what, f"{compare[: compare.index(',')]}, then `noise RECORD --accept --add`")
