"""Records: what was measured, on what, and the baselines that later runs are held against.

A record is one JSON file with every raw sample in it, so that any verdict can be derived from it again. Records are
immutable and versioned; reading one that is damaged, or of another version, is an error that says so.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of each kind of file's format; raise it with every change of a field.
VERSIONS = {"run": 3, "baseline": 2, "noise": 1, "selftest": 1, "accepted slowdowns": 1}


class RecordError(ValueError):
    """A record or baseline that cannot be used, with its path and the reason."""


@dataclass(frozen=True)
class Environment:
    """Where a run took place."""

    device: str  # of the GPU, else of the CPU
    device_type: str  # "cuda" or "cpu"
    device_hash: str | None  # of the GPU's UUID: tells two GPUs of a model apart and names neither
    cpu_cores: int
    python: str
    torch: str
    triton: str | None
    cuda: str | None
    driver: str | None
    commit: str | None  # of the package that was measured
    dirty: bool


@dataclass(frozen=True)
class State:
    """A state of the package."""

    commit: str | None
    dirty: bool
    file: str  # what was imported


@dataclass(frozen=True)
class GpuState:
    """A GPU at the end of a block of samples."""

    sm_mhz: int
    memory_mhz: int
    temperature_c: int
    power_w: float
    throttled: tuple[str, ...]  # reasons for lower clocks that are none of ours
    foreign_processes: int

    @property
    def fault(self) -> str:
        """Why samples taken in this state count for nothing; empty if they count."""
        if self.throttled:
            return f"the GPU was throttled: {', '.join(self.throttled)}"
        return f"{self.foreign_processes} other processes used the GPU" if self.foreign_processes else ""


@dataclass(frozen=True)
class Block:
    """Samples taken in one go; with a `fault` they were dropped."""

    workload: str
    process: int
    clock: str
    fault: str
    gpu: GpuState | None


@dataclass(frozen=True)
class Series:
    """Pairs of samples of one workload, on one clock, from one process (of each side): us[i] was taken beside
    beside_us[i]."""

    workload: str
    clock: str  # "device_us" or "call_us"; "host_us" is recorded and not judged
    process: int
    implementation: str  # of the state that is measured: "fused" or "reference"
    beside: str  # "reference", "base fused" or "base reference"
    us: tuple[float, ...]
    beside_us: tuple[float, ...]
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
    environment: Environment  # with the commit of the state that is measured
    base: State | None  # the state that it is compared with
    workloads: tuple[str, ...]  # that were to be measured
    skipped: tuple[str, ...]  # that this machine leaves out
    clock_methods: dict[str, str]  # how each clock was read
    checks: tuple[Check, ...]
    series: tuple[Series, ...]
    blocks: tuple[Block, ...]
    counts: dict[str, dict[str, dict[str, int]]]  # of one fused call, by side ("head", "base") and workload
    judged: dict[str, Any] | None = None  # what it was judged by, and the verdicts: see `gate.with_verdicts`

    def with_more(self, more: Run) -> Run:
        """This run and further processes of it.

        Raises:
            RuntimeError: `more` was measured elsewhere, or of another state.
        """
        if (more.environment, more.base) != (self.environment, self.base):
            raise RuntimeError(f"the machine or the checkout changed: {self.environment}, then {more.environment}")
        counts = {side: {**more.counts.get(side, {}), **known} for side, known in self.counts.items()}
        return dataclasses.replace(
            self,
            checks=self.checks + more.checks,
            series=self.series + more.series,
            blocks=self.blocks + more.blocks,
            counts=counts,
            judged=None,
        )


@dataclass(frozen=True)
class Noise:
    """How far the processes of one workload, clock and pair differ though nothing does."""

    deviation: float  # standard deviation of the processes' median log ratios
    processes: int  # that it was taken from


@dataclass(frozen=True)
class NoiseRecord:
    """What runs of the same code against itself showed on one device model."""

    device: str
    created: str
    commit: str | None
    entries: dict[str, dict[str, dict[str, Noise]]]  # workload, clock, and what beside what: "fused beside reference"

    def of(self, workload: str, clock: str, pair: str) -> Noise | None:
        return self.entries.get(workload, {}).get(clock, {}).get(pair)


@dataclass(frozen=True)
class AcceptedSlowdown:
    """A slowdown taken on purpose: a reviewed exception with an end, instead of a looser tolerance."""

    workload: str
    clock: str
    slowdown: float  # up to which it is accepted: 0.04 is 4 %
    reason: str
    expires: str  # ISO 8601 date, the last day that it counts


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
    _write(path, "run", dataclasses.asdict(run))


def load_run(path: Path) -> Run:
    fields = _read(path, "run")
    try:
        environment = Environment(**fields.pop("environment"))
        if environment.device_type not in ("cuda", "cpu"):
            raise RecordError(f"{path}: expected device_type cuda or cpu; got {environment.device_type!r}")
        base = fields.pop("base")
        return Run(
            environment=environment,
            base=None if base is None else State(**base),
            checks=tuple(Check(**check) for check in fields.pop("checks")),
            series=tuple(_series(path, one) for one in fields.pop("series")),
            blocks=tuple(_block(one) for one in fields.pop("blocks")),
            workloads=tuple(fields.pop("workloads")),
            skipped=tuple(fields.pop("skipped")),
            **fields,
        )
    except (KeyError, TypeError) as error:
        raise RecordError(f"{path}: not a complete record: {error}") from error


def save_baseline(baseline: Baseline, path: Path) -> None:
    _write(path, "baseline", dataclasses.asdict(baseline))


def load_baseline(path: Path) -> Baseline:
    fields = _read(path, "baseline")
    try:
        baseline = baseline_of(fields)
        for workload, clocks in baseline.entries.items():
            for clock, entry in clocks.items():
                if not all(0 < value < float("inf") for value in dataclasses.astuple(entry)):
                    raise RecordError(f"{path}: {workload} on {clock}: expected positive numbers; got {entry}")
        return baseline
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not a complete baseline: {error}") from error


def save_noise(noise: NoiseRecord, path: Path) -> None:
    _write(path, "noise", dataclasses.asdict(noise))


def load_noise(path: Path) -> NoiseRecord:
    fields = _read(path, "noise")
    try:
        return noise_of(fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not a complete noise record: {error}") from error


def save_selftest(fields: dict[str, Any], path: Path) -> None:
    _write(path, "selftest", fields)


def load_selftest(path: Path) -> dict[str, Any]:
    return _read(path, "selftest")


def baseline_of(fields: dict[str, Any]) -> Baseline:
    """A baseline from its fields as JSON holds them."""
    entries = {
        workload: {clock: BaselineEntry(**entry) for clock, entry in clocks.items()}
        for workload, clocks in fields["entries"].items()
    }
    return Baseline(**{**fields, "entries": entries})


def noise_of(fields: dict[str, Any]) -> NoiseRecord:
    """A noise record from its fields as JSON holds them."""
    entries = {
        workload: {clock: {pair: Noise(**noise) for pair, noise in pairs.items()} for clock, pairs in clocks.items()}
        for workload, clocks in fields["entries"].items()
    }
    return NoiseRecord(**{**fields, "entries": entries})


def load_accepted(path: Path) -> tuple[AcceptedSlowdown, ...]:
    """The accepted slowdowns; none where the file is missing."""
    if not path.exists():
        return ()
    fields = _read(path, "accepted slowdowns")
    try:
        accepted = tuple(AcceptedSlowdown(**entry) for entry in fields["entries"])
        for one in accepted:
            datetime.date.fromisoformat(one.expires)
            if not one.reason.strip() or not 0 < one.slowdown < 1:
                raise RecordError(f"{path}: expected a reason, and a slowdown between 0 and 1; got {one}")
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{path}: not a complete list of accepted slowdowns: {error}") from error
    return accepted


def device_path(directory: Path, device: str) -> Path:
    """The file of a device model."""
    return directory / (device_slug(device) + ".json")


def device_slug(device: str) -> str:
    """A device model's name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _series(path: Path, fields: dict[str, Any]) -> Series:
    series = Series(**{**fields, "us": tuple(fields["us"]), "beside_us": tuple(fields["beside_us"])})
    samples = series.us + series.beside_us
    if not samples or len(series.us) != len(series.beside_us):
        raise RecordError(f"{path}: {series.workload} on {series.clock}: expected pairs of samples")
    if not all(isinstance(sample, (int, float)) and 0 < sample < float("inf") for sample in samples):
        raise RecordError(f"{path}: {series.workload} on {series.clock}: expected positive samples")
    return series


def _block(fields: dict[str, Any]) -> Block:
    gpu = fields["gpu"]
    state = None if gpu is None else GpuState(**{**gpu, "throttled": tuple(gpu["throttled"])})
    return Block(**{**fields, "gpu": state})


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
    if version != VERSIONS[kind]:
        raise RecordError(f"{path}: format {version!r}; this version reads {VERSIONS[kind]}. Measure again.")
    return fields


def _write(path: Path, kind: str, fields: dict[str, Any]) -> None:
    """Whole or not at all: under another name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump({"version": VERSIONS[kind], "kind": kind, **fields}, file, indent=1)
            file.write("\n")
        os.chmod(name, 0o644)  # mkstemp's 0600 would keep a record from whoever did not run the container
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
