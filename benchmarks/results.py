"""Records: what was measured, on what, and the baselines that later runs are held against.

A record is one JSON file with every raw sample in it, so that any verdict can be derived from it again. Records are
immutable and versioned; reading one that is damaged, or of another version, is an error that says so.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, TypeAdapter, ValidationError

from benchmarks import whole


class RecordError(ValueError):
    """A record or baseline that cannot be used, with its path and the reason."""


class Strict:
    """What is read from a file has these fields and no others, of these types, and finite numbers: pydantic checks."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False, "strict": True}


@dataclass(frozen=True)
class Record(Strict):
    """What is a file of its own."""

    KIND: ClassVar[str]
    VERSION: ClassVar[int]  # of the format; to be raised with every change but of a field that older ones may lack


Microseconds = Annotated[float, Field(ge=1e-3, le=1e10)]  # a nanosecond to three hours: nothing else was measured
VERSIONS = ("torch", "triton", "driver")  # that figures depend on
R = TypeVar("R", bound=Record)
T = TypeVar("T")


@dataclass(frozen=True)
class Environment(Strict):
    """Where a run took place."""

    device: str  # of the GPU, else of the CPU
    device_type: Literal["cuda", "cpu"]
    device_hash: str | None  # of the GPU's UUID: tells two GPUs of a model apart and names neither
    cpu_cores: int
    python: str
    torch: str
    triton: str | None
    cuda: str | None
    driver: str | None
    commit: str | None  # of the package that was measured
    dirty: bool
    image: str | None = None  # what the container was built on; None outside of one, and in older records


@dataclass(frozen=True)
class State(Strict):
    """A state of the package."""

    commit: str | None
    dirty: bool
    origin: str  # where its package was taken from


@dataclass(frozen=True)
class GpuState(Strict):
    """A GPU before or after a block of samples."""

    sm_mhz: NonNegativeInt
    memory_mhz: NonNegativeInt
    temperature_c: int
    power_w: float
    throttled: tuple[str, ...]  # reasons for lower clocks that are none of ours
    foreign_processes: NonNegativeInt

    @property
    def fault(self) -> str:
        """Why samples taken in this state count for nothing; empty if they count."""
        if self.throttled:
            return f"the GPU was throttled: {', '.join(self.throttled)}"
        return f"{self.foreign_processes} other processes used the GPU" if self.foreign_processes else ""


@dataclass(frozen=True)
class Block(Strict):
    """Samples taken in one go; with a `fault` they were dropped."""

    workload: str
    process: int
    clock: str
    fault: str
    gpu: GpuState | None

    def __post_init__(self) -> None:
        if self.gpu and self.fault != self.gpu.fault:
            raise ValueError(f"fault: expected that of the GPU's state, {self.gpu.fault!r}; got {self.fault!r}")


@dataclass(frozen=True)
class Series(Strict):
    """Pairs of samples of one workload, on one clock, from one process (of each side): us[i] was taken beside
    beside_us[i]."""

    workload: str
    clock: str  # "device_us" or "call_us"; "host_us" and "graph_us" are recorded and not judged
    process: int
    implementation: str  # of the state that is measured: "fused" or "reference"
    beside: str  # "reference", of the same process; "base fused" or "base reference", of base's process
    us: tuple[Microseconds, ...]
    beside_us: tuple[Microseconds, ...]
    quiet: bool  # False if other work on the machine disturbed most pairs, so that these had to be kept

    def __post_init__(self) -> None:
        if not self.us or len(self.us) != len(self.beside_us):
            raise ValueError(f"us, beside_us: expected pairs; got {len(self.us)} and {len(self.beside_us)} samples")


@dataclass(frozen=True)
class Check(Strict):
    """Whether fused agreed with the reference on the very inputs that were timed."""

    workload: str
    process: int
    passed: bool
    detail: str
    base_alone: bool = False  # of a comparison: what is wrong is base's result, and head's is right
    # That the process was to measure, or "count" for what a call is counted to do; None: all.
    clocks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    def covers(self, clock: str) -> bool:
        """Whether samples on that clock are expected of the process."""
        return self.clocks is None or clock in self.clocks


@dataclass(frozen=True)
class Run(Record):
    """One measurement: raw samples and everything needed to judge them."""

    KIND = "run"
    VERSION = 5

    created: str  # UTC, ISO 8601
    command: str
    seed: int
    environment: Environment  # with the commit of the state that is measured
    base: State | None  # the state that it is compared with
    files: dict[str, str]  # by side ("head", "base"), the package's `__file__` as its workers imported it
    workloads: tuple[str, ...]  # that were to be measured
    skipped: tuple[str, ...]  # that this machine leaves out, or that base is too old for
    clock_methods: dict[str, str]  # how each clock was read
    checks: tuple[Check, ...]
    series: tuple[Series, ...]
    blocks: tuple[Block, ...]
    counts: dict[str, dict[str, dict[str, int]]]  # of one fused call, by side ("head", "base") and workload
    seconds: NonNegativeFloat | None  # for which the device was ours; None where that was not noted
    judged: dict[str, Any] | None = None  # what it was judged by, and the verdicts: see `verification`

    def __post_init__(self) -> None:
        datetime.datetime.fromisoformat(self.created)
        names = [(one.workload, one.clock, one.process, one.implementation, one.beside) for one in self.series]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice:
            raise ValueError(f"series: expected each once; got {twice} again")
        if self.base is None and (strays := {one.beside for one in self.series if one.beside.startswith("base ")}):
            raise ValueError(f"base: expected the state that was measured as {', '.join(sorted(strays))}; got none")
        if unknown := ({"head"} if self.base is None else {"head", "base"}) - set(self.files):
            raise ValueError(f"files: expected which file was imported as {', '.join(sorted(unknown))}; got none")

    def with_more(self, more: Run) -> Run:
        """This run and further processes of it. What was counted before stays, unless no launch was seen.

        Raises:
            RuntimeError: `more` was measured elsewhere, or of another state.
        """
        if (more.environment, more.base) != (self.environment, self.base):
            raise RuntimeError(f"the machine or the checkout changed: {self.environment}, then {more.environment}")
        counts = {side: _counted(known, more.counts.get(side, {})) for side, known in self.counts.items()}
        return dataclasses.replace(
            self,
            checks=self.checks + more.checks,
            series=self.series + more.series,
            blocks=self.blocks + more.blocks,
            seconds=None if self.seconds is None or more.seconds is None else self.seconds + more.seconds,
            counts=counts,
            judged=None,
        )


def _counted(known: dict[str, dict[str, int]], new: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """By workload, what is known, or what is new where no launch was seen: the profiler may have missed the call."""
    return {**new, **{name: counts for name, counts in known.items() if counts.get("launches") or name not in new}}


@dataclass(frozen=True)
class Times(Strict):
    """Samples of one workload, implementation or limit, and clock, in the order in which they were taken."""

    workload: str
    implementation: str
    clock: str
    us: Annotated[tuple[Microseconds, ...], Field(min_length=1)]
    quiet: bool  # False if other work on the machine disturbed too many samples for those to be left out


INPUTS = "the inputs"  # what is absent in the place of an implementation where there was no memory for them
Kind = Literal["wrong", "failed", "not captured"]
GRAPH_CLOCKS = ("graph_us", "replay_us")  # on which what is "not captured" has no times


@dataclass(frozen=True)
class Absence(Strict):
    """Why an implementation has no times: of one workload, or of one clock of it."""

    workload: str
    implementation: str
    kind: Kind
    detail: str


@dataclass(frozen=True)
class KernelTable(Record):
    """Implementations of the step beside each other and beside the limits, from one process."""

    KIND = "kernel table"
    VERSION = 1

    created: str  # UTC, ISO 8601
    command: str
    seconds: NonNegativeFloat  # for which the device was ours
    seed: int
    environment: Environment
    checked: bool  # False if results were not held against the reference
    workloads: Annotated[tuple[str, ...], Field(min_length=1)]
    skipped: tuple[str, ...]  # that this machine leaves out
    implementations: tuple[str, ...]
    peers: dict[str, str]  # SHA-256 of the files of those that were brought from outside
    limits: tuple[str, ...]
    clock_methods: dict[str, str]
    floor_searches: dict[str, dict[str, Microseconds]]  # of each workload: median of every way to read the logits
    times: tuple[Times, ...]
    absences: tuple[Absence, ...]
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        datetime.datetime.fromisoformat(self.created)
        told = {one.workload for one in self.times} | {one.workload for one in self.absences}
        if silent := [name for name in self.workloads if name not in told]:
            raise ValueError(
                f"times: expected some of each workload, or an absence that says why not; got none of {silent[0]}"
            )


@dataclass(frozen=True)
class Noise(Strict):
    """How far the processes of one workload, clock and pair differ though nothing does."""

    deviation: Annotated[float, Field(ge=0, le=1)]  # standard deviation of the processes' log ratios
    processes: Annotated[int, Field(ge=2)]  # that it was taken from
    source: str = ""  # the commits of the runs that it was learned from, or commit and time; empty: that of its record
    pairs: Annotated[int, Field(ge=0)] = 0  # fewest of a process that it was taken from; 0 where that was not noted


@dataclass(frozen=True)
class NoiseRecord(Record):
    """What runs of the same code against itself showed on one device model."""

    KIND = "noise"
    VERSION = 2

    device: str
    created: str  # this and the commit: of the runs that were learned from last
    commit: str | None
    torch: str
    triton: str | None
    driver: str | None
    entries: dict[str, dict[str, dict[str, Noise]]]  # workload, clock, and what beside what: see `noise.pair_name`
    samples: tuple[str, ...] = ()  # SHA-256 of those of every run that any entry was learned from, where it was noted

    def of(self, workload: str, clock: str, pair: str) -> Noise | None:
        return self.entries.get(workload, {}).get(clock, {}).get(pair)


@dataclass(frozen=True)
class AcceptedSlowdown(Strict):
    """A slowdown taken on purpose: a reviewed exception with an end, instead of a looser tolerance.

    It counts beside one base, so that nobody who comes later is given the same again.
    """

    workload: str
    clock: str
    base: Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}$")]  # commit, or its first seven digits or more
    slowdown: float  # up to which it is accepted: 0.04 is 4 %; on the clock "count" so many launches or others more
    reason: str
    expires: str  # ISO 8601 date, the last day that it counts

    def __post_init__(self) -> None:
        datetime.date.fromisoformat(self.expires)
        is_size = self.slowdown in range(1, 100) if self.clock == "count" else 0 < self.slowdown < 1
        if not self.reason.strip() or not is_size:
            raise ValueError("expected a reason, and a slowdown between 0 and 1, or of counts from 1 to 99")

    def __str__(self) -> str:
        return f"{self.slowdown:.0f} more a call" if self.clock == "count" else f"{self.slowdown:.1%}"


@dataclass(frozen=True)
class AcceptedSlowdowns(Record):
    """All of them."""

    KIND = "accepted slowdowns"
    VERSION = 2

    entries: tuple[AcceptedSlowdown, ...]


@dataclass(frozen=True)
class BaselineEntry(Strict):
    """What a reviewed run found for one workload on one clock."""

    speedup: PositiveFloat
    fused_us: PositiveFloat
    reference_us: PositiveFloat
    # Largest loss of speedup, as a share: what the run's own noise allows to be told from none.
    tolerance: Annotated[float, Field(gt=0, lt=1)]
    source: str = ""  # commit, time and reason of the runs that it is of; empty: those of its record


@dataclass(frozen=True)
class Baseline(Record):
    """The reviewed state of one device model."""

    KIND = "baseline"
    VERSION = 4

    device: str
    created: str  # this, the commit and the reason: of the runs that were accepted last
    commit: str | None
    reason: str
    torch: str
    triton: str | None
    driver: str | None
    entries: dict[str, dict[str, dict[str, BaselineEntry]]]  # workload, clock, and beside what: see `Series.beside`

    def of(self, workload: str, clock: str, beside: str) -> BaselineEntry | None:
        return self.entries.get(workload, {}).get(clock, {}).get(beside)


def differing_versions(one: Any, other: Any) -> list[tuple[str, Any, Any]]:
    """Of `VERSIONS`, those in which two records or environments differ, and what each has."""
    pairs = [(name, getattr(one, name), getattr(other, name)) for name in VERSIONS]
    return [(name, here, there) for name, here, there in pairs if here != there]


def expect_versions_of(older: Baseline | NoiseRecord, new: Baseline | NoiseRecord) -> None:
    """That what `new` keeps of `older` was measured with its versions.

    Raises:
        ValueError: it was not; the message says which, and both.
    """
    for name, here, there in differing_versions(new, older):
        raise ValueError(
            "records: expected a `run` and a `compare` of all of today's workloads, because what they lack "
            f"stays as it is in the {older.KIND}, which is of {name} {there}; got {name} {here}"
        )


def expect_one(names: Sequence[str], runs: Sequence[Run]) -> None:
    """That what the environment has under these names is the same in all runs.

    Raises:
        ValueError: it is not; the message says which, and both values.
    """
    for run in runs:
        for name in names:
            here, there = getattr(run.environment, name), getattr(runs[0].environment, name)
            if here != there:
                raise ValueError(f"records: expected one {name}; got {there} and {here}")


def save(record: Record, path: Path) -> None:
    """Write a record, whole or not at all."""
    with whole.file(path) as part, part.open("w") as file:
        json.dump({"version": record.VERSION, "kind": record.KIND, **dataclasses.asdict(record)}, file, indent=1)
        file.write("\n")


def load(cls: type[R], path: Path) -> R:
    """Read a record of that kind.

    Raises:
        RecordError: the file is missing, damaged, of another kind or version, or not complete.
    """
    try:
        fields = json.loads(path.read_text())
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: damaged: {error}") from error
    if not isinstance(fields, dict) or fields.pop("kind", None) != cls.KIND:
        raise RecordError(f"{path}: not a record of the kind {cls.KIND!r}")
    version = fields.pop("version", None)
    if version != cls.VERSION:
        raise RecordError(f"{path}: format {version!r}; this version reads {cls.VERSION}. Measure again.")
    try:
        return decoded(cls, fields)
    except ValueError as error:
        raise RecordError(f"{path}: not a complete record of the kind {cls.KIND!r}: {error}") from error


def device_path(directory: Path, device: str) -> Path:
    """The file of a device model."""
    return directory / (device_slug(device) + ".json")


def device_slug(device: str) -> str:
    """A device model's name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def decoded(kind: type[T], fields: Any) -> T:
    """`fields`, as JSON holds them, as the dataclass `kind`.

    Raises:
        ValueError: a field is missing, unknown, of another type, or does not fit the others; the first such is named.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        if not place and "error" in first.get("ctx", {}):  # of the whole record, which names its fields itself
            raise ValueError(str(first["ctx"]["error"])) from error
        raise ValueError(f"{place}: {first['msg']}; got {str(first['input'])[:80]!r}") from error
