"""The kernels' tests under NVIDIA's compute-sanitizer: `make sanitize`, or `-k quick` for what a pull request takes.

memcheck looks at every kernel, initcheck as well, which has to see who wrote what ours read; the others at ours alone.
PyTorch gives memory out of large pieces, in which an overrun stays: its caching is off.
https://docs.nvidia.com/compute-sanitizer/ComputeSanitizer/
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
FOUND = 86  # exit code where the tool has found something
MINUTES = 30
OURS = [
    part for name in ("post_process_kernel", "advance_kernel") for part in ("--kernel-name", f"kernel_substring={name}")
]
TOOLS = {"memcheck": [], "racecheck": OURS, "synccheck": OURS, "initcheck": []}
CONTRACT = ["tests/test_post_process.py", "tests/test_parts.py", "-k"]
SETS = {
    "quick": [
        *CONTRACT,
        "triton and (options_together or edits_of_odd_rows or many_short_blocks or outputs_alone) or parts",
    ],
    "whole": [*CONTRACT, "not cpu-cpu and not reference"],
    "batches": ["tests/test_batches.py", "-k", "advances or as_on_the_cpu"],
    "streams and graphs": ["tests/test_gpu.py", "-k", "graph or streams or workspace or fork"],
}
OVERRUN = """
import torch, triton, triton.language as tl

@triton.jit
def post_process_kernel(x_ptr, n, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, BLOCK), 1.0)  # without a mask

x = torch.zeros(1000, device="cuda")
post_process_kernel[(1,)](x, 1000, BLOCK=1024)
torch.cuda.synchronize()
"""


def compute_sanitizer() -> str:
    """The tool: of the CUDA toolkit, or of the package nvidia-cuda-sanitizer-api."""
    packaged = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=str(packaged))
    if found is None:
        pytest.fail("compute-sanitizer: not on PATH; it comes with CUDA's toolkit, or: pip install --group sanitizer")
    return found


def under(tool: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python under the tool; what both printed is in `stdout`."""
    # A pytest below another would take itself for one of xdist's workers.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [
            compute_sanitizer(), "--tool", tool, *TOOLS[tool], "--error-exitcode", str(FOUND), "--print-limit", "5",
            sys.executable, *command,
        ],
        cwd=ROOT,
        env={**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60 * MINUTES,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("tests", SETS)
def test_nothing_is_found(tool: str, tests: str) -> None:
    done = under(tool, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SETS[tests])
    assert done.returncode == 0, f"{tool} over {tests}:\n{done.stdout[-6000:]}"
    assert " passed" in done.stdout


def test_an_overrun_is_seen(tmp_path: Path) -> None:
    """Which, at exit code 0, would say that nothing is looked for."""
    (tmp_path / "overrun.py").write_text(OVERRUN)
    done = under("memcheck", str(tmp_path / "overrun.py"))
    assert done.returncode == FOUND, done.stdout[-6000:]
    assert "Invalid __global__ write" in done.stdout
