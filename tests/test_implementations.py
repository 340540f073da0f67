"""What fused is held beside: implementations that do the same step, and floors that read what it reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import dllm_kernels
from benchmarks import implementations, limits, results, table, workloads
from benchmarks.workloads import Workload
from dllm_kernels import gpu

ROOT = Path(__file__).parent.parent


def _others(monkeypatch):
    """All that may be present, with what they are made of replaced by what is there."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setitem(
        sys.modules, "flashinfer", SimpleNamespace(sampling=SimpleNamespace(softmax=lambda rows: rows.softmax(-1)))
    )
    return [
        implementations.block_by_block,
        implementations.compiled_formula(),
        implementations.flashinfer_softmax,
    ]


@pytest.mark.parametrize("threshold", [0.95, 0.2, 1.0])
def test_the_others_do_the_same_step(monkeypatch, threshold):
    (logits,), prepared = workloads.make_inputs(Workload(8, 4, 300, "fp32", 50), "cpu", seed=3)
    prepared[0] = 7  # a block without masks
    expected = prepared.clone()
    dllm_kernels.dllm_post_process_reference(logits, expected, 300, threshold)
    for step in _others(monkeypatch):
        ids = prepared.clone()
        step(logits, ids, 300, threshold)
        assert ids.equal(expected)


def test_torchs_readers_read_the_masked_rows():
    logits = torch.randn(2, 4, 1000)
    found = limits.readers(3, logits)
    assert torch.equal(found["torch.amax"](logits, None, 0, 0.5), logits[:, :3].amax(-1))
    torch.testing.assert_close(found["torch.sum"](logits, None, 0, 0.5), logits[:, :3].sum(-1))


@pytest.mark.parametrize("blocks", [1, 8, 16, 32, 64, 128, 256])
def test_the_floors_kernels_split_rows_as_far_as_the_operation_does(blocks):
    """On a GPU of 132 processors; without more ways to search than of few rows."""
    rows = blocks * 32
    programs = gpu.PROGRAMS_PER_PROCESSOR * 132
    most = programs if rows < programs else gpu.ROUNDS * programs
    splits = 2 ** (max(1, min(8, most // rows)).bit_length() - 1)
    found = limits.maxima_kernels(32, torch.empty(blocks, 32, 157184, device="meta"))
    assert [name for name in found if f" {splits} shares a row" in name]
    assert len(found) <= 30


@pytest.mark.parametrize("device", limits.READ_GB_PER_S)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_how_fast_a_device_reads_is_what_its_record_shows(device, dtype):
    """Within what one record and the next may differ by."""
    slug = results.device_slug(device)
    newest_lacks_it = (device, dtype) == ("NVIDIA H200", "fp32")
    path = ROOT / "benchmarks" / "evidence" / f"kernel-{'whole-rows-' if newest_lacks_it else ''}{slug}.json"
    sheet = table.Sheet(results.load(results.KernelTable, path), f"128x32x157184-{dtype}-100")
    assert sheet.floor_clocks[0] == "device_us"
    assert sheet.gb_per_s(limits.FLOOR) == pytest.approx(limits.READ_GB_PER_S[device], rel=0.02)


def test_on_a_gpu_the_floor_of_reading_nothing_is_a_launch():
    assert list(limits.readers(0, SimpleNamespace(is_cuda=True))) == [limits.EMPTY_KERNEL]


def test_the_floors_kernels_find_the_maxima():
    """In a process of its own: the interpreter has to be asked for before Triton is imported."""
    program = """
import torch
from benchmarks import limits
for dtype in (torch.bfloat16, torch.float32):
    for vocab in (5000, 2049, 40):
        logits = torch.randn(2, 4, vocab).to(dtype)
        logits[:, 1] = torch.arange(vocab)  # the largest comes last
        expected = logits[:, :3].float().amax(-1)
        found = limits.maxima_kernels(3, logits)
        assert len(found) == 30, len(found)
        for name, read in list(found.items())[::4]:
            maxima = read(logits, None, 0, 0.5)
            assert torch.equal(maxima.view(2, 3, -1).amax(-1), expected), (dtype, vocab, name)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
