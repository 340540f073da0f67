"""Compile kernels for GPU architectures without a GPU, for tests that read the outcome: run as a script.

For every line on standard input, architecture and variant as JSON, it prints a line. It needs a process of its own:
under Triton's interpreter there is nothing to compile.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import codegen, machine_code

ROOT = Path(__file__).parent.parent


@contextmanager
def compiler(package: Path) -> Iterator[Callable[[str, str], dict]]:
    """A process that compiles that package's kernels: to start one takes as long as a kernel."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(package), str(ROOT)])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, __file__], **pipes, text=True, env=environment) as process:

        def compile_(arch: str, variant: str) -> dict:
            process.stdin.write(json.dumps([arch, variant]) + "\n")
            process.stdin.flush()
            found = process.stdout.readline()
            assert found, "the process that compiles has ended"
            return json.loads(found)

        yield compile_


def main() -> None:
    for line in sys.stdin:
        arch, variant = json.loads(line)
        (kernel,) = codegen.compiled(arch, codegen.calls()[variant])
        cubin = codegen.cubin_of(kernel)
        code = dataclasses.asdict(machine_code.read(cubin))
        found = {
            "ttgir": kernel.asm["ttgir"],
            "ptx": kernel.asm["ptx"],
            "sass": machine_code.instructions(cubin),
            "code": code,
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
