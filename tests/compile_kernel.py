"""Compile the kernel for a GPU architecture without a GPU, and print what the tests read: run as a script.

It needs a process of its own: under Triton's interpreter there is nothing to compile.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json

import torch

from benchmarks import codegen, machine_code
from dllm_kernels.decode.slots import Slots
from dllm_kernels.gpu.advance import advance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--vocab", type=int, default=157184)
    parser.add_argument("--options", action="store_true", help="with every optional argument")
    parser.add_argument("--advance", action="store_true", help="the kernel that takes slots on to their next block")
    chosen = parser.parse_args()
    call = functools.partial(codegen.call, getattr(torch, chosen.dtype), chosen.vocab, chosen.options)
    if chosen.advance:
        call = functools.partial(advance, Slots.empty(4, 32, 64, torch.device("cpu")), 156895, 156892)
    (kernel,) = codegen.compiled(chosen.arch, call)
    cubin = codegen.cubin_of(kernel)
    texts = {name: kernel.asm[name] for name in ("ttir", "ptx")}
    code = dataclasses.asdict(machine_code.read(cubin))
    print(json.dumps({**texts, "sass": machine_code.instructions(cubin), "code": code}))


if __name__ == "__main__":
    main()
