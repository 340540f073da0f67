"""Compile the kernel for a GPU architecture without a GPU, and print what the tests read: run as a script.

It needs a process of its own: under Triton's interpreter there is nothing to compile.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

from benchmarks import codegen, machine_code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arch")
    parser.add_argument("variant", choices=codegen.calls())
    chosen = parser.parse_args()
    (kernel,) = codegen.compiled(chosen.arch, codegen.calls()[chosen.variant])
    cubin = codegen.cubin_of(kernel)
    texts = {name: kernel.asm[name] for name in ("ttir", "ptx")}
    code = dataclasses.asdict(machine_code.read(cubin))
    print(json.dumps({**texts, "sass": machine_code.instructions(cubin), "code": code}))


if __name__ == "__main__":
    main()
