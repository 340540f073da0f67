"""LLaDA2 as a `BatchDecoder` drives it: a cache for every slot, the forward pass in a CUDA graph, and its times."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.e2e.llada2 import Cache, Experts, LLaDA2

SURE, STEP = 40.0, 0.0625  # logits: of a probability of 1; by which those of unsure positions differ, for bfloat16


class Script:
    """Acceptance for random weights, whose logits are flat: every position has a likeliest token, and in every pass
    some positions are sure of theirs.

    How many, 0 to 6, is drawn beforehand for every number of masks that a block may have left; where none is, the
    fallback takes one. What is accepted follows from the ids alone, so that every implementation of the step takes
    the same way; and as a position's token changes with the number of masks left, the text tells which way it was.
    To the model a mask is shown as a token of its position's: masks all alike would all go to the same few experts.
    """

    WAYS = 16  # that blocks take

    def __init__(self, vocab: int, mask_id: int, block_length: int, device: torch.device | str, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        counts = torch.randint(7, (self.WAYS, block_length + 1), generator=generator)
        order = torch.rand(self.WAYS, block_length, generator=generator).argsort(dim=-1)
        self.counts, self.order = counts.to(device), order.to(device)
        self.places = order.argsort(dim=-1).to(device)
        self.tokens = torch.randint(min(vocab, mask_id), (2**16,), generator=generator).to(device)
        self.mask_id = mask_id
        # Above what is left of normal logits, and a probability of a tenth to a half.
        self.unsure = math.log(vocab) - 2

    def shown(self, input_ids: Tensor, starts: Tensor) -> Tensor:
        """What the model is shown for ids (S, L) whose first positions are `starts` (S,)."""
        return torch.where(input_ids == self.mask_id, self._tokens(_positions(input_ids, starts)), input_ids)

    def apply(self, logits: Tensor, input_ids: Tensor, starts: Tensor) -> None:
        """Write the script into logits (S, L, V), by ids (S, L) and their first positions (S,)."""
        slots, block_length = input_ids.shape
        ways = (starts // block_length + torch.arange(slots, device=starts.device)) % self.WAYS
        masked = input_ids == self.mask_id
        left = masked.sum(dim=-1)
        ranks = masked.gather(1, self.order[ways]).cumsum(dim=-1).gather(1, self.places[ways])
        sure = masked & (ranks <= self.counts[ways, left].unsqueeze(-1))
        heights = torch.where(sure, SURE, self.unsure + STEP * ranks).to(logits.dtype)
        tokens = self._tokens(_positions(input_ids, starts) * (block_length + 1) + left.unsqueeze(-1))
        logits.scatter_(-1, tokens.unsqueeze(-1), heights.unsqueeze(-1))

    def _tokens(self, places: Tensor) -> Tensor:
        return self.tokens[places % len(self.tokens)]


def _positions(input_ids: Tensor, starts: Tensor) -> Tensor:
    return starts.unsqueeze(-1) + torch.arange(input_ids.shape[1], device=starts.device)


@dataclass
class Timeline:
    """When forward passes began and ended: on a GPU by its events, elsewhere by the host's clock."""

    cuda: bool
    passes: list[tuple[Any, Any]] = field(default_factory=list)
    entries: set[int] = field(default_factory=set)  # passes before which a sequence entered

    def mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def _us(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) * 1e3 if self.cuda else (end - start) * 1e6

    def forward_us(self) -> list[float]:
        """Of every pass."""
        self._wait()
        return [self._us(start, end) for start, end in self.passes]

    def undisturbed(self) -> list[int]:
        """Numbers of the passes that another one follows, without a sequence that entered between them."""
        return [number for number in range(len(self.passes) - 1) if number + 1 not in self.entries]

    def outside_us(self) -> list[float]:
        """From the end of each undisturbed pass to the start of the next."""
        self._wait()
        return [self._us(self.passes[number][1], self.passes[number + 1][0]) for number in self.undisturbed()]


class Served:
    """The model with a cache of `slots` sequences of up to `max_length` tokens: a `dllm_kernels.BlockModel`.

    Its logits rule the mask out, so that every step sees the same ones and none has to exclude it: a position whose
    likeliest token is the mask would stay one for good.
    """

    def __init__(
        self,
        model: LLaDA2,
        *,
        slots: int,
        block_length: int,
        max_length: int,
        mask_id: int,
        script: Script | None = None,
        prefill_lengths: Iterable[int] = (),
    ) -> None:
        weight = model.lm_head.weight
        has_experts = any(isinstance(module, Experts) for module in model.modules())
        if weight.is_cuda and has_experts and torch.cuda.get_device_capability(weight.device) < (9, 0):
            raise ValueError(
                "model: expected a GPU of compute capability 9.0 or more, as it has experts: on older ones, grouped "
                "matmul enters no graph"
            )
        self.model, self.script, self.block_length, self.max_length = model, script, block_length, max_length
        self.mask_id = mask_id
        self.cache = Cache(model.config, slots, max_length, dtype=weight.dtype, device=weight.device)
        self.device = weight.device
        self.timeline = Timeline(weight.is_cuda)
        self.last: tuple[Tensor, Tensor] | None = None  # arguments of the last pass
        self.graphs: dict[tuple[int, int], tuple[Any, Tensor]] = {}  # with their logits, by the memory that they read
        self.prefills: dict[int, tuple[Any, Tensor, Tensor]] = {}  # graphs with their ids and slot, by number of tokens
        # One for all graphs: a pass's logits hold until the next pass or prefill.
        self.pool = torch.cuda.graph_pool_handle() if weight.is_cuda else None
        if weight.is_cuda:
            for length in sorted({*prefill_lengths} - {0}):
                self._capture_prefill(self.cache.slots.new_zeros(1, length), self.cache.slots[:1].clone())

    def prefill(self, slot: int, input_ids: Tensor) -> None:
        self.timeline.entries.add(len(self.timeline.passes))
        if not len(input_ids):
            return
        if not self.timeline.cuda:
            self.model.prefill(input_ids[None], self.cache, self.cache.slots[slot : slot + 1], self.block_length)
            return
        if len(input_ids) not in self.prefills:
            self._capture_prefill(input_ids[None].clone(), self.cache.slots[slot : slot + 1].clone())
        graph, ids, slots = self.prefills[len(input_ids)]
        ids.copy_(input_ids[None])
        slots.fill_(slot)
        graph.replay()

    def _capture_prefill(self, ids: Tensor, slots: Tensor) -> None:
        """Of so many tokens as `ids` (1, T) has: launched kernel by kernel, it takes the host several times as long as
        the GPU. `slots` (1,) is filled with them, as by the prefill itself."""
        prefill = functools.partial(self.model.prefill, ids, self.cache, slots, self.block_length)
        with torch.no_grad():
            graph, _ = self._captured(prefill)
        self.prefills[ids.shape[1]] = (graph, ids, slots)

    def __call__(self, input_ids: Tensor, starts: Tensor) -> Tensor:
        self.last = (input_ids, starts)
        run = self._run_of(input_ids, starts)
        start = self.timeline.mark()
        logits = run()
        self.timeline.passes.append((start, self.timeline.mark()))
        return logits

    def restart(self) -> None:
        """Forget the times so far."""
        self.timeline = Timeline(self.timeline.cuda)

    def experts_met(self) -> list[int]:
        """Of each layer with experts, how many different ones the last pass takes."""
        met: list[int] = []
        gates = [module.gate for module in self.model.modules() if isinstance(module, Experts)]
        hooks = [
            gate.register_forward_hook(
                lambda _gate, _inputs, output: met.append(len(set(output[0].flatten().tolist())))
            )
            for gate in gates
        ]
        assert self.last is not None
        with torch.no_grad():
            self._forward(*self.last)
        for hook in hooks:
            hook.remove()
        return met

    def bytes_read(self) -> int:
        """What the last pass has to read at least: each weight that it uses once, and the keys and values before it."""
        assert self.last is not None
        experts = [module for module in self.model.modules() if isinstance(module, Experts)]
        total = sum(
            met * (module.gate_up[0].nbytes + module.down[0].nbytes)
            for met, module in zip(self.experts_met(), experts, strict=True)
        )
        weights = {
            parameter.data_ptr(): parameter.nbytes
            for name, parameter in self.model.named_parameters()
            if not name.endswith(("gate_up", "down")) and "word_embeddings" not in name
        }
        weights[self.model.lm_head.weight.data_ptr()] = self.model.lm_head.weight.nbytes  # which may be tied
        a_token = self.cache.bytes // (len(self.cache.slots) * self.max_length)
        return total + sum(weights.values()) + a_token * int(self.last[1].sum())

    def operations(self) -> int:
        """Multiplications and additions of the last pass's matrix products, without attention's."""
        config = self.model.config
        used = sum(
            parameter.numel() * (config.num_experts_per_tok / config.num_experts if parameter.dim() == 3 else 1)
            for name, parameter in self.model.named_parameters()
            if parameter.dim() > 1 and "word_embeddings" not in name
        )
        if config.tie_word_embeddings:
            used += self.model.lm_head.weight.numel()
        assert self.last is not None
        return round(2 * used * self.last[0].numel())

    def forward_us(self, passes: int = 10) -> float:
        """Of the last pass, repeated: the median."""
        assert self.last is not None
        timeline = Timeline(self.timeline.cuda)
        run = self._run_of(*self.last)
        for _ in range(passes):
            start = timeline.mark()
            with torch.no_grad():
                run()
            timeline.passes.append((start, timeline.mark()))
        return statistics.median(timeline.forward_us())

    def _run_of(self, input_ids: Tensor, starts: Tensor) -> Callable[[], Tensor]:
        if not self.timeline.cuda:
            return functools.partial(self._forward, input_ids, starts)
        memory = (input_ids.data_ptr(), starts.data_ptr())
        if memory not in self.graphs:
            self.graphs[memory] = self._captured(functools.partial(self._forward, input_ids, starts))
        graph, logits = self.graphs[memory]

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

    def _forward(self, input_ids: Tensor, starts: Tensor) -> Tensor:
        shown = input_ids if self.script is None else self.script.shown(input_ids, starts)
        logits = self.model.step(shown, starts, self.cache)
        if self.script is not None:
            self.script.apply(logits, input_ids, starts)
        logits[..., self.mask_id] = -torch.inf
        return logits

    def _captured(self, run: Callable[[], Any]) -> tuple[Any, Any]:
        """A graph of `run`, and what it returns, in the memory where every replay leaves it."""
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries prepare themselves in their first calls, which a graph may not hold
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            returned = run()
        return graph, returned
