"""Decoding the same prompts in every mode, interleaved, and what each took."""

from __future__ import annotations

import datetime
import hashlib
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

import dllm_kernels
from benchmarks.e2e.record import Agreed, EndToEnd, Forward, Load, Repeat
from benchmarks.e2e.serving import Served
from benchmarks.e2e.steps import Agreement, Mode, fused_step
from benchmarks.measure import command, machine
from benchmarks.measure.cupti import Profiler

Progress = Callable[[str], None]
KERNEL = "post_process_kernel"


@dataclass(frozen=True)
class Task:
    """What is decoded, and by what rules."""

    prompts: Sequence[Sequence[int]]
    is_correct: Callable[[int, Sequence[int]], bool] | None  # of a prompt's number and its tokens; None: no answers
    mask_id: int
    eos_id: int | None
    block_length: int
    generation_length: int
    threshold: float = 0.95

    @property
    def cache_length(self) -> int:
        """Positions of the longest sequence, on the grid of blocks."""
        longest = max(map(len, self.prompts)) + self.generation_length
        return -(-longest // self.block_length) * self.block_length

    def prompts_of(self, load: Load) -> list[Sequence[int]]:
        """One for every request, from the first on again where there are fewer."""
        return [self.prompts[number % len(self.prompts)] for number in range(load.requests)]


def measure(
    task: Task,
    serve: Callable[[int], Served],
    loads: Sequence[Load],
    modes: Sequence[Mode],
    *,
    model: str,
    questions: str,
    acceptance: str,
    repeats: int,
    seed: int,
    progress: Progress,
) -> EndToEnd:
    """`serve` makes the model for so many slots. The first mode is what the others are held beside."""
    gpu = machine.current_gpu()
    done: list[Repeat] = []
    agreed, forwards, device_us = [], [], {}
    order = random.Random(seed)
    with machine.lock(gpu.uuid_hash if gpu else "cpu", progress):
        for load in loads:
            prompts = task.prompts_of(load)
            served = serve(load.slots)
            progress(f"{load.name}: all modes on the same logits")
            agreement = Agreement(modes)
            list(decoder(task, served, load, agreement, capture=False).decode(prompts))
            agreed.append(_agreed(load, agreement))
            decoders = {}
            for mode in modes:
                progress(f"{load.name}: {mode.name}, warming up")
                capture = served.timeline.cuda and not mode.waits
                decoders[mode.name] = decoder(task, served, load, mode.post_process, capture)
                list(decoders[mode.name].decode(prompts[: load.slots]))
            for repeat in range(repeats):
                for mode in order.sample(modes, len(modes)):
                    progress(f"{load.name}: {mode.name}, {repeat + 1} of {repeats}")
                    done.append(_once(task, served, load, mode, repeat, decoders[mode.name], prompts, gpu))
            forwards.append(_forward(load, served))
        for load in loads if gpu else ():  # CUPTI, once it is on, may slow launches down
            progress(f"{load.name}: the fused operation alone")
            if (us := _device_us(task, serve(load.slots), load)) is not None:
                device_us[load.name] = us
    return EndToEnd(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=command("benchmarks", sys.argv[1:]),
        seed=seed,
        environment=machine.describe_environment(),
        model=model,
        questions=questions,
        acceptance=acceptance,
        modes={mode.name: mode.source for mode in modes},
        threshold=task.threshold,
        block_length=task.block_length,
        generation_length=task.generation_length,
        loads=tuple(loads),
        repeats=tuple(done),
        agreed=tuple(agreed),
        forwards=tuple(forwards),
        device_us=device_us,
    )


def decoder(
    task: Task, served: Served, load: Load, post_process: Callable[..., None], capture: bool
) -> dllm_kernels.BatchDecoder:
    return dllm_kernels.BatchDecoder(
        served,
        slots=load.slots,
        device=served.device,
        mask_id=task.mask_id,
        generation_length=task.generation_length,
        block_length=task.block_length,
        threshold=task.threshold,
        eos_id=task.eos_id,
        post_process=post_process,
        capture=capture,
    )


def _once(
    task: Task,
    served: Served,
    load: Load,
    mode: Mode,
    repeat: int,
    decoder: dllm_kernels.BatchDecoder,
    prompts: Sequence[Sequence[int]],
    gpu: machine.Gpu | None,
) -> Repeat:
    cuda = served.timeline.cuda
    served.restart()
    _wait(cuda)
    began = time.perf_counter()
    found = list(decoder.decode(prompts))
    seconds = time.perf_counter() - began
    _wait(cuda)
    correct = None
    if task.is_correct is not None:
        correct = sum(task.is_correct(one.index % len(task.prompts), one.tokens.tolist()) for one in found)
    return Repeat(
        load=load.name,
        mode=mode.name,
        repeat=repeat,
        seconds=seconds,
        tokens=sum(len(one.tokens) for one in found),
        sequence_passes=sum(one.forward_passes for one in found),
        passes=len(served.timeline.passes),
        forward_us=tuple(served.timeline.forward_us()),
        outside_us=tuple(served.timeline.outside_us()),
        correct=correct,
        digest=digest_of(found),
        fault=gpu.state([os.getpid()]).fault if gpu else "",
    )


def digest_of(found: Iterable[dllm_kernels.Decoded]) -> str:
    """SHA-256 of all tokens, and of the passes that they took, in the order of the prompts."""
    digest = hashlib.sha256()
    for one in sorted(found, key=lambda one: int(one.index)):
        digest.update(one.tokens.numpy().tobytes())
        digest.update(one.forward_passes.to_bytes(8, "little"))
    return digest.hexdigest()


def _wait(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def _agreed(load: Load, agreement: Agreement) -> Agreed:
    return Agreed(
        load=load.name,
        steps=agreement.steps,
        positions=agreement.positions,
        masked=agreement.masked,
        accepted=agreement.accepted,
        undecidable=agreement.undecidable,
        excused=agreement.excused,
        differing=dict(agreement.differing),
    )


def _forward(load: Load, served: Served) -> Forward:
    met = served.experts_met()
    return Forward(
        load=load.name,
        us=served.forward_us(),
        bytes_read=served.bytes_read(),
        operations=served.operations(),
        experts_met=statistics.mean(met) if met else None,
    )


def _device_us(task: Task, served: Served, load: Load) -> float | None:
    """Of the fused operation's kernel in a step of this load, by CUPTI, on average of the steps whose time outside the
    forward pass it is held beside; None if CUPTI misses steps twice."""
    prompts = task.prompts_of(load)
    decoding = decoder(task, served, load, fused_step, capture=False)
    list(decoding.decode(prompts[: load.slots]))
    with Profiler():  # CUPTI takes a second to start, once, and misses what runs meanwhile
        torch.cuda.synchronize()
    for _ in range(2):
        served.restart()
        with Profiler() as profile:
            list(decoding.decode(prompts))
            torch.cuda.synchronize()
        events = [event for event in profile.events if KERNEL in event.name()]
        ns = [event.duration_ns() for event in sorted(events, key=lambda event: int(event.start_ns()))]
        if len(ns) == len(served.timeline.passes) and (steps := served.timeline.undisturbed()):  # of one launch each
            return float(statistics.mean(ns[number] for number in steps)) / 1e3
    return None
