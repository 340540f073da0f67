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
import warnings
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# What a step tells the engine, each with the blocks as its first dimension: SGLang's done flags, a list of booleans;
# diffusers' positions that were unmasked and edited, (B, L) each.
Told = tuple[Any, ...]
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
    """An engine is not here: no package registry that can be reached has the wheel, and the message says what pip said,
    or it is for the user to install."""


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


def is_installed(engine: str) -> bool:
    """Whether the engine itself is here, and nothing has to be fetched."""
    try:
        metadata.version(engine)
    except metadata.PackageNotFoundError:
        return False
    return True


def load_sglang() -> types.ModuleType:
    """`sglang.srt.dllm.algorithm`: of the installed SGLang, or else of its wheel, among stand-ins."""
    if not is_installed("sglang"):
        folder = fetch_sglang()
        sys.path.append(str(folder))
        for name, attributes in _SGLANG_STAND_INS.items():
            module = types.ModuleType(name)
            module.__path__ = [str(folder.joinpath(*name.split(".")))]
            for attribute in attributes:
                setattr(module, attribute, type(attribute, (), {}))
            sys.modules[name] = module
        sys.modules["sglang.srt.utils"].is_npu = lambda: False  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SGLang's, about what this machine has not
        return importlib.import_module("sglang.srt.dllm.algorithm")


@functools.cache
def _sglang_algorithm(name: str, block_size: int, mask_id: int, threshold: float, is_vectorized: bool) -> Any:
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
        algorithm_config={
            "threshold": threshold,
            "edit_threshold": threshold,
            "vectorized_decoding": is_vectorized,
        },
    )
    return known[name](config)


def _sglang_step(
    name: str,
    logits: Tensor,
    input_ids: Tensor,
    mask_id: int,
    threshold: float,
    states: list[Any],
    prompt_mask: Tensor | None = None,
    is_vectorized: bool = False,
) -> Told:
    batch, block_size, vocab = logits.shape
    if str(logits.dtype) != "torch.float32":
        raise ValueError(f"logits: expected float32, the only dtype that SGLang passes; got {logits.dtype}")
    forward_batch = types.SimpleNamespace(batch_size=batch, input_ids=input_ids.view(-1), dllm_prompt_mask=prompt_mask)
    step = _sglang_algorithm(name, block_size, mask_id, threshold, is_vectorized).step
    return (step(forward_batch, logits.view(-1, vocab), states),)


def sglang_low_confidence(
    logits: Tensor, input_ids: Tensor, mask_id: int, threshold: float, prompt_mask: Tensor | None = None
) -> Told:
    """The step of SGLang's `LowConfidence`, with the flags that it returns."""
    return _sglang_step("LowConfidence", logits, input_ids, mask_id, threshold, [None] * len(logits), prompt_mask)


def fused_in_sglang(logits: Tensor, input_ids: Tensor, mask_id: int, threshold: float) -> Told:
    """The step of the plug-in's `FusedLowConfidence`, with the flags that it returns."""
    return _sglang_step("FusedLowConfidence", logits, input_ids, mask_id, threshold, [None] * len(logits))


def sglang_joint_threshold(logits: Tensor, input_ids: Tensor, mask_id: int, threshold: float) -> Told:
    """The step of SGLang's `JointThreshold`, the first of blocks that hold no prompt; edits above `threshold` too."""
    return _sglang_step("JointThreshold", logits, input_ids, mask_id, threshold, _joint_states(input_ids))


def sglang_joint_threshold_vectorized(logits: Tensor, input_ids: Tensor, mask_id: int, threshold: float) -> Told:
    """The same with `vectorized_decoding: true` in the algorithm's configuration, which SGLang leaves off on CUDA."""
    states = _joint_states(input_ids)
    return _sglang_step("JointThreshold", logits, input_ids, mask_id, threshold, states, is_vectorized=True)


def fused_joint_in_sglang(logits: Tensor, input_ids: Tensor, mask_id: int, threshold: float) -> Told:
    """The step of the plug-in's `FusedJointThreshold`, on the same terms."""
    return _sglang_step("FusedJointThreshold", logits, input_ids, mask_id, threshold, _joint_states(input_ids))


def _joint_states(input_ids: Tensor) -> list[Any]:
    """What `init_step_state` makes for blocks without a prompt, but for their masks, which no step changes."""
    prompt_masks = _no_prompt(input_ids.shape, input_ids.device)
    return [{"post_edit_steps": 0, "finished": False, "prompt_mask": prompt_mask} for prompt_mask in prompt_masks]


@functools.cache
def _no_prompt(shape: tuple[int, int], device: Any) -> tuple[Tensor, ...]:
    import torch

    return torch.zeros(shape, dtype=torch.bool, device=device).unbind()


@functools.cache
def _diffusers_scheduler(name: str, block_length: int, device: Any) -> Any:
    module = "dllm_kernels.integrations.diffusers" if name.startswith("Fused") else "diffusers"
    scheduler = getattr(importlib.import_module(module), name)()
    scheduler.set_timesteps(block_length, device=device, block_length=block_length)  # so one commit a step at least
    return scheduler


def _diffusers_step(name: str, logits: Tensor, input_ids: Tensor, mask_id: int, threshold: float) -> Told:
    scheduler = _diffusers_scheduler(name, input_ids.shape[1], input_ids.device)
    output = scheduler.step(
        logits, 0, input_ids, mask_token_id=mask_id, threshold=threshold, editing_threshold=threshold,
        prompt_mask=_no_prompt(input_ids.shape, input_ids.device)[0],  # which the pipeline gives in every step
    )  # fmt: skip
    input_ids.copy_(output.prev_sample)  # as the pipeline does, into the sequence
    return output.transfer_index, output.editing_transfer_index


def diffusers_block_refinement(logits: Tensor, input_ids: Tensor, mask_id: int, threshold: float) -> Told:
    """The step of diffusers' `BlockRefinementScheduler`; edits above `threshold` too."""
    return _diffusers_step("BlockRefinementScheduler", logits, input_ids, mask_id, threshold)


def fused_in_diffusers(logits: Tensor, input_ids: Tensor, mask_id: int, threshold: float) -> Told:
    """The step of the plug-in's `FusedBlockRefinementScheduler`, on the same terms."""
    return _diffusers_step("FusedBlockRefinementScheduler", logits, input_ids, mask_id, threshold)


# By the name that workloads begin with: the plug-in's step, and the one that the engine ships.
STEPS: dict[str, tuple[Callable[..., Told], Callable[..., Told]]] = {
    "sglang": (fused_in_sglang, sglang_low_confidence),
    "sglang-joint": (fused_joint_in_sglang, sglang_joint_threshold),
    "diffusers": (fused_in_diffusers, diffusers_block_refinement),
}


def fetch(step: str) -> None:
    """See that the engine of that step is here.

    Raises:
        NotFetchedError: it is not, and pip could not get it, or is not asked to.
    """
    if step == "diffusers":
        if not is_installed("diffusers"):
            raise NotFetchedError("diffusers is not installed: pip install --group engines")
    elif not is_installed("sglang"):
        fetch_sglang()


if __name__ == "__main__":
    print(f"SGLang {SGLANG}: {'installed' if is_installed('sglang') else fetch_sglang()}")
