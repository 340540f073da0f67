"""The model against an independent one, slow and in float64, that reads the checkpoint's tensors by their names."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.e2e import checkpoint
from benchmarks.e2e.llada2 import LLADA2_MINI, Cache, Config, LLaDA2

BLOCK = 4
SMALL = Config(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-6,
    rope_theta=600000,
    partial_rotary_factor=0.5,
    first_k_dense_replace=1,
    num_experts=16,
    num_experts_per_tok=3,
    num_shared_experts=1,
    moe_intermediate_size=16,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
    tie_word_embeddings=False,
)
VARIANTS = {
    "experts and a shared one": SMALL,
    "tied head": dataclasses.replace(SMALL, tie_word_embeddings=True),
    "two shared experts": dataclasses.replace(SMALL, num_shared_experts=2),
    "no shared expert": dataclasses.replace(SMALL, num_shared_experts=0),
    "one expert a token": dataclasses.replace(SMALL, num_experts_per_tok=1),
    "no experts": dataclasses.replace(SMALL, first_k_dense_replace=3),
    "whole heads rotated": dataclasses.replace(SMALL, partial_rotary_factor=1.0),
    "a head for each key": dataclasses.replace(SMALL, num_key_value_heads=4),
}
EVERY_VARIANT = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def made_up(config: Config, seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors, float32, large enough that every part of the model matters."""
    generator = torch.Generator().manual_seed(seed)

    def of(*shape: int, std: float = 0.3) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * std

    hidden, width = config.hidden_size, config.head_dim
    rows = (config.num_attention_heads + 2 * config.num_key_value_heads) * width

    def mlp(prefix: str, inter: int) -> dict[str, torch.Tensor]:
        return {
            f"{prefix}.gate_proj.weight": of(inter, hidden),
            f"{prefix}.up_proj.weight": of(inter, hidden),
            f"{prefix}.down_proj.weight": of(hidden, inter),
        }

    made = {"model.word_embeddings.weight": of(config.vocab_size, hidden), "model.norm.weight": 1 + of(hidden)}
    if not config.tie_word_embeddings:
        made["lm_head.weight"] = of(config.vocab_size, hidden)
    for number in range(config.num_hidden_layers):
        layer = f"model.layers.{number}"
        made |= {
            f"{layer}.input_layernorm.weight": 1 + of(hidden),
            f"{layer}.post_attention_layernorm.weight": 1 + of(hidden),
            f"{layer}.attention.query_key_value.weight": of(rows, hidden),
            f"{layer}.attention.query_layernorm.weight": 1 + of(width),
            f"{layer}.attention.key_layernorm.weight": 1 + of(width),
            f"{layer}.attention.dense.weight": of(hidden, config.num_attention_heads * width),
        }
        if number < config.first_k_dense_replace:
            made |= mlp(f"{layer}.mlp", config.intermediate_size)
            continue
        made[f"{layer}.mlp.gate.weight"] = of(config.num_experts, hidden)
        made[f"{layer}.mlp.gate.expert_bias"] = of(config.num_experts)
        for expert in range(config.num_experts):
            made |= mlp(f"{layer}.mlp.experts.{expert}", config.moe_intermediate_size)
        if config.num_shared_experts:
            made |= mlp(f"{layer}.mlp.shared_experts", config.moe_intermediate_size * config.num_shared_experts)
    return made


def write(folder, config: Config, stored: dict[str, torch.Tensor], shards: int = 1, **said):
    """A folder as Hugging Face lays it out."""
    named = dataclasses.asdict(config) | {"model_type": "llada2_moe", "hidden_act": "silu", "dtype": "bfloat16"} | said
    (folder / "config.json").write_text(json.dumps(named))
    if shards == 1:
        save_file(stored, folder / "model.safetensors")
        return folder
    names, where = sorted(stored), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number::shards]
        save_file({name: stored[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def slow_logits(config: Config, stored: dict[str, torch.Tensor], ids: list[int], block: int) -> torch.Tensor:
    """Logits (T, V) of one sequence in float64, a token, head and expert at a time."""
    w = {name: tensor.double() for name, tensor in stored.items()}
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def norm(x, weight):
        return x / (x.pow(2).mean() + config.rms_norm_eps).sqrt() * weight

    def turned(x, position):
        half = int(width * config.partial_rotary_factor) // 2
        new = x.clone()
        for i in range(half):
            angle = position * config.rope_theta ** (-i / half)
            a, b = float(x[i]), float(x[half + i])
            new[i] = a * math.cos(angle) - b * math.sin(angle)
            new[half + i] = b * math.cos(angle) + a * math.sin(angle)
        return new

    def mlp(x, prefix):
        gate = w[f"{prefix}.gate_proj.weight"] @ x
        return w[f"{prefix}.down_proj.weight"] @ (gate / (1 + (-gate).exp()) * (w[f"{prefix}.up_proj.weight"] @ x))

    def experts(x, prefix):
        scores = 1 / (1 + (-(w[f"{prefix}.gate.weight"] @ x)).exp())
        wanted = (scores + w[f"{prefix}.gate.expert_bias"]).tolist()
        size = config.num_experts // config.n_group
        worth = [sum(sorted(wanted[g * size : (g + 1) * size])[-2:]) for g in range(config.n_group)]
        groups = sorted(range(config.n_group), key=lambda g: -worth[g])[: config.topk_group]
        open_to = [e for e in range(config.num_experts) if e // size in groups]
        taken = sorted(open_to, key=lambda e: -wanted[e])[: config.num_experts_per_tok]
        total = sum(float(scores[e]) for e in taken) if config.num_experts_per_tok > 1 else 1.0
        mixed = sum(mlp(x, f"{prefix}.experts.{e}") * (float(scores[e]) / total) for e in taken)
        mixed = mixed * config.routed_scaling_factor
        return mixed + mlp(x, f"{prefix}.shared_experts") if config.num_shared_experts else mixed

    states = [w["model.word_embeddings.weight"][i] for i in ids]
    for number in range(config.num_hidden_layers):
        layer = f"model.layers.{number}"
        queries, keys, values = [], [], []
        for position, x in enumerate(states):
            normed = norm(x, w[f"{layer}.input_layernorm.weight"])
            joint = (w[f"{layer}.attention.query_key_value.weight"] @ normed).view(-1, width)
            query_norm, key_norm = (w[f"{layer}.attention.{one}_layernorm.weight"] for one in ("query", "key"))
            queries.append([turned(norm(joint[h], query_norm), position) for h in range(heads)])
            keys.append([turned(norm(joint[heads + h], key_norm), position) for h in range(kv_heads)])
            values.append([joint[heads + kv_heads + h] for h in range(kv_heads)])
        after = []
        for position, x in enumerate(states):
            seen = [other for other in range(len(ids)) if other // block <= position // block]
            mixed = []
            for h in range(heads):
                kv = h * kv_heads // heads
                weights = torch.stack([queries[position][h] @ keys[o][kv] for o in seen]).div(math.sqrt(width)).exp()
                weights = weights / weights.sum()
                mixed.append(sum(weight * values[o][kv] for weight, o in zip(weights, seen, strict=True)))
            x = x + w[f"{layer}.attention.dense.weight"] @ torch.cat(mixed)
            normed = norm(x, w[f"{layer}.post_attention_layernorm.weight"])
            dense = number < config.first_k_dense_replace
            after.append(x + (mlp(normed, f"{layer}.mlp") if dense else experts(normed, f"{layer}.mlp")))
        states = after
    head = w["model.word_embeddings.weight"] if config.tie_word_embeddings else w["lm_head.weight"]
    return torch.stack([head @ norm(x, w["model.norm.weight"]) for x in states])


def some_ids(config: Config, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(config.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


@EVERY_VARIANT
def test_the_forward_is_that_of_the_slow_model(config: Config, tmp_path) -> None:
    stored = made_up(config)
    model = checkpoint.load(write(tmp_path, config, stored), device="cpu", dtype=torch.float32)
    ids = some_ids(config, 10)  # two blocks and a half
    expected = slow_logits(config, stored, ids.tolist(), BLOCK)
    assert expected.std() > 1
    torch.testing.assert_close(model(ids[None], BLOCK)[0].double(), expected, rtol=0, atol=2e-4)


@EVERY_VARIANT
def test_a_step_over_the_cache_gives_the_logits_of_the_whole_sequence(config: Config, tmp_path) -> None:
    stored = made_up(config)
    model = checkpoint.load(write(tmp_path, config, stored), device="cpu", dtype=torch.float32)
    cache = Cache(config, 3, 16, dtype=torch.float32, device="cpu")
    lengths = (12, 4, 8)  # of three sequences; their last block is the one at hand
    sequences = [some_ids(config, length, seed) for seed, length in enumerate(lengths)]
    for slot, ids in enumerate(sequences):
        if len(ids) > BLOCK:
            model.prefill(ids[None, :-BLOCK], cache, cache.slots[slot : slot + 1], BLOCK)
    blocks = torch.stack([ids[-BLOCK:] for ids in sequences])
    starts = torch.tensor([length - BLOCK for length in lengths])
    model.step(torch.zeros_like(blocks), starts, cache)  # an earlier pass leaves other keys and values there
    logits = model.step(blocks, starts, cache)
    for slot, ids in enumerate(sequences):
        expected = model(ids[None], BLOCK)[0, -BLOCK:]
        torch.testing.assert_close(logits[slot], expected, rtol=0, atol=2e-4)


def test_what_a_block_sees_ends_with_it(tmp_path) -> None:
    model = checkpoint.load(write(tmp_path, SMALL, made_up(SMALL)), device="cpu", dtype=torch.float32)
    ids = some_ids(SMALL, 12)
    other = ids.clone()
    other[8:] = (other[8:] + 1) % SMALL.vocab_size
    ours, theirs = model(ids[None], BLOCK)[0], model(other[None], BLOCK)[0]
    torch.testing.assert_close(ours[:8], theirs[:8], rtol=0, atol=2e-4)
    assert (ours[8:] - theirs[8:]).abs().max() > 0.1


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("repeated", [False, True], ids=["head left out", "head repeated"])
def test_tied_and_sharded_checkpoints_load(shards: int, repeated: bool, tmp_path) -> None:
    config = VARIANTS["tied head"]
    stored = made_up(config)
    more = {"lm_head.weight": torch.zeros_like(stored["model.word_embeddings.weight"])} if repeated else {}
    model = checkpoint.load(write(tmp_path, config, stored | more, shards), device="cpu", dtype=torch.float32)
    for name, tensor in checkpoint.tensors(model).items():
        expected = stored["model.word_embeddings.weight" if name == "lm_head.weight" else name]
        assert torch.equal(tensor, expected), name


def test_weights_take_the_dtype_and_the_choice_of_experts_stays_in_float32(tmp_path) -> None:
    stored = {name: tensor.bfloat16() for name, tensor in made_up(SMALL).items()}
    model = checkpoint.load(write(tmp_path, SMALL, stored), device="cpu")
    dtypes = {name: tensor.dtype for name, tensor in checkpoint.tensors(model).items()}
    gates = {name for name in dtypes if ".gate.weight" in name or "expert_bias" in name}
    assert {dtypes[name] for name in gates} == {torch.float32}
    assert {dtypes[name] for name in dtypes.keys() - gates} == {torch.bfloat16}
    assert model(some_ids(SMALL, 8)[None], BLOCK).dtype == torch.bfloat16


@EVERY_VARIANT
def test_what_was_saved_is_loaded(config: Config, tmp_path) -> None:
    model = checkpoint.random_model(config, device="cpu", seed=3)
    checkpoint.save(model, tmp_path, mask_token_id=60)
    again = checkpoint.load(tmp_path, device="cpu")
    assert again.config == config
    assert checkpoint.read_config(tmp_path)[1]["mask_token_id"] == 60
    saved = checkpoint.tensors(model)
    for name, tensor in checkpoint.tensors(again).items():
        assert torch.equal(tensor, saved[name]), name


def test_random_weights_follow_the_seed() -> None:
    ours, same, other = (checkpoint.random_model(SMALL, device="cpu", seed=seed) for seed in (1, 1, 2))
    ids = some_ids(SMALL, 8)[None]
    assert torch.equal(ours(ids, BLOCK), same(ids, BLOCK))
    assert not torch.equal(ours(ids, BLOCK), other(ids, BLOCK))


def test_llada2_mini_has_its_sixteen_billion_parameters() -> None:
    with torch.device("meta"):
        model = LLaDA2(LLADA2_MINI)
    assert 16.2e9 < sum(parameter.numel() for parameter in model.parameters()) < 16.3e9


EIGHT_WIDE = dataclasses.replace(SMALL, head_dim=8)
EVEN = dataclasses.replace(SMALL, num_key_value_heads=4)


@pytest.mark.parametrize(
    ("config", "name", "values"),
    [
        (SMALL, "partial_rotary_factor", ()),
        (EIGHT_WIDE, "head_dim", (None,)),
        (EVEN, "num_key_value_heads", (None, 0)),
        (VARIANTS["no shared expert"], "num_shared_experts", (None,)),
        (SMALL, "tie_word_embeddings", ()),
    ],
)
def test_what_a_configuration_leaves_out_is_what_llada2s_own_takes(config: Config, name: str, values, tmp_path) -> None:
    """Whether it is missing or one of the values that stand for that."""
    write(tmp_path, config, made_up(config))
    said = json.loads((tmp_path / "config.json").read_text())
    del said[name]
    for more in ({}, *({name: value} for value in values)):
        (tmp_path / "config.json").write_text(json.dumps(said | more))
        assert checkpoint.load(tmp_path, device="cpu").config == config, more


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: expected none, or the default"),
        ({"score_function": "softmax"}, "score_function: expected 'sigmoid'"),
        ({"model_type": "llama"}, "model_type: expected 'llada2_moe'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2}}, "rope_parameters: expected none, or the default"),
        ({"use_sliding_window": True}, "use_sliding_window: expected False, all that is implemented; got True"),
        ({"norm_head": True}, "norm_head: expected False"),
        ({"attention_bias": True}, "attention_bias: expected False"),
        ({"vocab_size": "61"}, "vocab_size: expected an integer of at least 1; got '61'"),
        ({"hidden_size": None}, "hidden_size: expected an integer of at least 1; got None"),
        ({"num_hidden_layers": 3.0}, "num_hidden_layers: expected an integer of at least 1; got 3.0"),
        ({"num_attention_heads": 0}, "num_attention_heads: expected an integer of at least 1; got 0"),
        ({"num_experts": True}, "num_experts: expected an integer of at least 1; got True"),
        ({"first_k_dense_replace": -1}, "first_k_dense_replace: expected an integer of at least 0; got -1"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps: expected a number above 0; got '1e-6'"),
        ({"rope_theta": float("nan")}, "rope_theta: expected a number above 0; got nan"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: expected true or false; got 'no'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor of 4 heads; got 3"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor: expected a share of 16 dimensions .*; got 1.5"),
        ({"partial_rotary_factor": 0.2}, "partial_rotary_factor: expected a share of 16 dimensions .*; got 0.2"),
        ({"n_group": 5}, "n_group: expected a divisor of 16 experts; got 5"),
        ({"topk_group": 5}, "topk_group: expected at most 4 groups; got 5"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok: expected at most the 8 of topk_group groups; got 9"),
        ({"n_group": 16, "num_experts_per_tok": 2}, "num_experts: expected two or more for each of 16 groups; got 16"),
        ({"block_length": 0}, "block_length: expected an integer of at least 1; got 0"),
        ({"block_length": None}, "block_length: expected an integer of at least 1; got None"),
        ({"block_length": "32"}, "block_length: expected an integer of at least 1; got '32'"),
        ({"max_position_embeddings": "8k"}, "max_position_embeddings: expected an integer of at least 1; got '8k'"),
    ],
)
def test_a_configuration_for_something_else_is_refused(said, message: str, tmp_path) -> None:
    write(tmp_path, SMALL, {}, **said)
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.load(tmp_path, device="cpu")


@pytest.mark.parametrize("name", ["hidden_size", "moe_intermediate_size"])
@pytest.mark.parametrize(("dtype", "multiple"), [(torch.bfloat16, 8), (torch.float16, 8), (torch.float32, 4)])
def test_rows_of_experts_that_grouped_matmul_does_not_take_are_refused(name: str, dtype, multiple: int, tmp_path):
    """And what is taken can be run; rows that are no experts' may be of any length."""
    taken = dataclasses.replace(SMALL, **{name: 5 * multiple})
    model = checkpoint.load(write(tmp_path, taken, made_up(taken)), device="cpu", dtype=dtype)
    assert model(some_ids(taken, BLOCK)[None], BLOCK).shape == (1, BLOCK, taken.vocab_size)

    refused = dataclasses.replace(SMALL, **{name: 5 * multiple + multiple // 2})
    got = getattr(refused, name)
    write(tmp_path, refused, {})
    message = f"config.json: {name}: expected a multiple of {multiple}, for experts in {dtype}; got {got}"
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.load(tmp_path, device="cpu", dtype=dtype)

    dense = dataclasses.replace(refused, first_k_dense_replace=refused.num_hidden_layers)
    model = checkpoint.load(write(tmp_path, dense, made_up(dense)), device="cpu", dtype=dtype)
    assert model(some_ids(dense, BLOCK)[None], BLOCK).shape == (1, BLOCK, dense.vocab_size)


@pytest.mark.parametrize("rope", [None, {}, {"rope_type": "default"}, {"type": "default"}])
@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_rotation_that_is_not_scaled_may_be_said(name: str, rope, tmp_path) -> None:
    write(tmp_path, SMALL, {}, **{name: rope})
    assert checkpoint.read_config(tmp_path)[0] == SMALL


def test_rotation_may_be_said_as_newer_files_say_it(tmp_path) -> None:
    """transformers 5 writes base and share of the rotation into `rope_parameters`, and nothing beside it."""
    rope = {
        "rope_type": "default",
        "rope_theta": SMALL.rope_theta,
        "partial_rotary_factor": SMALL.partial_rotary_factor,
    }
    write(tmp_path, SMALL, {}, rope_parameters=rope)
    path = tmp_path / "config.json"
    said = json.loads(path.read_text())
    assert checkpoint.read_config(tmp_path)[0] == SMALL
    del said["rope_theta"], said["partial_rotary_factor"]
    path.write_text(json.dumps(said))
    assert checkpoint.read_config(tmp_path)[0] == SMALL
    path.write_text(json.dumps({**said, "rope_theta": 7}))
    with pytest.raises(checkpoint.CheckpointError, match=rf"rope_theta: expected {SMALL.rope_theta}, as in rope_param"):
        checkpoint.read_config(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "[1]", "config.json: expected a JSON object; got list"),
        ("config.json", "{", "config.json: expected a JSON object; Expecting property name"),
        ("model.safetensors.index.json", "{", "index.json: expected a JSON object; Expecting property name"),
        ("model.safetensors.index.json", "{}", "index.json: weight_map: expected an object of files by tensors"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 1}}', "index.json: weight_map: expected an object"),
    ],
)
def test_a_damaged_file_of_a_checkpoint_is_named(file: str, text: str, message: str, tmp_path) -> None:
    write(tmp_path, SMALL, made_up(SMALL))
    (tmp_path / file).write_text(text)
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.load(tmp_path, device="cpu")


def test_what_is_missing_unknown_or_misshapen_is_named(tmp_path) -> None:
    stored = made_up(SMALL)
    norm = stored.pop("model.norm.weight")
    write(tmp_path, SMALL, stored)
    with pytest.raises(checkpoint.CheckpointError, match="1 tensors are missing, such as model.norm.weight"):
        checkpoint.load(tmp_path, device="cpu")
    write(tmp_path, SMALL, stored | {"model.norm.weight": norm[:5].clone()})
    with pytest.raises(checkpoint.CheckpointError, match=r"expected shape \(32,\) after config.json; got \(5,\)"):
        checkpoint.load(tmp_path, device="cpu")
    write(tmp_path, SMALL, stored | {"model.norm.weight": norm, "model.extra": norm.clone()})
    with pytest.raises(checkpoint.CheckpointError, match="model.extra: the model of config.json has no such tensor"):
        checkpoint.load(tmp_path, device="cpu")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="expected a readable safetensors file"):
        checkpoint.load(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(checkpoint.CheckpointError, match="expected vocab_size, hidden_size"):
        checkpoint.load(tmp_path, device="cpu")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # of PyTorch's, of what it is compiled with
@pytest.mark.parametrize("config", [SMALL, VARIANTS["no experts"]], ids=["experts", "no experts"])
def test_a_captured_pass_on_a_gpu_gives_the_logits_of_the_cpu(config: Config, tmp_path) -> None:
    from benchmarks.e2e.serving import Served

    stored = {name: tensor.bfloat16() for name, tensor in made_up(config).items()}
    folder = write(tmp_path, config, stored)
    exact = checkpoint.load(folder, device="cpu", dtype=torch.float32)
    model = checkpoint.load(folder, device="cuda", dtype=torch.bfloat16)
    mask_id = config.vocab_size - 1
    served = Served(model, slots=2, block_length=8, max_length=32, mask_id=mask_id)
    ids, starts = torch.zeros(2, 8, dtype=torch.int64, device="cuda"), torch.zeros(2, dtype=torch.int64, device="cuda")
    sequences = [some_ids(config, 32, seed) for seed in (1, 2)]
    with torch.no_grad():
        for lengths in ((8, 16), (24, 8), (16, 24), (16, 32)):  # the last captures while the other slot is cached
            for slot, length in enumerate(lengths):
                served.prefill(slot, sequences[slot][: length - 8].cuda())
                ids[slot] = sequences[slot][length - 8 : length]
                starts[slot] = length - 8
            logits = served(ids, starts).float().cpu()
            assert torch.isneginf(logits[..., mask_id]).all()
            logits = logits[..., :mask_id]
            eager = model.step(ids, starts, served.cache)[..., :mask_id].float().cpu()
            torch.testing.assert_close(logits, eager, rtol=0, atol=0)
            for slot, length in enumerate(lengths):
                expected = exact(sequences[slot][None, :length], 8)[0, -8:, :mask_id]
                error = (logits[slot] - expected).norm() / expected.norm()
                assert error < 0.1, (
                    lengths,
                    slot,
                )  # bfloat16 rounds a hundred times on the way, and experts may change
