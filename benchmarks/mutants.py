"""Planted slowdowns of the real operation, which the gate must catch.

A mutant is the working tree's package with some text replaced. Amounts are in shares of the fused operation's time on
an H100 or an H200: a GPU of another speed sees other shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure.sides import PACKAGE, copy_package
from benchmarks.workloads import QUICK

LAUNCH, KERNEL = "gpu/__init__.py", "gpu/kernel.py"  # in the package
SM_MHZ = 1980  # of both at work
# Microseconds on the device's clock by positions, vocabulary and bytes of a logit, all masked, from memory.
ON_AN_H100 = {(32, 128000, 2): 6.4, (32, 157184, 2): 7.3, (32, 151936, 2): 7.2, (1024, 157184, 2): 112.0}
ON_AN_H200 = {(32, 128000, 2): 6.0, (32, 157184, 2): 6.7, (32, 151936, 2): 6.7, (1024, 157184, 2): 82.0}
REFERENCE_US = 120.0
# Of an empty loop of Python's: about a tenth of the call on one block, which took 30 to 57 us in the processes of one
# run on an H100. A loop, because the call is mostly Python too, and takes longer where that does.
LOOPS = 300
ONE_BLOCK = "1x32x157184-bf16-100"


@dataclass(frozen=True)
class Edit:
    """One replacement; `old` stands in the file exactly once."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A slowdown: what was done, and where it shows."""

    name: str
    what: str
    edits: tuple[Edit, ...]
    device_type: str = "cuda"
    workloads: tuple[str, ...] = (ONE_BLOCK,)

    def plant(self, folder: Path) -> None:
        """Write the mutated package into `folder`.

        Raises:
            ValueError: the package no longer has the text that is to be replaced.
        """
        copy_package(folder)
        for edit in self.edits:
            path = folder / PACKAGE / edit.file
            text = path.read_text()
            if text.count(edit.old) != 1:
                raise ValueError(
                    f"mutant {self.name}: expected once in {edit.file}, found {text.count(edit.old)}: {edit.old}"
                )
            path.write_text(text.replace(edit.old, edit.new))


def _kernel_longer(cycles: str, where: str = "True") -> tuple[Edit, ...]:
    """The last program of a block idles for `cycles` of the processor's clock, an expression of the launcher's, `where`
    an expression of the kernel's holds."""
    clock = 'tl.inline_asm_elementwise("mov.u64 $0, %clock64;", "=l", [], dtype=tl.int64, is_pure=False, pack=1)'
    wait = f"""
    if {where}:
        started = {clock}
        now = started
        while now - started < SPIN:
            now = {clock}
"""
    parameter = "    PARTED: tl.constexpr,\n"
    constant = "            parts > 1,  # PARTED\n"
    decided = "    tl.store(counter_ptr, 0)\n    if remaining_ptr"
    return (
        Edit(KERNEL, parameter, f"{parameter}    SPIN: tl.constexpr,\n"),
        Edit(KERNEL, decided, wait + decided),
        Edit(LAUNCH, constant, f"{constant}            int({cycles}),\n"),
    )


def _share_of_device_time(share: float) -> str:
    is_h200 = "logits.is_cuda and 'H200' in torch.cuda.get_device_name(device)"
    times = f"({ON_AN_H200} if {is_h200} else {ON_AN_H100})"
    return f"{share} * {SM_MHZ} * {times}.get((rows, vocab, logits.element_size()), 10.0)"


def _before_the_launch(statement: str) -> Edit:
    anchor = "    logits_start = logits.data_ptr()\n"
    return Edit(LAUNCH, anchor, f"    {statement}\n{anchor}")


_READ = """        share_maximum, share_sum, share_best, share_token = read_share(
            logits_ptr + row_start, first, tiles, early, EARLY and not dealt, stages, V,
            exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED, ALIGNED, THREADS, WIDTH, VECTORS, EARLY,
        )  # fmt: skip
"""
_OPEN = "    if reads:\n        row_start"
# The result of the added pass is used, by adding nothing that the compiler could know of, or it would be left out.
_KEEP = "        share_token += (tl.abs(extra_sum) == 1e38).to(tl.int32)\n"
_EXTRA_READ = _READ.replace(
    "share_maximum, share_sum, share_best, share_token", "extra_maximum, extra_sum, extra_best, extra_token"
)
_READ_ANYWAY = (
    "    if (program >> splits_bits) < length:\n"
    "        row_start = (block * stride_logits_b + (program >> splits_bits) * stride_logits_l) * ALIGNMENT\n"
    f"{_EXTRA_READ}        reads = reads & (tl.abs(extra_sum) != 1e38)\n"
)

MUTANTS = {
    mutant.name: mutant
    for mutant in (
        Mutant("second-pass", "the logits are read twice", (Edit(KERNEL, _READ, _READ + _EXTRA_READ + _KEEP),)),
        Mutant(
            "no-early-exit",
            "rows that are not masked are read too",
            (
                Edit(KERNEL, _OPEN, _READ_ANYWAY + _OPEN),
            ),
            workloads=("1x32x157184-bf16-50",),
        ),
        Mutant(
            "one-program-a-row",
            "the vocabulary is not split",
            (
                Edit(
                    LAUNCH,
                    "max_splits=8, num_warps=8, vectors=2, early=True",
                    "max_splits=1, num_warps=8, vectors=2, early=True",
                ),
            ),
        ),
        Mutant(
            "scalar-loads",
            "the compiler is not told where rows start, and reads four bytes at a time",
            (Edit(LAUNCH, "alignment = width if", "alignment = 2 if"),),
        ),
        Mutant("extra-launch", "one more kernel a call", (_before_the_launch("input_ids.add_(0)"),)),
        Mutant(
            "extra-allocation",
            "one more allocation a call, which is not used",
            (_before_the_launch("torch.empty(1 << 20, device=device)"),),
        ),
        Mutant(
            "host-synchronisation",
            "the host waits for the GPU before it launches",
            (_before_the_launch("torch.cuda.current_stream(device).synchronize()"),),
        ),
        Mutant(
            "float32-copy",
            "the logits are converted before the kernel reads them",
            (_before_the_launch("logits = logits.float()"),),
        ),
        Mutant("kernel-2-percent", "the kernel takes 2 % longer", _kernel_longer(_share_of_device_time(0.02))),
        Mutant(
            "host-10-percent",
            "the host takes a tenth of the call's time longer to launch",
            (_before_the_launch(f"for _ in range({LOOPS}): pass"),),
        ),
        Mutant(
            "both-10-percent",
            "fused and reference take 10 % longer, so the speedup stays",
            (
                *_kernel_longer(_share_of_device_time(0.10)),
                Edit(
                    "reference.py",
                    "    vocab = logits.shape[-1]\n",
                    "    vocab = logits.shape[-1]\n"
                    f"    if logits.is_cuda:\n        torch.cuda._sleep({int(0.1 * REFERENCE_US * SM_MHZ)})\n",
                ),
            ),
        ),
        Mutant(
            "one-workload",
            "5 % longer for one vocabulary alone",
            _kernel_longer(f"(vocab == 151936) * {_share_of_device_time(0.05)}"),
            workloads=QUICK,
        ),
        Mutant(
            "many-rows",
            "3 % longer from 1024 positions on",
            _kernel_longer(f"(rows >= 1024) * {_share_of_device_time(0.03)}"),
            workloads=(ONE_BLOCK, "32x32x157184-bf16-100"),
        ),
        Mutant(
            "few-masked",
            "5 % longer where less than an eighth of a block is masked",
            _kernel_longer(_share_of_device_time(0.05), where="count * 8 < L"),
            workloads=(ONE_BLOCK, "1x32x157184-bf16-6"),
        ),
        Mutant(
            "cpu-second-pass",
            "the statistics of the rows are found twice",
            (
                Edit(
                    "cpu.py", "    maxima, sums = _span_statistics(logits, rows)\n",
                    "    _span_statistics(logits, rows)\n    maxima, sums = _span_statistics(logits, rows)\n",
                ),
            ),
            device_type="cpu",
        ),
        Mutant(
            "cpu-no-early-exit",
            "rows that are not masked are read too",
            (
                Edit(
                    "cpu.py", "    rows = is_open.nonzero(as_tuple=True)\n",
                    "    rows = torch.ones_like(is_open).nonzero(as_tuple=True)\n",
                ),
            ),
            device_type="cpu",
            workloads=("1x32x157184-bf16-50",),
        ),
    )
}  # fmt: skip
