"""Records: what was measured, on what, and the baselines that later runs are held against.

A record is one JSON file with every raw sample in it, so that any verdict can be derived from it again. Records are
immutable and versioned; reading one that is damaged, or of another version, is an error that says so.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 2  # of the format; raise it with every change of a field


class RecordError(ValueError):
    """A record or baseline that cannot be used, with its path and the reason."""


@dataclass(frozen=True)
class Environment:
    """Where a run took place."""

    device: str  # of the GPU, else of the CPU
    device_type: str  # "cuda" or "cpu"
    cpu_cores: int
    python: str
    torch: str
    triton: str | None
    cuda: str | None
    driver: str | None
    commit: str | None  # of the package that was measured
    dirty: bool


@dataclass(frozen=True)
class Series:
    """Pairs of samples of one workload, on one clock, from one process: fused[i] was taken beside reference[i]."""

    workload: str
    clock: str  # "device_us" or "call_us"; "host_us" is recorded and not judged
    process: int
    fused: tuple[float, ...]
    reference: tuple[float, ...]
    quiet: bool  # False if other work on the machine disturbed most pairs, so that these had to be kept


@dataclass(frozen=True)
class Check:
    """Whether fused agreed with the reference on the very inputs that were timed."""

    workload: str
    process: int
    passed: bool
    detail: str


@dataclass(frozen=True)
class Run:
    """One measurement: raw samples and everything needed to judge them."""

    created: str  # UTC, ISO 8601
    command: str
    seed: int
    environment: Environment
    workloads: tuple[str, ...]  # that were to be measured
    skipped: tuple[str, ...]  # that this machine leaves out
    clock_methods: dict[str, str]  # how each clock was read
    checks: tuple[Check, ...]
    series: tuple[Series, ...]


@dataclass(frozen=True)
class BaselineEntry:
    """What a reviewed run found for one workload on one clock."""

    speedup: float
    fused_us: float
    reference_us: float
    tolerance: float  # largest loss of speedup, as a share: what the run's own noise allows to be told from none


@dataclass(frozen=True)
class Baseline:
    """The reviewed state of one device model."""

    device: str
    created: str
    commit: str | None
    reason: str
    torch: str
    triton: str | None
    driver: str | None
    entries: dict[str, dict[str, BaselineEntry]]  # workload, clock


def save_run(run: Run, path: Path) -> None:
    _write(path, {"version": VERSION, "kind": "run", **dataclasses.asdict(run)})


def load_run(path: Path) -> Run:
    fields = _read(path, "run")
    try:
        environment = Environment(**fields.pop("environment"))
        if environment.device_type not in ("cuda", "cpu"):
            raise RecordError(f"{path}: expected device_type cuda or cpu; got {environment.device_type!r}")
        checks = tuple(Check(**check) for check in fields.pop("checks"))
        series = tuple(_series(path, one) for one in fields.pop("series"))
        workloads, skipped = tuple(fields.pop("workloads")), tuple(fields.pop("skipped"))
        return Run(
            environment=environment, checks=checks, series=series, workloads=workloads, skipped=skipped, **fields
        )
    except (KeyError, TypeError) as error:
        raise RecordError(f"{path}: not a complete record: {error}") from error


def save_baseline(baseline: Baseline, path: Path) -> None:
    _write(path, {"version": VERSION, "kind": "baseline", **dataclasses.asdict(baseline)})


def load_baseline(path: Path) -> Baseline:
    fields = _read(path, "baseline")
    try:
        entries = {
            workload: {clock: BaselineEntry(**entry) for clock, entry in clocks.items()}
            for workload, clocks in fields.pop("entries").items()
        }
        for workload, clocks in entries.items():
            for clock, entry in clocks.items():
                if not all(0 < value < float("inf") for value in dataclasses.astuple(entry)):
                    raise RecordError(f"{path}: {workload} on {clock}: expected positive numbers; got {entry}")
        return Baseline(entries=entries, **fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not a complete baseline: {error}") from error


def baseline_path(directory: Path, device: str) -> Path:
    """The file of a device model's baseline."""
    return directory / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json")


def _series(path: Path, fields: dict[str, Any]) -> Series:
    series = Series(**{**fields, "fused": tuple(fields["fused"]), "reference": tuple(fields["reference"])})
    samples = series.fused + series.reference
    if not samples or len(series.fused) != len(series.reference):
        raise RecordError(f"{path}: {series.workload} on {series.clock}: expected pairs of samples")
    if not all(isinstance(sample, (int, float)) and 0 < sample < float("inf") for sample in samples):
        raise RecordError(f"{path}: {series.workload} on {series.clock}: expected positive samples")
    return series


def _read(path: Path, kind: str) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text())
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RecordError(f"{path}: damaged: {error}") from error
    if not isinstance(fields, dict) or fields.pop("kind", None) != kind:
        raise RecordError(f"{path}: not a {kind}")
    version = fields.pop("version", None)
    if version != VERSION:
        raise RecordError(f"{path}: format {version!r}; this version reads {VERSION}. Measure again.")
    return fields


def _write(path: Path, fields: dict[str, Any]) -> None:
    """Whole or not at all: under another name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(fields, file, indent=1)
            file.write("\n")
        os.chmod(name, 0o644)  # mkstemp's 0600 would keep a record from whoever did not run the container
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
