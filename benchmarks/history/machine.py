"""Under which name asv keeps a machine's results, and what each of them was measured with.

The name is the device's model, so that a series goes on when a container, host or runner is replaced. Versions stand in
a file beside each of asv's: what asv itself keeps with a result, it starts another curve for. A step that comes with
another version is not blamed on a commit.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

from benchmarks import results, whole
from benchmarks.results import Environment, Run

ENDING = ".environment"  # of the file beside a result
VERSIONS = ("python", "torch", "triton", "cuda", "driver", "image")


def machine_name(environment: Environment) -> str:
    """The device's model; of a CPU with its number of cores, which its times depend on."""
    cores = f"-{environment.cpu_cores}-cores" if environment.device_type == "cpu" else ""
    return re.sub(r"[^a-z0-9]+", "-", environment.device.lower()).strip("-") + cores


def register(environment: Environment) -> str:
    """Tell asv that this host is such a machine; its name. asv notes it in `~/.asv-machine.json`."""
    from asv.machine import Machine, MachineCollection

    name = machine_name(environment)
    # Only what stays the same for years: another value of a key starts another series.
    about = {
        "machine": name, "os": platform.system(), "arch": platform.machine(), "cpu": "-", "num_cpu": "-", "ram": "-",
    }  # fmt: skip
    for known_as in (name, Machine.get_unique_machine_name()):  # without --machine, asv looks for the host's name
        MachineCollection.save(known_as, about)
    return name


def expect_registered(environment: Environment) -> None:
    """Where asv was told another name, or none, versions would be noted beside no result of asv's.

    Raises:
        RuntimeError: asv keeps this host's results under another name than the device's.
    """
    from asv.machine import Machine, MachineCollection
    from asv.util import UserError

    try:
        known_as = MachineCollection.load(Machine.get_unique_machine_name())["machine"]
    except UserError:
        known_as = "no name yet"
    if known_as != (name := machine_name(environment)):
        raise RuntimeError(
            f"asv keeps this machine's results under {known_as}, and its history is that of {name}: "
            "run `python -m benchmarks machine` once, then asv without --machine"
        )


def note(path: Path, **measured_with: str | None) -> None:
    """Say what asv's result at `path` was measured with, beside what was said before; what is None now is said no more,
    such as the image by a run outside of one."""
    beside = path.with_suffix(ENDING)
    known = json.loads(beside.read_text()) if beside.exists() else {}
    found = {name: value for name, value in {**known, **measured_with}.items() if value}
    with whole.file(beside) as part:
        part.write_text(json.dumps(found, sort_keys=True))


def measured_with(run: Run) -> dict[str, str | None]:
    """Of what a step of the figures may come: versions, and how the clocks were read."""
    methods = hashlib.sha256(json.dumps(run.clock_methods, sort_keys=True).encode()).hexdigest()[:8]
    return {name: getattr(run.environment, name) for name in VERSIONS} | {"clock_methods": methods}


def noted(path: Path) -> dict[str, str]:
    """What asv's result at `path` was measured with; nothing where that was not noted.

    Raises:
        ValueError: what was noted is damaged.
    """
    beside = path.with_suffix(ENDING)
    try:
        fields = json.loads(beside.read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{beside}: damaged, {error}; delete it, or measure that commit again") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{beside}: expected versions by name; got {fields!r}")
    return {str(name): str(value) for name, value in fields.items()}


@functools.cache
def this_machine() -> Environment:
    """As a measuring process sees it: PyTorch and CUDA are loaded in a process of its own.

    Raises:
        RuntimeError: that process failed.
    """
    program = (
        "import dataclasses, json; from benchmarks.measure.machine import describe_environment;"
        "print(json.dumps(dataclasses.asdict(describe_environment())))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"what this machine is could not be found out:\n{done.stderr.strip()}")
    return results.decoded(Environment, json.loads(done.stdout.splitlines()[-1]))
