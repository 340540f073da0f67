"""The steps that inference engines ship, from their released wheels, to be held beside ours.

    python benchmarks/engines.py  # fetches what it needs, which else happens on first use
    python benchmarks/bench_triton_post_process.py --workload 1x32x157184-fp32-100 --workload 128x32x157184-fp32-100 \\
        --peer benchmarks/engines.py:sglang_low_confidence --peer benchmarks/engines.py:fused_in_sglang

SGLang's own files run unmodified. They are taken out of the wheel, which pip fetches once into `.engines`, because what
SGLang depends on takes gigabytes and a CUDA of its own; of what they import and never call here, stand-ins are enough.
"""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
import types
import zipfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CACHE = Path(__file__).parents[1] / ".engines"
SGLANG = "0.5.23"
# What is run of the wheel: decoding algorithms, plug-in framework, and the environment variables that the latter reads.
_SGLANG_LEFT_OUT = "sglang/srt/dllm/algorithm/gemma4_renoise.py"  # it imports too much, for another kind of model
_SGLANG_PARTS = ("sglang/srt/dllm/", "sglang/srt/plugins/", "sglang/srt/environ.py", f"sglang-{SGLANG}.dist-info/")
# Imported by these parts, for annotations or for what a server does before it decodes: module and names.
_SGLANG_STAND_INS = {
    "sglang": (),
    "sglang.srt": (),
    "sglang.srt.arg_groups.overrides": ("resolving_view",),
    "sglang.srt.configs.model_config": ("ModelConfig",),
    "sglang.srt.layers.logits_processor": ("LogitsProcessorOutput",),
    "sglang.srt.model_executor.forward_batch_info": ("ForwardBatch",),
    "sglang.srt.model_executor.model_runner": ("ModelRunner",),
    "sglang.srt.server_args": ("ServerArgs",),
    "sglang.srt.utils": ("is_npu",),
}


class NotFetchedError(RuntimeError):
    """No package registry that can be reached has the wheel; the message says what pip said."""


def fetch_sglang() -> Path:
    """The folder with the parts of SGLang's wheel that are run; fetched if it is not there yet.

    Raises:
        NotFetchedError: pip could not get the wheel.
    """
    folder = CACHE / f"sglang-{SGLANG}"
    if folder.is_dir():
        return folder
    CACHE.mkdir(exist_ok=True)
    # Its files are Python's own, whatever the wheel is named for: any machine takes the same one.
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps",
        "--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--abi=cp311",
        "--platform=manylinux_2_34_x86_64", f"--dest={CACHE}", f"sglang=={SGLANG}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotFetchedError(
            f"pip could not fetch sglang {SGLANG}: {(done.stderr.strip() or 'no message').splitlines()[-1]}"
        )
    (wheel,) = CACHE.glob(f"sglang-{SGLANG}-*.whl")
    partly = folder.with_suffix(".partly")
    with zipfile.ZipFile(wheel) as archive:
        parts = [name for name in archive.namelist() if name.startswith(_SGLANG_PARTS) and name != _SGLANG_LEFT_OUT]
        archive.extractall(partly, parts)
    partly.rename(folder)
    wheel.unlink()
    return folder


def is_installed() -> bool:
    """Whether SGLang itself is here, and nothing has to be fetched."""
    try:
        metadata.version("sglang")
    except metadata.PackageNotFoundError:
        return False
    return True


def load_sglang() -> types.ModuleType:
    """`sglang.srt.dllm.algorithm`: of the installed SGLang, or else of its wheel, among stand-ins."""
    if not is_installed():
        folder = fetch_sglang()
        sys.path.append(str(folder))
        for name, attributes in _SGLANG_STAND_INS.items():
            module = types.ModuleType(name)
            module.__path__ = [str(folder.joinpath(*name.split(".")))]
            for attribute in attributes:
                setattr(module, attribute, type(attribute, (), {}))
            sys.modules[name] = module
        sys.modules["sglang.srt.utils"].is_npu = lambda: False  # type: ignore[attr-defined]
    return importlib.import_module("sglang.srt.dllm.algorithm")


@functools.cache
def _sglang_algorithm(name: str, block_size: int, mask_id: int, threshold: float) -> Any:
    known = load_sglang().algo_name_to_cls
    if name not in known:  # as a server would: by the plug-in's entry point
        for plugin in metadata.entry_points(group="sglang.srt.plugins"):
            plugin.load()()
    if name not in known:
        raise ValueError(f"sglang: expected a plug-in that adds {name}; none is installed: pip install -e .")
    config = types.SimpleNamespace(
        block_size=block_size,
        mask_id=mask_id,
        first_done_first_out_mode=True,
        algorithm_config={"threshold": threshold},
    )
    return known[name](config)


def _sglang_step(
    name: str, logits: Tensor, input_ids: Tensor, mask_id: int, threshold: float, prompt_mask: Tensor | None = None
) -> None:
    batch, block_size, vocab = logits.shape
    if str(logits.dtype) != "torch.float32":
        raise ValueError(f"logits: expected float32, the only dtype that SGLang passes; got {logits.dtype}")
    forward_batch = types.SimpleNamespace(batch_size=batch, input_ids=input_ids.view(-1), dllm_prompt_mask=prompt_mask)
    step = _sglang_algorithm(name, block_size, mask_id, threshold).step
    step(forward_batch, logits.view(-1, vocab), [None] * batch)


def sglang_low_confidence(
    logits: Tensor, input_ids: Tensor, mask_id: int, threshold: float, prompt_mask: Tensor | None = None
) -> None:
    """The step of SGLang's `LowConfidence`, with the flags that it returns."""
    _sglang_step("LowConfidence", logits, input_ids, mask_id, threshold, prompt_mask)


def fused_in_sglang(logits: Tensor, input_ids: Tensor, mask_id: int, threshold: float) -> None:
    """The step of the plug-in's `FusedLowConfidence`, with the flags that it returns."""
    _sglang_step("FusedLowConfidence", logits, input_ids, mask_id, threshold)


if __name__ == "__main__":
    print(f"SGLang {SGLANG}: {'installed' if is_installed() else fetch_sglang()}")
