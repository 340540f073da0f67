"""Checkpoints in Hugging Face's layout, a folder of `config.json` and safetensors, and models of random weights."""

from __future__ import annotations

import dataclasses
import json
import math
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
    "use_sliding_window": False,
    "norm_head": False,
    "attention_bias": False,
}
UNSCALED: tuple[Any, ...] = (None, {}, {"rope_type": "default"}, {"type": "default"})
OF_ROTATION = ("rope_theta", "partial_rotary_factor")
ROW_BYTES = 16  # of which grouped matmul takes whole multiples
MAY_BE_ZERO = ("first_k_dense_replace", "num_shared_experts")


class CheckpointError(ValueError):
    """A folder is not a checkpoint that can be loaded and talked to; the message says what is missing or different."""


def read_config(folder: Path) -> tuple[Config, dict[str, Any]]:
    """The configuration, and all that the file says.

    Raises:
        CheckpointError: there is no readable file, a value is missing, or one asks for what this model does not do.
    """
    path = folder / "config.json"
    said = json_object(path)
    for name, fixed in FIXED.items():
        _expect(said.get(name, fixed) == fixed, path, name, f"{fixed!r}, all that is implemented", said.get(name))
    rotation = _rotation(path, said)
    fields = [field.name for field in dataclasses.fields(Config)]
    if missing := [name for name in fields if name not in said | rotation and name not in DEFAULTS]:
        raise CheckpointError(f"{path}: expected {', '.join(missing)}; they are missing")
    for name in ("block_length", "max_position_embeddings"):  # not the forward pass's, but its users'
        if name in said:
            _check_count(path, name, said[name])
    values: dict[str, Any] = {name: (DEFAULTS | said | rotation).get(name) for name in fields}
    for name in ("hidden_size", "num_attention_heads"):
        _check_count(path, name, values[name])
    heads = values["num_attention_heads"]
    values["num_key_value_heads"] = values["num_key_value_heads"] or heads  # null and 0 are as good as missing
    values["head_dim"] = values["head_dim"] or values["hidden_size"] // heads
    values["num_shared_experts"] = values["num_shared_experts"] or 0  # null where there is none
    for field in dataclasses.fields(Config):
        _check_value(path, field.name, field.type, values[field.name])
    config = Config(**values)
    _check_shape(path, config)
    return config, said


def json_object(path: Path) -> dict[str, Any]:
    """What the file holds.

    Raises:
        CheckpointError: it cannot be read, or holds something else than a JSON object.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a JSON object; {error}") from error
    if not isinstance(said, dict):
        raise CheckpointError(f"{path}: expected a JSON object; got {type(said).__name__}")
    return said


def load(folder: Path, *, device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> LLaDA2:
    """The model of a checkpoint, on the device, its weights in `dtype`.

    Raises:
        CheckpointError: see `read_config`; or a tensor is missing, unknown, or of another shape than expected, or the
            rows of the experts' weights are none that grouped matmul takes in `dtype`.
    """
    config, _ = read_config(folder)
    _check_rows(folder / "config.json", config, dtype)
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


def _rotation(path: Path, said: dict[str, Any]) -> dict[str, Any]:
    """What `rope_parameters` says, where newer files keep it, of what older ones say beside it."""
    found: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        rope = said.get(name)
        if name == "rope_parameters" and isinstance(rope, dict):
            found = {one: rope[one] for one in OF_ROTATION if one in rope}
            rope = {one: value for one, value in rope.items() if one not in found}
        _expect(rope in UNSCALED, path, name, "none, or the default, all that is implemented", said.get(name))
    for name, value in found.items():
        _expect(said.get(name, value) == value, path, name, f"{value!r}, as in rope_parameters", said.get(name))
    return found


def _expect(holds: bool, path: Path, name: str, expected: str, got: object) -> None:
    if not holds:
        raise CheckpointError(f"{path}: {name}: expected {expected}; got {got!r}")


def _check_count(path: Path, name: str, value: object, least: int = 1) -> None:
    _expect(type(value) is int and value >= least, path, name, f"an integer of at least {least}", value)


def _check_value(path: Path, name: str, kind: object, value: Any) -> None:
    """`kind` is the type that `Config` annotates, as text."""
    if kind == "int":
        _check_count(path, name, value, 0 if name in MAY_BE_ZERO else 1)
    elif kind == "float":
        _expect(type(value) in (int, float) and 0 < value < math.inf, path, name, "a number above 0", value)
    else:
        _expect(type(value) is bool, path, name, "true or false", value)


def _check_shape(path: Path, config: Config) -> None:
    """What has to fit together of a configuration's values."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    _expect(heads % kv_heads == 0, path, "num_key_value_heads", f"a divisor of {heads} heads", kv_heads)
    factor = config.partial_rotary_factor
    rotated = int(config.head_dim * factor)
    _expect(
        factor <= 1 and rotated > 0 and rotated % 2 == 0,
        path, "partial_rotary_factor", f"a share of {config.head_dim} dimensions that makes pairs", factor,
    )  # fmt: skip
    experts, groups, chosen = config.num_experts, config.n_group, config.topk_group
    _expect(experts % groups == 0, path, "n_group", f"a divisor of {experts} experts", groups)
    _expect(chosen <= groups, path, "topk_group", f"at most {groups} groups", chosen)
    open_to, taken = chosen * experts // groups, config.num_experts_per_tok
    _expect(taken <= open_to, path, "num_experts_per_tok", f"at most the {open_to} of topk_group groups", taken)
    if config.first_k_dense_replace < config.num_hidden_layers:
        _expect(experts >= 2 * groups, path, "num_experts", f"two or more for each of {groups} groups", experts)


def _check_rows(path: Path, config: Config, dtype: torch.dtype) -> None:
    if config.first_k_dense_replace >= config.num_hidden_layers:
        return  # there are no experts
    multiple = ROW_BYTES // dtype.itemsize
    for name in ("hidden_size", "moe_intermediate_size"):
        value = getattr(config, name)
        _expect(value % multiple == 0, path, name, f"a multiple of {multiple}, for experts in {dtype}", value)


def _shards(index: Path) -> list[str]:
    """The files that an index names."""
    places = json_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(f"{index}: weight_map: expected an object of files by tensors; got {str(places)[:80]}")
    return sorted(set(places.values()))


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
        shards = _shards(folder / INDEX)
    else:
        shards = [SINGLE]
    for shard in shards:
        try:
            with safe_open(folder / shard, framework="pt", device=str(device)) as opened:
                for name in opened.keys():  # noqa: SIM118  # it is not a dict
                    yield name, opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder / shard}: expected a readable safetensors file; {error}") from error
