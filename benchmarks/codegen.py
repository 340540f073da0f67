"""What the compiler makes of the kernels, per GPU architecture, without a GPU: `python -m benchmarks codegen`.

Every variant of the kernels is compiled as the launcher itself would have it compiled, and its figures are held against
reviewed ones of the same Triton version: registers that spill, a vector load that was lost, a barrier or an atomic that
is gone, a wait for the launch before, or room for fewer warps on a processor are faults.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import results, session
from benchmarks.machine_code import WHAT, Code, change, read, together

# Most warps and blocks resident on a processor, and KiB of shared memory, by compute capability (CUDA C++ programming
# guide, "Compute Capabilities"); each processor has 65536 registers, which a warp takes in units of 256, and CUDA
# itself takes 1 KiB of shared memory a block.
RESIDENT = {"sm_80": (64, 32, 164), "sm_90": (64, 32, 228), "sm_100": (64, 32, 228), "sm_120": (48, 24, 100)}
REGISTERS, REGISTER_UNIT, RESERVED_BYTES = 65536, 256, 1024
PROCESSORS = 132  # that the GPU is taken to have: on the few of Triton's interpreter, one long block is many rows
ONLY_COMPILED = "gfx942"  # AMD: that it compiles is all that is asked


class Variant(NamedTuple):
    """A call of the operation, as far as the compiler sees a difference."""

    dtype: str  # of the logits
    vocab: int = 157184
    options: bool = False  # every optional argument but the edit threshold
    many_rows: bool = False  # enough to fill a GPU
    edit_threshold: float | None = None
    block_length: int = 32
    ids: str = "int64"
    engine: str | None = None  # whose plug-in's optional arguments: "SGLang" or "diffusers", whose step edits


VARIANTS = (
    {
        f"{dtype}, {rows}, {'all options' if options else 'no options'}": Variant(dtype, vocab, options)
        for dtype in ("float16", "bfloat16", "float32")
        for vocab, rows in ((157184, "rows on 16 bytes"), (50257, "rows on any byte"))
        for options in (False, True)
    }
    | {
        "bfloat16, short rows, no options": Variant("bfloat16", 1000),
        "bfloat16, many rows, no options": Variant("bfloat16", many_rows=True),
        "float32, many rows, no options": Variant("float32", many_rows=True),
        "bfloat16, edits, no other options": Variant("bfloat16", edit_threshold=0.5),
        "bfloat16, edits, all options": Variant("bfloat16", options=True, edit_threshold=0.5),
        "float32, edits, no other options": Variant("float32", edit_threshold=0.5),
        "float32, edits, all options": Variant("float32", options=True, edit_threshold=0.5),
        "bfloat16, edits, many rows, no other options": Variant("bfloat16", many_rows=True, edit_threshold=0.5),
        "float32, many rows, all options": Variant("float32", options=True, many_rows=True),
        "float32, edits, many rows, all options": Variant("float32", options=True, many_rows=True, edit_threshold=0.5),
        "bfloat16, int32 ids, all options": Variant("bfloat16", options=True, ids="int32"),
        "float16, many rows on any byte, all options": Variant("float16", 50257, options=True, many_rows=True),
        "bfloat16, edits, rows on any byte, all options": Variant("bfloat16", 50257, options=True, edit_threshold=0.5),
        "bfloat16, blocks of 128, few rows, all options": Variant("bfloat16", options=True, block_length=128),
        "bfloat16, edits, blocks of 300, all options": Variant(
            "bfloat16", options=True, edit_threshold=0.5, block_length=300
        ),
        "bfloat16, blocks of 300, many rows on any byte, all options": Variant(
            "bfloat16", 50257, options=True, many_rows=True, block_length=300
        ),
        "float32, blocks of 256, few rows, no options": Variant("float32", block_length=256),
        "float16, blocks of 256, few rows on any byte, no options": Variant("float16", 50257, block_length=256),
        "bfloat16, edits, blocks of 256, no other options": Variant("bfloat16", edit_threshold=0.5, block_length=256),
        "float32, blocks of 256, few rows, all options": Variant("float32", options=True, block_length=256),
        "float16, blocks of 256, few rows on any byte, all options": Variant(
            "float16", 50257, options=True, block_length=256
        ),
        "float32, as SGLang": Variant("float32", engine="SGLang"),
        "bfloat16, as SGLang": Variant("bfloat16", engine="SGLang"),
        "bfloat16, edits, as SGLang": Variant("bfloat16", edit_threshold=0.5, engine="SGLang"),
        "float32, many rows, as SGLang": Variant("float32", many_rows=True, engine="SGLang"),
        "bfloat16, as diffusers": Variant("bfloat16", edit_threshold=0.5, engine="diffusers"),
    }
    | {
        # The longest that few rows come in whole, and in parts.
        f"bfloat16, blocks of {length}, {rows} rows, {'all options' if options else 'no options'}": Variant(
            "bfloat16", options=options, many_rows=rows == "many", block_length=length
        )
        for length, rows in ((256, "few"), (300, "few"), (300, "many"))
        for options in (False, True)
    }
)
SLOTS = "slots, blocks of 32"
# Of which history has a series each.
PLAIN_VARIANTS = tuple(
    name for name, variant in VARIANTS.items() if name.endswith(", no options") and variant.block_length == 32
)


@dataclass(frozen=True)
class Codegen(results.Record):
    """Every variant on every architecture, by one version of Triton."""

    KIND = "compiled code"
    VERSION = 1

    triton: str
    created: str
    reason: str
    kernels: dict[str, dict[str, Code]]  # by architecture and variant


def resident_blocks(arch: str, code: Code) -> int:
    """Blocks of a kernel that fit on a processor at once, by their registers and shared memory."""
    warps, blocks, shared_kib = RESIDENT[arch]
    registers = -(-32 * code.registers // REGISTER_UNIT) * REGISTER_UNIT * code.warps
    shared = 1024 * shared_kib // (code.shared_bytes + RESERVED_BYTES)
    return min(blocks, warps // code.warps, REGISTERS // registers, shared)


def faults(reviewed: Codegen, found: Codegen) -> list[str]:
    """What became worse, in words; a kernel that is missing, or that nobody has reviewed, too."""
    told = []
    for arch in dict.fromkeys([*reviewed.kernels, *found.kernels]):
        before, now = reviewed.kernels.get(arch, {}), found.kernels.get(arch, {})
        for name in dict.fromkeys([*before, *now]):
            if name not in now:
                told.append(f"{arch}, {name}: reviewed, and no longer there")
            elif name not in before:
                told.append(f"{arch}, {name}: new, and not reviewed")
            else:
                told += [f"{arch}, {name}: {fault}" for fault in _faults(arch, before[name], now[name])]
    return told


def _faults(arch: str, before: Code, now: Code) -> Iterator[str]:
    for name, text in (("spills", "registers spill"), ("stack_bytes", "registers spill")):
        if getattr(now, name) > getattr(before, name):
            yield f"{text}: {change(name, before, now)}"
    if now.loads_16_bytes < before.loads_16_bytes or now.loads_narrow > before.loads_narrow:
        lost = ", ".join(
            change(name, before, now)
            for name in ("loads_16_bytes", "loads_8_bytes", "loads_4_bytes", "loads_narrow")
            if getattr(before, name) != getattr(now, name)
        )
        yield f"a vector load was lost: {lost}"
    for name, text in (
        ("barriers", "a barrier is gone"),
        ("own_barriers", "a barrier is gone"),
        ("atomics", "an atomic is gone"),
        ("launch_waits", "memory is touched before the launch before has ended"),
        ("launch_starts", "the launch after does not begin before this one has ended"),
    ):
        if getattr(now, name) < getattr(before, name):
            yield f"{text}: {change(name, before, now)}"
    warps_before, warps_now = (code.warps * resident_blocks(arch, code) for code in (before, now))
    if warps_now < warps_before:
        causes = [
            change(name, before, now)
            for name in ("registers", "warps", "shared_bytes")
            if getattr(before, name) != getattr(now, name)
        ]
        yield f"{', '.join(causes)}, so {warps_now} warps fit on a processor instead of {warps_before}"


def code_of(arch: str, name: str) -> Code:
    """A variant's figures on an architecture of NVIDIA's."""
    return together(read(cubin_of(kernel)) for kernel in compiled(arch, calls()[name]))


def figures(arch: str, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Of the variants that the installed package's kernels can be compiled in; its launcher may be older than this."""
    try:
        return {name: dataclasses.asdict(code_of(arch, name)) for name in names}
    except (ImportError, AttributeError, TypeError) as error:  # what another launcher answers this one's call with
        print(f"no figures of compiled code: {type(error).__name__}: {error}", file=sys.stderr)
        return {}


def compiled(arch: str, call: Callable[[], None]) -> list[Any]:
    """The kernels that `call` would launch, as Triton compiles them for an architecture. For a process of its own:
    Triton is left with a driver that launches nothing.

    Raises:
        RuntimeError: Triton's interpreter is on, under which nothing is compiled.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET: expected it to be off; under the interpreter nothing is compiled")
    target = (
        GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch.partition("_")[2]), 32)
    )
    kernels: list[Any] = []
    run = triton.JITFunction.run

    def compile_only(*arguments: Any, **options: Any) -> None:
        kernels.append(run(*arguments, **{**options, "warmup": True}))

    triton.JITFunction.run = compile_only
    triton.runtime.driver.set_active(_Driver(target))
    try:
        call()
    finally:
        triton.JITFunction.run = run
    return kernels


def cubin_of(kernel: Any) -> Path:
    """Where Triton keeps the machine code of what it compiled for a GPU of NVIDIA's."""
    return Path(next(path for file, path in kernel.metadata_group.items() if file.endswith(".cubin")))


def calls() -> dict[str, Callable[[], None]]:
    """What launches the kernels of each variant, by name."""
    return {**{name: functools.partial(call, variant) for name, variant in VARIANTS.items()}, SLOTS: advance}


def call(variant: Variant) -> None:
    """One block, or as many as fill a GPU by themselves."""
    import torch

    from dllm_kernels import gpu

    gpu.INTERPRETED_PROCESSORS = PROCESSORS
    length = variant.block_length
    blocks = -(-gpu.programs_at_once(torch.device("cpu")) // length) if variant.many_rows else 1
    logits = torch.empty(1, length, variant.vocab, dtype=getattr(torch, variant.dtype)).expand(blocks, -1, -1)
    ids = torch.empty(blocks, length, dtype=getattr(torch, variant.ids))
    # Old commits have no such argument.
    edits = {} if variant.edit_threshold is None else {"edit_threshold": variant.edit_threshold}
    if not variant.options and variant.engine is None:
        gpu.post_process(logits, ids, 5, 0.9, None, (), (None, None, None, None), None, {}, **edits)
        return
    bools = torch.empty_like(ids, dtype=torch.bool)
    confidence, tokens, accepted, remaining = (
        torch.empty(1, length), ids.clone(), bools.clone(), torch.empty(1, dtype=torch.int32),
    )  # fmt: skip
    arguments: dict[str | None, tuple[Any, ...]] = {
        None: (torch.empty(1), bools, (confidence, tokens, accepted, remaining)),
        "SGLang": (0.9, bools, (None, None, accepted, None)),
        "diffusers": (0.9, None, (confidence, tokens, accepted, None)),
    }
    threshold, prompt_mask, outputs = arguments[variant.engine]
    gpu.post_process(logits, ids, 5, threshold, prompt_mask, (1,), outputs, None, {}, **edits)


def advance() -> None:
    """Of some slots; a token may end their sequences."""
    import torch

    from dllm_kernels.decode.slots import Slots
    from dllm_kernels.gpu.advance import advance as launch

    launch(Slots.empty(4, 32, 64, torch.device("cpu")), 5, 6)


class _Driver:
    """What Triton's launcher asks of the driver before it compiles."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> str:
        return str(self._target)  # under which Triton keeps what it compiled

    def get_current_stream(self, _device: str) -> int:
        return 0


def add_command(commands: Any) -> None:
    """Add `codegen` to the subcommands of a parser."""
    parser = commands.add_parser(
        "codegen", help="what the compiler makes of the kernels, held against what was reviewed"
    )
    parser.add_argument("--accept", action="store_true", help="make this the reviewed state of this Triton version")
    parser.add_argument("--reason", metavar="TEXT", help="why; needed with --accept, and stored")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    parser.set_defaults(command=_codegen)


def _codegen(options: argparse.Namespace) -> int:
    import triton

    if options.accept and not (options.reason or "").strip():
        raise ValueError("--reason: expected why these figures are accepted; got none")
    path = results.device_path(session.BASELINES / "codegen", f"triton {triton.__version__}")
    if not options.accept and not path.exists():
        raise ValueError(f"codegen: nothing reviewed for Triton {triton.__version__}, expected {path}; see --accept")
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    found = Codegen(triton.__version__, created, options.reason or "", _compile_everywhere())
    told = [] if options.accept else faults(results.load(Codegen, path), found)
    if options.json:
        print(json.dumps({**dataclasses.asdict(found), "faults": told}, indent=1))
    else:
        print("\n".join([table(found), *(f"FAULT  {fault}" for fault in told)]))
    if options.accept:
        results.save(found, path)
        print(f"Reviewed state: {path}. It counts once it is merged.", file=sys.stderr)
    elif not told:
        print(f"No worse than {path.name}.", file=sys.stderr)
    return 1 if told else 0


def _compile_everywhere() -> dict[str, dict[str, Code]]:
    names = list(calls())
    jobs = [(arch, name) for arch in (*RESIDENT, ONLY_COMPILED) for name in names]
    with (
        session.progress("Compiling", len(jobs)) as progress,
        ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool,
    ):
        futures = {pool.submit(_compile, *job): job for job in jobs}
        done: dict[tuple[str, str], Any] = {}
        for future in as_completed(futures):
            progress(", ".join(futures[future]))
            done[futures[future]] = future.result()
    return {arch: {name: done[arch, name] for name in names} for arch in RESIDENT}


def _compile(arch: str, name: str) -> Code | None:
    if arch in RESIDENT:
        return code_of(arch, name)
    compiled(arch, calls()[name])
    return None


def table(found: Codegen) -> str:
    """Every kernel's figures."""
    heads = [name.removesuffix("_bytes") for name in WHAT]
    lines = [f"Triton {found.triton}; {ONLY_COMPILED} compiles too", f"{'':57}{'  '.join(heads)}  blocks a processor"]
    for arch, kernels in found.kernels.items():
        for name, code in kernels.items():
            cells = [f"{getattr(code, figure):>{len(head)}}" for figure, head in zip(WHAT, heads, strict=True)]
            lines.append(f"{arch + ', ' + name:57}{'  '.join(cells)}  {resident_blocks(arch, code):>18}")
    return "\n".join(lines)
