"""LLaDA2 as a `BatchDecoder` drives it: a cache for every slot, the forward pass in a CUDA graph, and its times."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.e2e.llada2 import Cache, Experts, LLaDA2

SURE, UNSURE, STEP = 40.0, 8.0, 0.0625  # logits of a script's tokens: p is 1, or at most 0.1; bfloat16 tells them apart


class Script:
    """Acceptance for random weights, whose logits are flat: every position has a token, which the script makes the
    likeliest, and in every pass it makes some positions sure of theirs.

    How many, 0 to 6, is drawn beforehand for every number of masks that a block may have left; where none is, the
    fallback takes one. What is accepted follows from the ids alone, so that every implementation of the step takes
    the same way.
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

    def apply(self, logits: Tensor, input_ids: Tensor, starts: Tensor) -> None:
        """Write the script into logits (S, L, V), by ids (S, L) and their first positions (S,)."""
        slots, block_length = input_ids.shape
        ways = (starts // block_length + torch.arange(slots, device=starts.device)) % self.WAYS
        masked = input_ids == self.mask_id
        ranks = masked.gather(1, self.order[ways]).cumsum(dim=-1).gather(1, self.places[ways])
        sure = masked & (ranks <= self.counts[ways, masked.sum(dim=-1)].unsqueeze(-1))
        heights = torch.where(sure, SURE, UNSURE + STEP * ranks).to(logits.dtype)
        positions = starts.unsqueeze(-1) + torch.arange(block_length, device=starts.device)
        tokens = self.tokens[positions % len(self.tokens)]
        logits.scatter_(-1, tokens.unsqueeze(-1), heights.unsqueeze(-1))


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

    def _us(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) * 1e3 if self.cuda else (end - start) * 1e6

    def forward_us(self) -> list[float]:
        """Of every pass; the GPU must be done."""
        return [self._us(start, end) for start, end in self.passes]

    def outside_us(self) -> list[float]:
        """From the end of a pass to the start of the next, but for steps after which a sequence entered."""
        pairs = enumerate(zip(self.passes, self.passes[1:], strict=False), start=1)
        return [self._us(before[1], after[0]) for number, (before, after) in pairs if number not in self.entries]


class Served:
    """The model with a cache of `slots` sequences of up to `length` tokens: a `dllm_kernels.BlockModel`."""

    def __init__(self, model: LLaDA2, *, slots: int, block_length: int, length: int, script: Script | None = None):
        weight = model.lm_head.weight
        self.model, self.script, self.block_length = model, script, block_length
        self.cache = Cache(model.config, slots, length, dtype=weight.dtype, device=weight.device)
        self.input_ids = torch.zeros(slots, block_length, dtype=torch.int64, device=weight.device)
        self.starts = torch.zeros(slots, dtype=torch.int64, device=weight.device)
        self.timeline = Timeline(weight.is_cuda)
        self.graph: Any = None
        self.logits: Tensor | None = None

    def prefill(self, slot: int, input_ids: Tensor) -> None:
        self.timeline.entries.add(len(self.timeline.passes))
        self.model.prefill(input_ids, self.cache, slot, self.block_length)

    def __call__(self, input_ids: Tensor, starts: Tensor) -> Tensor:
        # A graph reads the memory that it was captured with.
        self.input_ids.copy_(input_ids)
        self.starts.copy_(starts)
        start = self.timeline.mark()
        logits = self._replay() if self.timeline.cuda else self._forward()
        self.timeline.passes.append((start, self.timeline.mark()))
        return logits

    def restart(self) -> None:
        """Forget the times so far."""
        self.timeline = Timeline(self.timeline.cuda)

    def bytes_read(self) -> int:
        """What the last pass had to read at least: each weight that it used once, and the keys and values before it."""
        used = 0
        expert_bytes = 0
        hooks = []

        def count(experts: Tensor) -> None:
            nonlocal used
            used += len(set(experts.flatten().tolist()))

        for module in self.model.modules():
            if isinstance(module, Experts):
                expert_bytes = module.gate_up[0].nbytes + module.down[0].nbytes
                hooks.append(module.gate.register_forward_hook(lambda _gate, _inputs, output: count(output[0])))
        with torch.no_grad():
            self._forward()
        for hook in hooks:
            hook.remove()
        others = {
            parameter.data_ptr(): parameter.nbytes
            for name, parameter in self.model.named_parameters()
            if not name.endswith(("gate_up", "down")) and "word_embeddings" not in name
        }
        others[self.model.lm_head.weight.data_ptr()] = self.model.lm_head.weight.nbytes  # which may be tied
        a_token = self.cache.bytes // (len(self.cache.slots) * self.cache.length)
        return used * expert_bytes + sum(others.values()) + a_token * int(self.starts.sum())

    def forward_us(self, passes: int = 10) -> float:
        """Of the last pass, repeated: the median."""
        timeline = Timeline(self.timeline.cuda)
        for _ in range(passes):
            start = timeline.mark()
            with torch.no_grad():
                self._replay() if timeline.cuda else self._forward()
            timeline.passes.append((start, timeline.mark()))
        if timeline.cuda:
            torch.cuda.synchronize()
        return statistics.median(timeline.forward_us())

    def _forward(self) -> Tensor:
        logits = self.model.step(self.input_ids, self.starts, self.cache)
        if self.script is not None:
            self.script.apply(logits, self.input_ids, self.starts)
        return logits

    def _replay(self) -> Tensor:
        if self.graph is None:
            self._capture()
        self.graph.replay()
        assert self.logits is not None
        return self.logits

    def _capture(self) -> None:
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries prepare themselves in their first calls, which a graph may not hold
            for _ in range(2):
                self._forward()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logits = self._forward()
        self.graph = graph
