"""Checkpoints in Hugging Face's layout, a folder of `config.json` and safetensors, and models of random weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.e2e.llada2 import Config, Gate, LLaDA2

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# What LLaDA2's own configuration takes for a name that a file leaves out; of others there is no sensible value.
DEFAULTS = {
    "num_key_value_heads": None,  # as many as heads
    "head_dim": None,  # the hidden size, shared among the heads
    "partial_rotary_factor": 0.5,
    "num_shared_experts": 0,
    "tie_word_embeddings": False,
}
# What this model does, where a configuration could ask for something else.
FIXED = {
    "model_type": "llada2_moe",
    "hidden_act": "silu",
    "score_function": "sigmoid",
    "norm_topk_prob": True,
    "use_bias": False,
    "use_qkv_bias": False,
    "use_qk_norm": True,
    "rope_scaling": None,
}


class CheckpointError(ValueError):
    """A folder is not a checkpoint that this model can load; the message says what is missing or different."""


def read_config(folder: Path) -> tuple[Config, dict[str, Any]]:
    """The configuration, and all that the file says.

    Raises:
        CheckpointError: there is no readable file, a value is missing, or one asks for what this model does not do.
    """
    path = folder / "config.json"
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a model's configuration; {error}") from error
    for name, value in FIXED.items():
        if said.get(name, value) != value:
            raise CheckpointError(f"{path}: {name}: expected {value!r}, all that is implemented; got {said[name]!r}")
    fields = [field.name for field in dataclasses.fields(Config)]
    if missing := [name for name in fields if name not in said and name not in DEFAULTS]:
        raise CheckpointError(f"{path}: expected {', '.join(missing)}; they are missing")
    values = {name: said.get(name, DEFAULTS.get(name)) for name in fields}
    heads = values["num_attention_heads"]
    values["num_key_value_heads"] = values["num_key_value_heads"] or heads  # null and 0 are as good as missing
    values["head_dim"] = values["head_dim"] or values["hidden_size"] // heads
    values["num_shared_experts"] = values["num_shared_experts"] or 0  # null where there is none
    return Config(**values), said


def load(folder: Path, *, device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> LLaDA2:
    """The model of a checkpoint, on the device, its weights in `dtype`.

    Raises:
        CheckpointError: see `read_config`; or a tensor is missing, unknown, or of another shape than expected.
    """
    config, _ = read_config(folder)
    model = _empty(config, device, dtype)
    places = tensors(model)
    if config.tie_word_embeddings:
        del places["lm_head.weight"]
    missing = set(places)
    for name, tensor in _stored(folder, device):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # some files repeat it
        if name not in places:
            raise CheckpointError(f"{folder}: {name}: the model of config.json has no such tensor")
        if places[name].shape != tensor.shape:
            expected, got = tuple(places[name].shape), tuple(tensor.shape)
            raise CheckpointError(f"{folder}: {name}: expected shape {expected} after config.json; got {got}")
        places[name].copy_(tensor)
        missing.discard(name)
    if missing:
        some = sorted(missing)[:3]
        raise CheckpointError(f"{folder}: {len(missing)} tensors are missing, such as {', '.join(some)}")
    return model


def random_model(
    config: Config, *, device: torch.device | str, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> LLaDA2:
    """A model of random weights, of the standard deviation 0.02 that LLaDA2 was initialised with."""
    model = _empty(config, device, dtype)
    generator = torch.Generator(device).manual_seed(seed)
    for name, tensor in tensors(model).items():
        if name.endswith("norm.weight"):
            tensor.fill_(1)
        elif name.endswith("expert_bias"):
            tensor.zero_()
        else:
            tensor.normal_(0, 0.02, generator=generator)
    return model


def save(model: LLaDA2, folder: Path, **more: Any) -> None:
    """Write the checkpoint, in the weights' own dtypes; `more` goes into `config.json` beside what the model needs."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"architectures": ["LLaDA2MoeModelLM"], **FIXED, **dataclasses.asdict(model.config), **more}
    (folder / "config.json").write_text(json.dumps(said, indent=2) + "\n")
    stored = {name: tensor.contiguous() for name, tensor in tensors(model).items()}
    if model.config.tie_word_embeddings:
        del stored["lm_head.weight"]
    save_file(stored, folder / SINGLE, metadata={"format": "pt"})


def tensors(model: LLaDA2) -> dict[str, Tensor]:
    """The model's own memory under the names that checkpoints have, without gradients: writing it changes the model."""
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        prefix, _, last = name.rpartition(".")
        if last == "gate_up":
            for number, expert in enumerate(tensor):
                gate, up = expert.chunk(2)
                found[f"{prefix}.experts.{number}.gate_proj.weight"] = gate
                found[f"{prefix}.experts.{number}.up_proj.weight"] = up
        elif last == "down":
            found |= {f"{prefix}.experts.{number}.down_proj.weight": expert for number, expert in enumerate(tensor)}
        else:
            found[name] = tensor
    return found


def _empty(config: Config, device: torch.device | str, dtype: torch.dtype) -> LLaDA2:
    with torch.device("meta"):
        model = LLaDA2(config).to(dtype)
    for module in model.modules():
        if isinstance(module, Gate):  # the choice of experts is made in float32
            module.float()
    model = model.to_empty(device=device)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.word_embeddings.weight
    return model.requires_grad_(False).eval()


def _stored(folder: Path, device: torch.device | str) -> Iterator[tuple[str, Tensor]]:
    if (folder / INDEX).is_file():
        shards = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    else:
        shards = [SINGLE]
    for shard in shards:
        try:
            with safe_open(folder / shard, framework="pt", device=str(device)) as opened:
                for name in opened.keys():  # noqa: SIM118  # it is not a dict
                    yield name, opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder / shard}: expected a readable safetensors file; {error}") from error
