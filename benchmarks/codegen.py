"""What the compiler made of a kernel, read from its machine code: why it became slower, in figures."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(.*?);", re.MULTILINE)
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
_RESOURCES = re.compile(r"REG:(?P<registers>\d+) STACK:(?P<stack_bytes>\d+)")
_BITS = {".U8": 8, ".S8": 8, ".U16": 16, ".S16": 16, ".64": 64, ".128": 128}


@dataclass(frozen=True)
class Code:
    """One kernel for one architecture."""

    registers: int  # a thread
    stack_bytes: int  # a thread: what did not fit into registers
    instructions: int
    global_loads: int  # instructions
    widest_load_bytes: int  # a thread, of the global loads
    barriers: int
    atomics: int


@functools.cache
def read(cubin: Path) -> Code:
    """The figures of a compiled kernel, by `cuobjdump`, which Triton brings.

    Raises:
        RuntimeError: cuobjdump cannot read the file.
    """
    text = _cuobjdump(cubin)
    resources = _RESOURCES.search(text)
    if resources is None:
        raise RuntimeError(f"{cubin}: cuobjdump names no registers")
    names = [_PREDICATE.sub("", line).split()[0] for line in _INSTRUCTION.findall(text)]
    loads = [name for name in names if name.startswith("LDG")]
    return Code(
        **{name: int(value) for name, value in resources.groupdict().items()},
        instructions=len(names),
        global_loads=len(loads),
        widest_load_bytes=max(map(_load_bytes, loads), default=0),
        barriers=sum(name.startswith("BAR.") for name in names),
        atomics=sum(name.startswith(("ATOM", "RED.")) for name in names),
    )


def instructions(cubin: Path) -> list[str]:
    """The machine code, line by line."""
    return _INSTRUCTION.findall(_cuobjdump(cubin))


def together(codes: Iterable[Code]) -> Code:
    """Of all kernels of a call: the largest of what a thread has, the sum of what stands there."""
    every = list(codes)
    return Code(
        registers=max(code.registers for code in every),
        stack_bytes=max(code.stack_bytes for code in every),
        instructions=sum(code.instructions for code in every),
        global_loads=sum(code.global_loads for code in every),
        widest_load_bytes=max(code.widest_load_bytes for code in every),
        barriers=sum(code.barriers for code in every),
        atomics=sum(code.atomics for code in every),
    )


def _load_bytes(instruction: str) -> int:
    return next((bits for text, bits in _BITS.items() if text in instruction), 32) // 8


def _cuobjdump(cubin: Path) -> str:
    import triton

    command = [triton.knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", str(cubin)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{cubin}: cuobjdump failed: {result.stderr.strip()}")
    return result.stdout
