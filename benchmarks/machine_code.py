"""Figures of a compiled kernel, read from its machine code: what explains why it became slower."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import Strict

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(.*?);", re.MULTILINE)
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
_RESOURCES = re.compile(r"REG:(?P<registers>\d+) STACK:(?P<stack_bytes>\d+)")
_OWN_BARRIER = re.compile(r"^\s*(?:gpu|ttg)\.barrier", re.MULTILINE)
# In PTX, where what Triton asks for has no size.
_STATIC_SHARED = re.compile(r"^\s*\.shared\s[^;]*\[(\d+)\]", re.MULTILINE)
_WIDTHS = ((".128", 16), (".64", 8), (".U16", 2), (".S16", 2), (".U8", 1), (".S8", 1))


@dataclass(frozen=True)
class Code(Strict):
    """One kernel for one architecture."""

    warps: int  # of a block
    registers: int  # of a thread
    stack_bytes: int  # of a thread
    spills: int  # loads and stores of what did not fit into registers
    shared_bytes: int  # of a block
    instructions: int
    loads_16_bytes: int  # from global memory, of a thread
    loads_8_bytes: int
    loads_4_bytes: int
    loads_narrow: int  # of two bytes and one
    barriers: int
    own_barriers: int  # that the kernel's source asks for; the compiler adds others for its own use of shared memory
    atomics: int
    # Programmatic dependent launch, from sm_90 on; 0 where there is none, or where it was not noted.
    launch_waits: int = 0  # for the launch before to have ended (griddepcontrol.wait)
    launch_starts: int = 0  # after which the next may begin (griddepcontrol.launch_dependents)


# The figures in words.
WHAT = {
    "warps": "warps a block",
    "registers": "registers",
    "stack_bytes": "bytes of stack",
    "spills": "spills",
    "shared_bytes": "bytes of shared memory",
    "instructions": "instructions",
    "loads_16_bytes": "loads of 16 bytes",
    "loads_8_bytes": "loads of 8 bytes",
    "loads_4_bytes": "loads of 4 bytes",
    "loads_narrow": "loads of 1 or 2 bytes",
    "barriers": "barriers",
    "own_barriers": "barriers of its own",
    "atomics": "atomics",
    "launch_waits": "waits for the launch before",
    "launch_starts": "starts of the launch after",
}


@functools.cache
def read(cubin: Path) -> Code:
    """The figures of a kernel in Triton's cache, where metadata and intermediate code lie beside its machine code.

    Raises:
        RuntimeError: cuobjdump, which Triton brings, cannot read the file.
    """
    text = _cuobjdump(cubin)
    resources = _RESOURCES.search(text)
    if resources is None:
        raise RuntimeError(f"{cubin}: cuobjdump names no registers")
    names = [_PREDICATE.sub("", line).split()[0] for line in _INSTRUCTION.findall(text)]
    widths = [_width(name) for name in names if name.startswith(("LDG.", "LDGSTS."))]
    metadata = json.loads(cubin.with_suffix(".json").read_text())
    static_shared = _STATIC_SHARED.findall(cubin.with_suffix(".ptx").read_text())
    return Code(
        warps=metadata["num_warps"],
        **{name: int(value) for name, value in resources.groupdict().items()},
        spills=sum(name.startswith(("LDL", "STL")) for name in names),
        shared_bytes=metadata["shared"] + sum(map(int, static_shared)),
        instructions=len(names),
        loads_16_bytes=widths.count(16),
        loads_8_bytes=widths.count(8),
        loads_4_bytes=widths.count(4),
        loads_narrow=widths.count(2) + widths.count(1),
        barriers=sum(name.startswith("BAR.") for name in names),
        own_barriers=len(_OWN_BARRIER.findall(cubin.with_suffix(".ttir").read_text())),
        atomics=sum(name.startswith(("ATOM", "RED.")) for name in names),
        launch_waits=sum(name.startswith("ACQBULK") for name in names),
        launch_starts=sum(name.startswith("PREEXIT") for name in names),
    )


def _width(load: str) -> int:
    return next((width for text, width in _WIDTHS if text in load), 4)


def _cuobjdump(cubin: Path) -> str:
    import triton

    command = [triton.knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", str(cubin)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{cubin}: cuobjdump failed: {result.stderr.strip()}")
    return result.stdout


def instructions(cubin: Path) -> list[str]:
    """The machine code, line by line."""
    return _INSTRUCTION.findall(_cuobjdump(cubin))


def together(codes: Iterable[Code]) -> Code:
    """Of all kernels of a call: the largest of what a thread or block has, the sum of what stands there."""
    every = [dataclasses.asdict(code) for code in codes]
    largest = ("warps", "registers", "stack_bytes", "shared_bytes")
    return Code(**{name: (max if name in largest else sum)(code[name] for code in every) for name in WHAT})


def change(name: str, before: Code, now: Code) -> str:
    """A figure's change in words."""
    return f"{WHAT[name]} {getattr(before, name)} to {getattr(now, name)}"
