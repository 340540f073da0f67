"""Continuous batches: slots that each decode a sequence at a block of its own, filled anew from a queue.

Every forward pass takes one block of every slot. A block's last pass sees no mask and leaves in the model's cache what
its final tokens give; the next block starts then. That, and the end of a sequence, is found out on the device
(`slots`): the host reads one flag a slot, of the step before, while the next forward pass runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dllm_kernels.checks import MAX_EXCLUDE_IDS, as_int, as_ints
from dllm_kernels.decode.slots import Slots
from dllm_kernels.post_process import dllm_post_process_fused


class BlockModel(Protocol):
    """A model with a cache of keys and values for every slot. It runs without gradients, on the current stream."""

    def prefill(self, slot: int, input_ids: Tensor) -> None:
        """Cache the first tokens (T,) of a slot's new sequence, whole blocks of its prompt; what was there is void."""

    def __call__(self, input_ids: Tensor, starts: Tensor) -> Tensor:
        """Logits (S, L, V) of a block (S, L) of every slot, which sees itself and the tokens before `starts` (S,), its
        first token's position; its keys and values replace those of an earlier pass. Both arguments are the same
        memory at every call. Slots without a sequence are passed too; what comes out for them is ignored."""


@dataclass(frozen=True)
class Decoded:
    """A sequence that has ended."""

    index: int  # of its prompt, in the order in which they came
    tokens: Tensor  # (n,) int64 on the CPU: generated ones, up to and with the first EOS
    forward_passes: int  # that it took part in; a block takes one more than it has steps, for the cache


def decode_batches(
    model: BlockModel,
    prompts: Iterable[Sequence[int]],
    *,
    slots: int,
    device: torch.device | str,
    mask_id: int,
    generation_length: int,
    block_length: int = 32,
    threshold: float = 0.95,
    eos_id: int | None = None,
    exclude_ids: Sequence[int] = (),
    post_process: Callable[..., None] = dllm_post_process_fused,
    capture: bool = False,
) -> Iterator[Decoded]:
    """Generate up to `generation_length` tokens after each prompt, `slots` sequences at a time, in the order in which
    they end. A slot that becomes free takes the next prompt.

    Args:
        model: see `BlockModel`.
        prompts: token ids of each; taken from the iterable as slots become free.
        slots: sequences decoded together.
        device: where the model takes its ids and leaves its logits.
        mask_id: the mask token; never generated.
        generation_length: at least 1.
        block_length: positions decoded together; blocks lie on multiples of it, so a prompt may end inside one.
        threshold: see `dllm_post_process_fused`.
        eos_id: a sequence ends at the first one of it that has no mask before it.
        exclude_ids: at most 3 more token ids that are never generated.
        post_process: the operation, or another function of its contract.
        capture: put what follows a forward pass into a CUDA graph, which the host launches at once. The model must
            leave its logits in the same memory every time, and `post_process` must not wait for the GPU.

    Raises:
        TypeError, ValueError: an argument, a prompt, or what the model returned, is not as described. Arguments are
            checked at the call, prompts as they are taken.
    """
    rules = _Rules(
        mask_id=as_int("mask_id", mask_id),
        generation_length=_at_least_1("generation_length", generation_length),
        block_length=_at_least_1("block_length", block_length),
        threshold=threshold,
        eos_id=None if eos_id is None else as_int("eos_id", eos_id),
        exclude_ids=tuple(as_ints("exclude_ids", exclude_ids)),
        post_process=post_process,
    )
    device = torch.device(device)
    if rules.eos_id == rules.mask_id:
        raise ValueError(f"eos_id: expected another token than mask_id; got {eos_id} for both")
    if len(rules.exclude_ids) >= MAX_EXCLUDE_IDS:
        raise ValueError(f"exclude_ids: expected at most {MAX_EXCLUDE_IDS - 1} ids beside the mask; got {exclude_ids}")
    if capture and device.type != "cuda":
        raise ValueError(f"capture: expected a CUDA device for a CUDA graph; got {device}")
    state = Slots.empty(_at_least_1("slots", slots), rules.block_length, rules.generation_length, device)
    # Blocks without positions: the operation's checks of what it will be given, before the model runs.
    nothing = torch.empty(slots, 0, 2 * MAX_EXCLUDE_IDS, device=device)
    rules.update(nothing, state.blocks[:, :0], state.fixed[:, :0], state.remaining)
    return _decode(model, prompts, state, rules, capture)


@dataclass(frozen=True)
class _Rules:
    mask_id: int
    generation_length: int
    block_length: int
    threshold: float
    eos_id: int | None
    exclude_ids: tuple[int, ...]
    post_process: Callable[..., None]

    def update(self, logits: Tensor, blocks: Tensor, fixed: Tensor, remaining: Tensor) -> None:
        self.post_process(
            logits,
            blocks,
            self.mask_id,
            self.threshold,
            prompt_mask=fixed,
            exclude_ids=(self.mask_id, *self.exclude_ids),
            remaining=remaining,
        )


def _at_least_1(name: str, value: int) -> int:
    value = as_int(name, value)
    if value < 1:
        raise ValueError(f"{name}: expected at least 1; got {value}")
    return value


def _decode(
    model: BlockModel, prompts: Iterable[Sequence[int]], state: Slots, rules: _Rules, capture: bool
) -> Iterator[Decoded]:
    waiting = iter(enumerate(prompts))
    free = list(range(len(state.blocks)))
    at_work: dict[int, _Entry] = {}  # by slot
    steps = _Steps(model, state, rules, capture)
    while True:
        while free and (following := next(waiting, None)) is not None:
            index, prompt = following
            ids = _ids(index, prompt)
            slot = free.pop(0)
            _enter(model, state, rules, slot, ids)
            at_work[slot] = _Entry(index, len(ids), steps.started)
        if not at_work:
            return
        steps.start()
        number, finished = steps.finished()
        for slot in [slot for slot in at_work if finished[slot]]:
            entry = at_work[slot]
            if entry.first_step > number:  # the flag is of the sequence before it
                continue
            del at_work[slot]
            free.append(slot)
            yield Decoded(entry.index, steps.tokens(slot, entry.prompt_length), number - entry.first_step + 1)


@dataclass(frozen=True)
class _Entry:
    index: int
    prompt_length: int
    first_step: int


class _Steps:
    """Steps as they are started and looked at: on a GPU the one before the last, whose end is waited for, so that the
    GPU always has work; elsewhere the last."""

    def __init__(self, model: BlockModel, state: Slots, rules: _Rules, capture: bool) -> None:
        self.model, self.state, self.rules, self.capture = model, state, rules, capture
        self.started = 0
        self.cuda = state.blocks.is_cuda
        self.flags = torch.zeros(len(state.blocks), dtype=torch.bool, pin_memory=self.cuda)
        self.graph: Any = None
        self.logits_at = 0  # the memory that the graph reads
        if self.cuda:
            cuda: Any = torch.cuda  # whose classes have no types
            self.ends = [cuda.Event(), cuda.Event()]
            self.reading = cuda.Stream(state.blocks.device)

    def start(self) -> None:
        with torch.no_grad():
            logits = self.model(self.state.blocks, self.state.starts)
        shape = tuple(self.state.blocks.shape)
        if not isinstance(logits, Tensor) or logits.dim() != 3 or tuple(logits.shape[:2]) != shape:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model: expected logits of shape {(*shape, 'V')}; got {got}")
        if self.capture and self.started:  # the first step has compiled what it needed
            self._replay(logits)
        else:
            self._after(logits)
        if self.cuda:
            self.ends[self.started % 2].record()
        self.started += 1

    def _after(self, logits: Tensor) -> None:
        state = self.state
        self.rules.update(logits, state.blocks, state.fixed, state.remaining)
        state.advance(self.rules.mask_id, self.rules.eos_id)
        self.flags.copy_(state.finished, non_blocking=True)

    def _replay(self, logits: Tensor) -> None:
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            self.logits_at = logits.data_ptr()
            with torch.cuda.graph(self.graph):
                self._after(logits)
        if logits.data_ptr() != self.logits_at:
            raise ValueError("model: expected logits in the same memory at every call, as `capture` needs; they moved")
        self.graph.replay()

    def finished(self) -> tuple[int, list[bool]]:
        """The number of the step that is known to have ended, and of every slot, whether its sequence had by then.

        A later step may have ended too: then a flag may be its.
        """
        number = self.started - 1
        if self.cuda:
            if number == 0:
                return -1, [False] * len(self.flags)
            number -= 1
            self.ends[number % 2].synchronize()
        return number, self.flags.tolist()

    def tokens(self, slot: int, prompt_length: int) -> Tensor:
        """What a finished slot's sequence has generated."""
        rules = self.rules
        if not self.cuda:
            row = self.state.tokens[slot].clone()
        else:  # beside the step that runs, which leaves this slot alone
            with torch.cuda.stream(self.reading):
                self.reading.wait_event(self.ends[self.started % 2])
                row = self.state.tokens[slot].cpu()
        first = prompt_length % rules.block_length
        tokens = row[first : first + rules.generation_length]
        ends = (tokens == rules.eos_id).nonzero() if rules.eos_id is not None else tokens[:0]
        return tokens[: int(ends[0]) + 1] if len(ends) else tokens


def _ids(index: int, prompt: Sequence[int]) -> Tensor:
    ids = torch.tensor(as_ints(f"prompts[{index}]", prompt), dtype=torch.int64)
    if len(ids) and int(ids.min()) < 0:
        raise ValueError(f"prompts[{index}]: expected token ids from 0 on; got {int(ids.min())}")
    return ids


def _enter(model: BlockModel, state: Slots, rules: _Rules, slot: int, ids: Tensor) -> None:
    cached = len(ids) // rules.block_length * rules.block_length
    if state.blocks.is_cuda:
        ids = ids.pin_memory().to(state.blocks.device, non_blocking=True)
    if cached:
        with torch.no_grad():
            model.prefill(slot, ids[:cached])
    state.fill(slot, ids[cached:], len(ids), len(ids) + rules.generation_length, rules.mask_id)
