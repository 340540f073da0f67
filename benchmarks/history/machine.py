"""Under which name asv keeps a machine's results, and what each of them was measured with.

The name is the device's model, so that a series goes on when a container, host or runner is replaced. Versions stand
beside each result, in the place that asv has for environment variables: they split no series, and a step that comes
with another of them is not blamed on a commit.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from benchmarks import measure, results
from benchmarks.results import Environment

MEASURED_WITH = "MEASURED_WITH_"  # before a name among asv's environment variables
IMAGE = "DLLM_KERNELS_IMAGE"  # environment variable that names the container's image
VERSIONS = ("python", "torch", "triton", "cuda", "driver")


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


def measured_with(record: Path | None) -> dict[str, str]:
    """What asv keeps beside results, of a record or measured by this machine now."""
    environment, methods = _of_this_machine() if record is None else _of_record(record)
    found = {name: getattr(environment, name) for name in ("device", *VERSIONS)}
    found["image"] = os.environ.get(IMAGE)
    found["clock_methods"] = hashlib.sha256(json.dumps(methods, sort_keys=True).encode()).hexdigest()[:8]
    return {MEASURED_WITH + name.upper(): str(value) for name, value in found.items() if value is not None}


def _of_record(path: Path) -> tuple[Environment, dict[str, str]]:
    run = results.load(results.Run, path)
    return run.environment, run.clock_methods


def _of_this_machine() -> tuple[Environment, dict[str, str]]:
    environment = this_machine()
    return environment, measure.CLOCK_METHODS[environment.device_type]


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
