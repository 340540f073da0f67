"""In a measuring process: a workload of whole sequences, decoded with the fused step and with the reference's."""

from __future__ import annotations

import dataclasses
import gc
import os
import time
from collections.abc import Sequence
from typing import Any

import torch

import dllm_kernels
from benchmarks import workloads
from benchmarks.e2e import checkpoint
from benchmarks.e2e.llada2 import LLADA2_MINI
from benchmarks.e2e.runs import digest_of
from benchmarks.e2e.serving import Script, Served
from benchmarks.e2e.steps import Agreement, Mode, fused_step, reference_step
from benchmarks.measure import machine

# All but the vocabulary is small: what is measured is the loop around the model.
LAYERS, HIDDEN, HEADS, KV_HEADS, WIDTH = 2, 256, 4, 2, 64
PROMPT_LENGTH = 40  # a block that is prefilled, and a part of the next
WARM_UP = 3  # decodings of each implementation


class DecodingBench:
    """One workload of sequences in one process. Its public methods are the commands of the worker, as `Bench` has.

    There are as many prompts as slots, all of one length, and no EOS. So it does not see a slot that is filled again
    while others are at work, nor a sequence that ends early.
    """

    def __init__(self, workload: str, seed: int) -> None:
        kind = workloads.WORKLOADS[workload]
        assert isinstance(kind, workloads.Decoding)
        self.workload = kind
        self.decoders: dict[str, Any] = {}
        self.is_absent = not hasattr(dllm_kernels, "BatchDecoder")
        if self.is_absent:
            return
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.cuda = device == "cuda"
        self.processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        config = dataclasses.replace(
            LLADA2_MINI, vocab_size=kind.vocab, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN,
            num_hidden_layers=LAYERS, first_k_dense_replace=LAYERS, num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS, head_dim=WIDTH, tie_word_embeddings=True,
        )  # fmt: skip
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[kind.dtype]
        model = checkpoint.random_model(config, device=device, dtype=dtype, seed=seed)
        length = PROMPT_LENGTH + workloads.DECODED_TOKENS
        self.served = Served(
            model,
            slots=kind.batch,
            block_length=kind.block_length,
            max_length=-(-length // kind.block_length) * kind.block_length,
            mask_id=kind.mask_id,
            script=Script(kind.vocab, kind.mask_id, kind.block_length, device, seed),
        )
        generator = torch.Generator().manual_seed(seed)
        shape = (kind.batch, PROMPT_LENGTH)
        self.prompts = torch.randint(kind.mask_id, shape, generator=generator).tolist()
        self.modes = [
            Mode("reference", reference_step, False, ""),
            Mode("fused", fused_step, False, ""),
        ]
        self.decoders = {mode.name: self._decoder(mode.post_process, self.cuda) for mode in self.modes}

    def _decoder(self, post_process: Any, capture: bool) -> Any:
        return dllm_kernels.BatchDecoder(
            self.served,
            slots=self.workload.batch,
            device=self.served.device,
            mask_id=self.workload.mask_id,
            generation_length=workloads.DECODED_TOKENS,
            block_length=self.workload.block_length,
            threshold=workloads.THRESHOLD,
            post_process=post_process,
            capture=capture,
        )

    def check(self) -> dict[str, Any]:
        """Whether both accept the same tokens on the same logits, outside the undecidable band; and which those are."""
        if self.is_absent:
            return {"passed": False, "detail": "the package has no BatchDecoder", "digest": "", "absent": True}
        agreement = Agreement(self.modes)
        found = list(self._decoder(agreement, False).decode(self.prompts))
        if differing := agreement.differing["fused"]:
            detail = f"{differing} tokens are accepted otherwise than by the reference"
            return {"passed": False, "detail": detail, "digest": digest_of(found)}
        detail = f"the same tokens as the reference's in {agreement.steps} steps of {len(found)} sequences"
        return {"passed": True, "detail": detail, "digest": digest_of(found)}

    def warm_up(self) -> dict[str, int]:
        for name in self.decoders:
            for _ in range(WARM_UP):
                self._sample(name)
        return dict.fromkeys(self.decoders, WARM_UP)

    def begin(self, clock: str, core: int | None = None, only: Sequence[str] | None = None) -> list[str]:
        """See `Bench.begin`."""
        assert clock == "call_us", f"a decoding has no {clock}"
        gc.collect()
        if core is not None:
            os.sched_setaffinity(0, {core})
        return list(self.decoders if only is None else only)

    def sample(self, implementation: str, calls: int) -> list[tuple[float, float, int, int]]:
        """See `Bench.sample`: a call is a decoding of every prompt."""
        if self.cuda:
            self._sample(implementation)  # the other side has used the caches of processor and GPU
        return [self._sample(implementation) for _ in range(calls)]

    def _sample(self, implementation: str) -> tuple[float, float, int, int]:
        self.served.restart()
        if self.cuda:
            torch.cuda.synchronize()
        waited_ns = 0 if self.cuda else machine.waited_ns()
        start = time.perf_counter_ns()
        for _ in self.decoders[implementation].decode(self.prompts):
            pass
        ready = time.perf_counter_ns()
        waited_ns = 0 if self.cuda else machine.waited_ns() - waited_ns
        us = (ready - start) / 1e3
        return us, us, ready - start, waited_ns

    def end(self) -> list[float]:
        """See `Bench.end`: the host's clock leaves nothing to be read."""
        if self.processors:
            os.sched_setaffinity(0, self.processors)
        return []

    def close(self) -> None:
        """Give the memory back: other processes need it."""
        self.decoders.clear()
        if not self.is_absent:
            del self.served
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def counts(self) -> dict[str, Any]:
        """Nothing: a decoding is as many launches as its script has passes."""
        return {"counts": {}, "kernels": []}
