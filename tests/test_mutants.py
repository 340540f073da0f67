"""Every planted slowdown still applies to the package as it is, and changes how it runs, never what it finds."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from benchmarks.mutants import KERNEL, MUTANTS, Edit, Mutant
from benchmarks.workloads import WORKLOADS
from tests.compile_kernel import compiler

# Each change of the kernel's text once: the others plant one of these.
COMPILED = ("second-pass", "no-early-exit", "kernel-2-percent", "few-masked")
TRY = """
import torch
from dllm_kernels import dllm_post_process_fused, dllm_post_process_reference
import dllm_kernels; print(dllm_kernels.__file__)
device = "cuda" if torch.cuda.is_available() else "cpu"
for vocab in (300, 20_000):
    logits = torch.randn(2, 32, vocab, device=device, dtype=torch.bfloat16) * 4
    ids = torch.full((2, 32), 7, device=device)
    ids[0, ::2] = 3
    fused, reference = ids.clone(), ids.clone()
    dllm_post_process_fused(logits, fused, 7, 0.3, backend="triton" if device == "cuda" else "cpu")
    dllm_post_process_reference(logits, reference, 7, 0.3)
    assert fused.equal(reference), vocab
"""


@pytest.mark.parametrize("name", MUTANTS)
def test_it_applies_and_finds_the_same(tmp_path, name):
    mutant = MUTANTS[name]
    assert set(mutant.workloads) <= set(WORKLOADS)
    mutant.plant(tmp_path)
    for path in tmp_path.rglob("*.py"):
        compile(path.read_text(), str(path), "exec")
    if mutant.device_type == "cuda" and not torch.cuda.is_available():
        if name in COMPILED:
            with compiler(tmp_path) as compile_:
                compile_("sm_90", "bfloat16, rows on 16 bytes, no options")
        return  # the kernel's own text is not run without a GPU
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{TRY}"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(tmp_path))


def test_every_change_of_the_kernel_is_compiled():
    def changes(names):
        return {edit.new for name in names for edit in MUTANTS[name].edits if edit.file == KERNEL}

    assert changes(COMPILED) == changes(MUTANTS)


def test_a_package_that_has_changed_is_an_error(tmp_path):
    mutant = Mutant("gone", "nothing", (Edit("cpu.py", "no such text", ""),))
    with pytest.raises(ValueError, match=r"mutant gone: expected once in cpu\.py, found 0"):
        mutant.plant(tmp_path)
