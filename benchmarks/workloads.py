"""The named workloads that everything measures: shapes of real models, seeded inputs of realistic confidence.

A name is BxLxV-dtype-share: blocks, positions a block, vocabulary, dtype of the logits, percent of positions masked.
With `-warm` every call reads the same logits, which then lie in the cache, as right after the model has written them.
`decode-` before it stands for whole sequences instead of one call: see `Decoding`; an engine's name for its step, of
which the call is a part: see `EngineStep` (`sglang-`: LowConfidence; `sglang-joint-`: JointThreshold; `diffusers-`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLD = 0.95  # SGLang's default for LLaDA2
MANY_BLOCKS = 17  # from which on the rows of blocks of 32 fill an H100 or H200
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
MASK_IDS = {157184: 156895, 151936: 151669, 126464: 126336}  # LLaDA2, SDAR, LLaDA; elsewhere, as in the seed, V


@dataclass(frozen=True)
class Workload:
    """One call's shape."""

    batch: int
    block_length: int
    vocab: int
    dtype: str
    masked_percent: int
    warm: bool = False
    clocks: ClassVar[frozenset[str]] = frozenset({"device_us", "call_us", "graph_us"})  # that it is measured on

    @property
    def name(self) -> str:
        shape = f"{self.batch}x{self.block_length}x{self.vocab}-{self.dtype}-{self.masked_percent}"
        return f"{shape}-warm" if self.warm else shape

    @property
    def mask_id(self) -> int:
        return MASK_IDS.get(self.vocab, self.vocab)

    @property
    def masked_rows(self) -> int:
        """Per block; at least one, unless none is asked for."""
        return max(1, round(self.block_length * self.masked_percent / 100)) if self.masked_percent else 0

    @property
    def bytes_read(self) -> int:
        """The least that a call must read: the logits of the masked rows, once."""
        return self.batch * self.masked_rows * self.vocab * BYTES[self.dtype]

    @property
    def logits_bytes(self) -> int:
        return self.batch * self.block_length * self.vocab * BYTES[self.dtype]

    @property
    def needs_gpu(self) -> bool:
        """Too large for a CPU to be of use, or about a GPU's cache."""
        return self.batch >= 32 or self.warm


@dataclass(frozen=True)
class Decoding:
    """Sequences decoded side by side, from prompt to last token, and what of that is not the model: a small model of
    random weights but for its vocabulary, and a script of what it is sure of (`benchmarks.e2e`). A sample is one
    decoding of DECODED_TOKENS in every slot, and the reference is the loop with the reference's step."""

    batch: int  # sequences
    block_length: int
    vocab: int
    dtype: str
    clocks: ClassVar[frozenset[str]] = frozenset({"call_us"})
    needs_gpu: ClassVar[bool] = True  # on a CPU the model takes all of the time

    @property
    def name(self) -> str:
        return f"decode-{self.batch}x{self.block_length}x{self.vocab}-{self.dtype}"

    @property
    def mask_id(self) -> int:
        return MASK_IDS.get(self.vocab, self.vocab - 1)  # which the model has to know

    @property
    def logits_bytes(self) -> int:
        return self.batch * self.block_length * self.vocab * BYTES[self.dtype]

    @property
    def bytes_read(self) -> int:
        """The most that the steps of a decoding must read: the logits of every pass, were each to accept a token."""
        return self.logits_bytes * DECODED_TOKENS


@dataclass(frozen=True)
class EngineStep:
    """The step of an engine that decodes with the plug-in, flags for the host included. The reference is the step that
    the engine ships (`benchmarks.engines`). Steps that edit do so above THRESHOLD."""

    engine: str  # with the algorithm, where it has several: a key of `benchmarks.engines.STEPS`
    call: Workload  # that the step makes, or does in its own way
    clocks: ClassVar[frozenset[str]] = frozenset({"device_us", "call_us"})  # it waits, so no graph can hold it
    needs_gpu: ClassVar[bool] = True  # what engines run on

    @property
    def name(self) -> str:
        return f"{self.engine}-{self.call.name}"

    @property
    def mask_id(self) -> int:
        return self.call.mask_id

    @property
    def edits(self) -> bool:
        """Whether tokens that are there already may change, so that every position is read."""
        return self.engine != "sglang"

    @property
    def logits_bytes(self) -> int:
        return self.call.logits_bytes

    @property
    def bytes_read(self) -> int:
        return self.logits_bytes if self.edits else self.call.bytes_read


AnyWorkload = Workload | Decoding | EngineStep


def _shares(batch: int, block_length: int, vocab: int, dtype: str, *percents: int) -> list[Workload]:
    return [Workload(batch, block_length, vocab, dtype, percent) for percent in percents]


# A workload enters together with its baseline and its known noise, measured on the device (`tests/test_baselines.py`).
_REGISTERED: tuple[AnyWorkload, ...] = (
    *_shares(1, 32, 128000, "fp16", 100, 50, 6),  # the shape the project began with
    *_shares(1, 32, 157184, "bf16", 100, 50, 6),  # LLaDA2, one sequence
    *_shares(4, 32, 157184, "bf16", 100, 50, 6),
    *_shares(32, 32, 157184, "bf16", 100),
    *_shares(128, 32, 157184, "bf16", 100, 50, 6),
    *_shares(1, 32, 157184, "fp32", 100),  # what SGLang passes
    *_shares(1, 32, 126464, "bf16", 100),  # LLaDA
    *_shares(8, 4, 151936, "bf16", 100),  # SDAR
    *_shares(1, 32, 50257, "fp16", 100),  # rows that do not start on 16 bytes
    Workload(1, 32, 128000, "fp16", 100, warm=True),
    Workload(1, 32, 157184, "bf16", 100, warm=True),
    Decoding(1, 32, 157184, "bf16"),
    Decoding(16, 32, 157184, "bf16"),
    EngineStep("sglang", Workload(1, 32, 157184, "fp32", 100)),
    EngineStep("sglang", Workload(128, 32, 157184, "fp32", 100)),
    EngineStep("sglang-joint", Workload(8, 32, 157184, "fp32", 50)),
    EngineStep("diffusers", Workload(1, 32, 157184, "bf16", 50)),
)
WORKLOADS = {workload.name: workload for workload in _REGISTERED}
QUICK = ("1x32x128000-fp16-100", "1x32x157184-bf16-100", "1x32x157184-bf16-50", "8x4x151936-bf16-100")
# For a table of all implementations in one run: one to 128 blocks, every dtype, rows that start anywhere, logits in the
# cache, half, few and none of the rows masked.
OVERVIEW = (
    *("1x32x128000-fp16-100", "1x32x128000-fp16-100-warm", "1x32x157184-bf16-100", "1x32x157184-bf16-100-warm"),
    *("1x32x50257-fp16-100", "1x32x50257-fp16-100-warm", "1x32x157184-fp32-100", "1x32x157184-fp32-100-warm"),
    *("4x32x157184-bf16-100", "4x32x157184-bf16-100-warm"),
    *(f"{blocks}x32x157184-bf16-100" for blocks in (2, 8, 16, 32, 64, 128)),
    *(f"{blocks}x32x157184-fp32-100" for blocks in (8, 128)),
    *("4x32x157184-bf16-50", "128x32x157184-bf16-50", "128x32x157184-bf16-6", "1x32x157184-bf16-0"),
)
DECODED_TOKENS = 32

_NAME = re.compile(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)-([a-z0-9]+)-(\d+)(-warm)?")


def operations() -> dict[str, Workload]:
    """The registered workloads that are one call."""
    return {name: workload for name, workload in WORKLOADS.items() if isinstance(workload, Workload)}


def kernels_of(workload: AnyWorkload) -> tuple[object, ...]:
    """The same for workloads that presumably run the same compiled kernels, which hang on dtype, block length, the
    alignment of rows, and whether the rows fill a GPU by themselves."""
    call = workload.call if isinstance(workload, EngineStep) else workload
    kind = workload.engine if isinstance(workload, EngineStep) else type(workload).__name__
    return kind, call.dtype, call.block_length, call.vocab % 16, call.batch >= MANY_BLOCKS


def is_decoding(name: str) -> bool:
    """Whether the registered workload of that name is one of whole sequences."""
    return isinstance(WORKLOADS.get(name), Decoding)


def is_engine_step(name: str) -> bool:
    """Whether the registered workload of that name is an engine's step."""
    return isinstance(WORKLOADS.get(name), EngineStep)


def may_be_absent(name: str) -> bool:
    """Whether there are commits that can be asked for calls, and not for the workload of that name."""
    return is_decoding(name) or is_engine_step(name)


def clocks_of(name: str) -> frozenset[str]:
    """That the workload of that name, registered today or not, is measured on."""
    return WORKLOADS[name].clocks if name in WORKLOADS else Workload.clocks


def parse(name: str) -> Workload:
    """The workload of that name, whether it is a registered one or not.

    Raises:
        ValueError: the name does not follow the grammar at the top; the message says where.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"workload: expected blocks x positions x vocabulary, dtype and percent of positions masked, such as "
            f"4x32x157184-bf16-50, and -warm after it for logits in the cache; got {name!r}"
        )
    *shape, dtype, percent, warm = match.groups()
    if dtype not in BYTES:
        raise ValueError(f"workload {name}: expected logits of {', '.join(BYTES)}; got {dtype!r}")
    if not 0 <= int(percent) <= 100:
        raise ValueError(f"workload {name}: expected 0 to 100 percent of positions masked; got {percent}")
    batch, block_length, vocab = map(int, shape)
    return Workload(batch, block_length, vocab, dtype, int(percent), warm is not None)


def with_warm(chosen: Iterable[Workload], cache_bytes: int) -> list[Workload]:
    """`chosen`, each followed by its warm twin where the logits fit into a cache of that size."""
    both = []
    for workload in chosen:
        both.append(workload)
        if workload.logits_bytes <= cache_bytes:
            both.append(dataclasses.replace(workload, warm=True))
    return list(dict.fromkeys(both))


def select(names: list[str] | None, *, gpu: bool, quick: bool = False) -> tuple[list[AnyWorkload], list[AnyWorkload]]:
    """Workloads to measure here, and those that this machine leaves out because they need a GPU.

    `names` are exact, and count once; a name asked for by hand is measured anywhere.
    """
    if names:
        unknown = [name for name in names if name not in WORKLOADS]
        if unknown:
            raise ValueError(f"workload: unknown {', '.join(unknown)}; known are {', '.join(WORKLOADS)}")
        return [WORKLOADS[name] for name in dict.fromkeys(names)], []
    chosen = [WORKLOADS[name] for name in QUICK] if quick else list(WORKLOADS.values())
    return [w for w in chosen if gpu or not w.needs_gpu], [w for w in chosen if w.needs_gpu and not gpu]


def make_inputs(workload: Workload, device: str, seed: int, copies: int = 1) -> tuple[list[Tensor], Tensor]:
    """Logits (B, L, V) in `copies` different draws, and ids (B, L) with the masks in place, the same for all.

    Two rows in five are confident, with a top probability of 0.96 to 0.9999 as in the later passes of a block; the
    others have 0.02 to 0.6. Below the top, logits are normal with standard deviation 2.
    """
    import torch

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[workload.dtype]
    generator = torch.Generator(device).manual_seed(seed)
    rows, vocab = workload.block_length, workload.vocab
    draws = []
    for _ in range(copies):
        logits = torch.empty(workload.batch, rows, vocab, dtype=dtype, device=device)
        for block in logits:
            values = torch.randn(rows, vocab, generator=generator, device=device).mul_(2)
            chance = torch.rand(rows, 2, generator=generator, device=device)
            top = torch.where(chance[:, 0] < 0.4, 0.96 + 0.0399 * chance[:, 1], 0.02 + 0.58 * chance[:, 1])
            others = math.log(vocab) + 2  # log of the sum of V exponentials of normals of variance 4
            height = torch.logit(top) + others
            place = torch.randint(min(vocab, workload.mask_id), (rows, 1), generator=generator, device=device)
            block.copy_(values.scatter_(1, place, height.unsqueeze(1)))
        draws.append(logits)
    order = torch.rand(workload.batch, rows, generator=generator, device=device).argsort(dim=-1)
    ids = torch.randint(min(vocab, workload.mask_id), order.shape, generator=generator, device=device)
    return draws, ids.masked_fill_(order < workload.masked_rows, workload.mask_id)
