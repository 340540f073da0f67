"""Compile the kernel for a GPU architecture without a GPU, and print what the tests read: run as a script.

It needs a process of its own: under Triton's interpreter there is nothing to compile. `--without-barrier` compiles the
kernel with the barrier before the ticket taken out, so that the test of its presence is itself tested.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks import codegen
from dllm_kernels import gpu

OUTPUTS = {"confidence_ptr": "*fp32", "tokens_ptr": "*i64", "accepted_ptr": "*i1", "remaining_ptr": "*i32"}


def compile_kernel(
    arch: int, dtype: str, *, options: bool, aligned: bool = True, kernel: Any = gpu._post_process_kernel
) -> Any:
    config = gpu.CONFIGS[-1]
    width = 4 if dtype == "fp32" else 8
    constants: dict[str, Any] = {
        "EXCLUDED": options,
        "ALIGNMENT": width if aligned else 1,
        "SPLITS": config.max_splits,
        "UNROLL": config.unroll,
        "THREADS": 32 * config.num_warps,
        "WIDTH": width,
        "BLOCK_L": 32,
    }
    types = {"logits_ptr": f"*{dtype}", "ids_ptr": "*i64", "workspace_ptr": "*i32"}
    types |= {"mask_id": "i64", "threshold": "fp32", "tickets_start": "i64"}
    if options:
        types |= {"prompt_ptr": "*i1", "threshold_ptr": "*fp32", **OUTPUTS}
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in types:
            signature[name] = types[name]
        elif name.endswith("_ptr"):
            signature[name] = "constexpr"
            constants[name] = None
        else:
            signature[name] = "i64" if name.startswith("stride_") else "i32"
        if aligned and name in ("logits_ptr", "V"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, places, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": config.num_warps})


def machine_code(compiled: Any) -> tuple[codegen.Code, list[str]]:
    """Its figures, and the instructions in order."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        return codegen.read(cubin), codegen.instructions(cubin)


def without_barrier() -> Any:
    """The kernel as it would be if somebody removed `tl.debug_barrier()` before the ticket."""
    source = Path(gpu.__file__).read_text()
    line = "    tl.debug_barrier()\n    ticket = tl.atomic_add("
    assert source.count(line) == 1
    changed = Path(tempfile.mkdtemp()) / "gpu_without_barrier.py"
    changed.write_text(source.replace(line, "    ticket = tl.atomic_add("))
    spec = importlib.util.spec_from_file_location(changed.stem, changed)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[changed.stem] = module
    spec.loader.exec_module(module)
    return module._post_process_kernel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, required=True)
    parser.add_argument("--dtype", default="fp16")
    parser.add_argument("--options", action="store_true", help="with every optional argument")
    parser.add_argument("--unaligned", action="store_true", help="rows that do not start on 16 bytes")
    parser.add_argument("--without-barrier", action="store_true")
    chosen = parser.parse_args()
    kernel = without_barrier() if chosen.without_barrier else gpu._post_process_kernel
    compiled = compile_kernel(
        chosen.arch, chosen.dtype, options=chosen.options, aligned=not chosen.unaligned, kernel=kernel
    )
    code, instructions = machine_code(compiled)
    texts = {name: compiled.asm[name] for name in ("ttir", "ptx")}
    print(json.dumps({**texts, "sass": instructions, "code": dataclasses.asdict(code)}))


if __name__ == "__main__":
    main()
