"""What an end-to-end run leaves: one JSON file with every repeat, from which the tables are drawn. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from benchmarks.results import Environment, Record, Strict


@dataclass(frozen=True)
class Load(Strict):
    """What is decoded in one go."""

    name: str
    slots: PositiveInt  # sequences at a time
    requests: PositiveInt


@dataclass(frozen=True)
class Repeat(Strict):
    """One load, decoded once in one mode."""

    load: str
    mode: str
    repeat: NonNegativeInt
    seconds: PositiveFloat  # on the host's clock, from the first prompt to the last token
    tokens: PositiveInt  # generated
    sequence_passes: PositiveInt  # forward passes, summed over the sequences
    passes: PositiveInt  # forward passes of the batch
    forward_us: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]  # of every pass
    outside_us: tuple[NonNegativeFloat, ...]  # from a pass to the next, but where a sequence entered between them
    correct: NonNegativeInt | None  # answers; None where there are none
    digest: str  # SHA-256 of all tokens, and of the passes that they took, in the order of the prompts
    fault: str  # why the GPU's state at its end puts its times in doubt; empty if it does not

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def outside_seconds(self) -> float:
        """The step's share of `seconds`: the median step, of all passes. Entering sequences are not of it."""
        return self.passes * statistics.median(self.outside_us) / 1e6 if self.outside_us else 0.0


@dataclass(frozen=True)
class Agreed(Strict):
    """All modes on the same logits, step by step."""

    load: str
    steps: PositiveInt
    positions: PositiveInt
    masked: PositiveInt
    accepted: PositiveInt
    undecidable: NonNegativeInt  # positions where the last bits of two confidences decide
    excused: NonNegativeInt  # of those, where a mode had another outcome than the first
    # By mode: other positions with another outcome than the first's, and blocks with a wrong count of what is left.
    differing: dict[str, NonNegativeInt]


@dataclass(frozen=True)
class Forward(Strict):
    """One pass, repeated: the last of a load."""

    load: str
    us: PositiveFloat
    bytes_read: PositiveInt  # at least: the weights it uses and the cache before it, once
    operations: PositiveInt  # multiplications and additions of its matrix products, without attention's
    experts_met: PositiveFloat | None  # of a layer, on average; None in a model without


@dataclass(frozen=True)
class EndToEnd(Record):
    """Decoding with the step in several modes, interleaved, in one process."""

    KIND = "end to end"
    VERSION = 1

    created: str  # UTC, ISO 8601
    command: str
    seed: int
    environment: Environment
    model: str
    questions: str  # what the prompts are
    acceptance: str  # the model's own, or the script's
    modes: Annotated[dict[str, str], Field(min_length=1)]  # name and source
    threshold: float
    block_length: PositiveInt
    generation_length: PositiveInt
    loads: Annotated[tuple[Load, ...], Field(min_length=1)]
    repeats: Annotated[tuple[Repeat, ...], Field(min_length=1)]
    agreed: tuple[Agreed, ...]
    forwards: tuple[Forward, ...]
    device_us: dict[
        str, PositiveFloat
    ]  # of one fused call in a load's steps, on average, by CUPTI; empty without a GPU

    def __post_init__(self) -> None:
        """What is missing could not be found to differ.

        Raises:
            ValueError: a load lacks its agreement, its forward pass or a repeat of a mode, or has one too many.
        """
        _, *others = self.modes
        loads = [load.name for load in self.loads]
        if len(set(loads)) < len(loads):
            raise ValueError(f"loads: expected each name once; got {loads}")
        for name, named in (("agreed", self.agreed), ("forwards", self.forwards)):
            if [one.load for one in named] != loads:
                raise ValueError(f"{name}: expected one of each load, {loads}; got {[one.load for one in named]}")
        for agreed in self.agreed:
            if set(agreed.differing) != set(others):
                raise ValueError(f"agreed: {agreed.load}: expected counts of {others}; got {agreed.differing}")
        numbers = sorted({one.repeat for one in self.repeats})
        due = {(load, mode) for load in loads for mode in self.modes}
        for load, mode in sorted(due | {(one.load, one.mode) for one in self.repeats}):
            expected = numbers if (load, mode) in due else []
            if (got := [one.repeat for one in self.of(load, mode)]) != expected:
                raise ValueError(f"repeats: expected {expected} of {mode} on {load}; got {got}")

    def of(self, load: str, mode: str) -> list[Repeat]:
        return [one for one in self.repeats if (one.load, one.mode) == (load, mode)]

    def outside_us(self, load: str, mode: str) -> float | None:
        """The median step outside the forward pass; None where every pass saw a sequence enter."""
        steps = [us for one in self.of(load, mode) for us in one.outside_us]
        return statistics.median(steps) if steps else None

    def mean_outside_us(self, load: str, mode: str) -> float | None:
        """The same on average, as `device_us` is: a load has steps with many masks and steps with few."""
        steps = [us for one in self.of(load, mode) for us in one.outside_us]
        return statistics.mean(steps) if steps else None

    def gain(self, load: str, mode: str) -> float:
        """Tokens per second over the first mode's: the median over the repeats, each beside its own."""
        first = self.of(load, next(iter(self.modes)))
        pairs = zip(self.of(load, mode), first, strict=True)
        return statistics.median(ours.tokens_per_second / theirs.tokens_per_second for ours, theirs in pairs)

    def bound(self, load: str) -> float:
        """Amdahl's: tokens per second over the first mode's, if its steps outside the forward pass took no time."""
        first = self.of(load, next(iter(self.modes)))
        return statistics.median(one.seconds / (one.seconds - one.outside_seconds) for one in first)

    def differences(self, load: str | None = None) -> list[str]:
        """Where modes went different ways: on the same logits, or in what was decoded with each."""
        first = next(iter(self.modes))
        agreed = {one.load: one for one in self.agreed}
        said = []
        for name in [one.name for one in self.loads if load in (None, one.name)]:
            for mode, count in agreed[name].differing.items():
                if count:
                    said.append(f"{name}: {mode} accepts {count} tokens otherwise than {first}")
            repeats = [one for one in self.repeats if one.load == name]
            if len({one.correct for one in repeats}) > 1:
                said.append(f"{name}: how many answers are right differs between modes or repeats")
            if _go_apart(repeats, excused=agreed[name].excused > 0):
                said.append(f"{name}: tokens, or passes that they took, differ between modes or repeats")
        return said


def _go_apart(repeats: list[Repeat], excused: bool) -> bool:
    """Whether they differ in more than an excused position explains: that may change tokens from one mode to another,
    but neither within a mode nor how many tokens and passes there are."""
    counts = {(one.tokens, one.sequence_passes, one.passes) for one in repeats}
    modes = {one.mode for one in repeats}
    by_mode = {(one.mode, one.digest) for one in repeats}
    digests = {one.digest for one in repeats}
    return len(counts) > 1 or len(by_mode) > len(modes) or (len(digests) > 1 and not excused)
