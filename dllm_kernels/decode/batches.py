"""Continuous batches: slots that each decode a sequence at a block of its own, filled anew from a queue.

Every forward pass takes one block of every slot. A block's last pass sees no mask and leaves in the model's cache what
its final tokens give; the next block starts then. That, and the end of a sequence, is found out on the device
(`slots`): the host reads one number a slot, of the step before, while the next forward pass runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dllm_kernels.checks import MAX_EXCLUDE_IDS, as_int, as_ints, at_least
from dllm_kernels.decode.slots import Slots
from dllm_kernels.post_process import dllm_post_process_fused


class BlockModel(Protocol):
    """A model with a cache of keys and values for every slot. It runs without gradients, on the current stream."""

    max_length: int  # positions that the cache of a slot holds

    def prefill(self, slot: int, input_ids: Tensor) -> None:
        """A new sequence enters a slot, and what was there is void: cache its first tokens (T,), the whole blocks of
        its prompt, if there are any."""

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


class BatchDecoder:
    """Decodes prompts with a model, `slots` sequences at a time; a slot that becomes free takes the next prompt.

    Args:
        model: see `BlockModel`.
        slots: sequences decoded together.
        device: where the model takes its ids and leaves its logits.
        mask_id: the mask token; never generated.
        generation_length: tokens to generate after each prompt, at most; at least 1.
        block_length: positions decoded together; blocks lie on multiples of it, so a prompt may end inside one.
        threshold: see `dllm_post_process_fused`.
        eos_id: a sequence ends at the first one of it that has no mask before it.
        exclude_ids: at most 3 more token ids that are never generated.
        post_process: the operation, or another function of its contract.
        capture: put what follows a forward pass into a CUDA graph, which the host launches at once. The model must
            leave its logits in the same memory every time, and `post_process` must not wait for the GPU.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    def __init__(
        self,
        model: BlockModel,
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
    ) -> None:
        self._model, self._post_process, self._threshold = model, post_process, threshold
        self._mask_id = as_int("mask_id", mask_id)
        self._eos_id = None if eos_id is None else as_int("eos_id", eos_id)
        self._exclude_ids = (self._mask_id, *as_ints("exclude_ids", exclude_ids))
        self._generation_length = at_least("generation_length", generation_length, 1)
        self._block_length = at_least("block_length", block_length, 1)
        slots = at_least("slots", slots, 1)
        device = torch.device(device)
        if self._eos_id == self._mask_id:
            raise ValueError(f"eos_id: expected another token than mask_id; got {eos_id} for both")
        if self._eos_id is not None and not 0 <= self._eos_id < 2**63:
            raise ValueError(f"eos_id: expected a token id, an int64 from 0 on; got {eos_id}")
        if len(self._exclude_ids) > MAX_EXCLUDE_IDS:
            most = MAX_EXCLUDE_IDS - 1
            raise ValueError(f"exclude_ids: expected at most {most} ids beside the mask; got {exclude_ids}")
        if capture and device.type != "cuda":
            raise ValueError(f"capture: expected a CUDA device for a CUDA graph; got {device}")
        self._capture = capture
        self._slots = Slots.empty(slots, self._block_length, self._generation_length, device)
        # Blocks without positions: the operation's checks of what it will be given, before the model runs.
        nothing = torch.empty(slots, 0, 2 * MAX_EXCLUDE_IDS, device=device)
        self._update(nothing, self._slots.blocks[:, :0], self._slots.fixed[:, :0])

        self._started = 0  # steps
        self._cuda = device.type == "cuda"
        self._runs = 0
        self._graph: Any = None
        self._logits_at = 0  # the memory that the graph reads
        if self._cuda:
            cuda: Any = torch.cuda  # whose classes have no types
            self._events = [cuda.Event(), cuda.Event()]  # of the last two steps
            self._reading = cuda.Stream(device)

    def decode(self, prompts: Iterable[Sequence[int]]) -> Iterator[Decoded]:
        """What is generated after each prompt, a sequence of token ids, in the order in which the sequences end.

        A prompt is taken whenever a slot is free. All others wait until `prompts` gives it or ends, so it must not wait
        for one to come. A prompt that is refused, and an error of `prompts` itself, are raised when the sequences
        before it have ended and been given out; what follows it is not taken. A further call ends the iterator of the
        one before, with a RuntimeError if that is asked for more.

        Raises:
            TypeError, ValueError: a prompt, or what the model returned, is not as described.
            RuntimeError: a sequence took more passes than it has positions: `post_process` does not always commit one.
        """
        self._runs += 1
        self._slots.running.zero_()
        checked = ((index, self._ids(index, prompt)) for index, prompt in enumerate(prompts))
        return self._decode(checked, self._runs)

    def _decode(self, waiting: Iterator[tuple[int, Tensor]], run: int) -> Iterator[Decoded]:
        free = list(range(len(self._slots.told)))
        at_work: dict[int, _Entry] = {}  # by slot
        most = (self._slots.tokens.shape[1] // self._block_length) * (self._block_length + 1)
        refused: Exception | None = None
        self._check_current(run)
        while True:
            while free and refused is None:
                try:
                    index, ids = next(waiting)
                except StopIteration:
                    break
                except Exception as error:  # a prompt's, or of whoever gives them
                    refused = error
                    break
                slot = free.pop(0)
                with self._device():
                    self._enter(slot, ids)
                at_work[slot] = _Entry(index, len(ids), self._started)
            if not at_work:
                if refused is not None:
                    raise refused
                return
            with self._device():
                self._step()
                number, ended = self._known()
            for slot, entry in list(at_work.items()):
                passes = number - entry.first_step + 1
                # Of a slot that was just filled, this is still of the sequence before; and a step that has ended since
                # is left for the next time, so that every run goes the same way.
                if passes > 0 and 0 < ended[slot] <= passes:
                    del at_work[slot]
                    free.append(slot)
                    with self._device():
                        tokens = self._tokens(slot, entry.prompt_length)
                    yield Decoded(entry.index, tokens, ended[slot])
                    self._check_current(run)
                elif passes > most:
                    raise RuntimeError(f"prompts[{entry.index}]: no end after {passes} passes, where {most} suffice")

    def _check_current(self, run: int) -> None:
        if run != self._runs:
            raise RuntimeError("decode: this decoder was given other prompts since")

    def _device(self) -> AbstractContextManager[Any]:
        """Launches go to the current device, which may be another one than the tensors'."""
        return torch.cuda.device(self._slots.blocks.device) if self._cuda else nullcontext()

    def _ids(self, index: int, prompt: Sequence[int]) -> Tensor:
        ids = as_ints(f"prompts[{index}]", prompt)
        if wrong := [token for token in ids if not 0 <= token < 2**63]:
            raise ValueError(f"prompts[{index}]: expected token ids, int64 from 0 on; got {wrong[0]}")
        needed = -(-(len(ids) + self._generation_length) // self._block_length) * self._block_length
        if needed > self._model.max_length:
            raise ValueError(
                f"prompts[{index}]: expected at most {self._model.max_length} positions, all that the model's cache "
                f"holds; {len(ids)} ids and {self._generation_length} to generate take {needed}"
            )
        return torch.tensor(ids, dtype=torch.int64)

    def _enter(self, slot: int, ids: Tensor) -> None:
        cached = len(ids) // self._block_length * self._block_length
        if self._cuda:
            ids = ids.pin_memory().to(self._slots.blocks.device, non_blocking=True)
        with torch.no_grad():
            self._model.prefill(slot, ids[:cached])
        self._slots.fill(slot, ids[cached:], len(ids), len(ids) + self._generation_length, self._mask_id)

    def _step(self) -> None:
        with torch.no_grad():
            logits = self._model(self._slots.blocks, self._slots.starts)
        shape = tuple(self._slots.blocks.shape)
        if not isinstance(logits, Tensor) or logits.dim() != 3 or tuple(logits.shape[:2]) != shape:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model: expected logits of shape {(*shape, 'V')}; got {got}")
        if self._capture and self._started:  # the first step has compiled what it needed
            self._replay(logits)
        else:
            self._after(logits)
        if self._cuda:
            self._events[self._started % 2].record()
        self._started += 1

    def _after(self, logits: Tensor) -> None:
        self._update(logits, self._slots.blocks, self._slots.fixed)
        self._slots.advance(self._mask_id, self._eos_id)

    def _update(self, logits: Tensor, blocks: Tensor, fixed: Tensor) -> None:
        self._post_process(
            logits,
            blocks,
            self._mask_id,
            self._threshold,
            prompt_mask=fixed,
            exclude_ids=self._exclude_ids,
            remaining=self._slots.remaining,
        )

    def _replay(self, logits: Tensor) -> None:
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            self._logits_at = logits.data_ptr()
            with torch.cuda.graph(self._graph):
                self._after(logits)
        if logits.data_ptr() != self._logits_at:
            raise ValueError("model: expected logits in the same memory at every call, as `capture` needs; they moved")
        self._graph.replay()

    def _known(self) -> tuple[int, list[int]]:
        """The number of a step that has ended, and what `Slots.ended` was after it, or after a later one.

        On a GPU that is the step before the last, so that there is always one to work at.
        """
        number = self._started - 1
        if self._cuda:
            number -= 1
            if number >= 0:
                self._events[number % 2].synchronize()
        return number, self._slots.told.tolist()

    def _tokens(self, slot: int, prompt_length: int) -> Tensor:
        """What the sequence has generated that ended in a slot."""
        if not self._cuda:
            row = self._slots.tokens[slot].clone()
        else:  # beside the step that runs, which leaves this slot alone
            with torch.cuda.stream(self._reading):
                self._reading.wait_event(self._events[self._started % 2])
                row = self._slots.tokens[slot].cpu()
        first = prompt_length % self._block_length
        tokens = row[first : first + self._generation_length]
        ends = (tokens == self._eos_id).nonzero() if self._eos_id is not None else tokens[:0]
        return tokens[: int(ends[0]) + 1] if len(ends) else tokens


@dataclass(frozen=True)
class _Entry:
    index: int
    prompt_length: int
    first_step: int
