"""LLaDA2-MoE in plain PyTorch: grouped-query attention with normed queries and keys and partly rotated ones, experts
chosen by a grouped sigmoid router beside a shared one, block-causal attention over a cache of finished blocks.

Names and arithmetic follow the checkpoints of inclusionAI's LLaDA2.0 (model type `llada2_moe`) and the code that came
with them. The experts of a layer lie in one tensor, for grouped matmul.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Config:
    """Of a checkpoint's `config.json`, what the forward pass needs, under the same names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int  # of layers without experts
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    partial_rotary_factor: float
    first_k_dense_replace: int  # layers without experts, before those with
    num_experts: int
    num_experts_per_tok: int
    num_shared_experts: int
    moe_intermediate_size: int
    n_group: int
    topk_group: int
    routed_scaling_factor: float
    tie_word_embeddings: bool


LLADA2_MINI = Config(
    vocab_size=157184,
    hidden_size=2048,
    intermediate_size=5120,
    num_hidden_layers=20,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=128,
    rms_norm_eps=1e-6,
    rope_theta=600000,
    partial_rotary_factor=0.5,
    first_k_dense_replace=1,
    num_experts=256,
    num_experts_per_tok=8,
    num_shared_experts=1,
    moe_intermediate_size=512,
    n_group=8,
    topk_group=4,
    routed_scaling_factor=2.5,
    tie_word_embeddings=False,
)

Remember = Callable[[int, Tensor, Tensor], "tuple[Tensor, Tensor]"]
"""(layer, keys, values) (B, T, kv heads, head_dim) of the tokens at hand -> keys and values to attend to."""


class Cache:
    """Keys and values of `slots` sequences of up to `length` tokens."""

    def __init__(self, config: Config, slots: int, length: int, *, dtype: torch.dtype, device: torch.device | str):
        shape = (config.num_hidden_layers, slots, length, config.num_key_value_heads, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.slots = torch.arange(slots, device=device)
        self.length = length

    def write(self, layer: int, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor) -> None:
        """Keys and values (B, T, kv heads, head_dim) of `slots` (B,) at `positions` (B, T)."""
        places = (slots.unsqueeze(-1) * self.length + positions).flatten()
        self.keys[layer].flatten(0, 1).index_copy_(0, places, keys.flatten(0, 1))
        self.values[layer].flatten(0, 1).index_copy_(0, places, values.flatten(0, 1))

    @property
    def bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


class LLaDA2(nn.Module):
    """The model; its parameters are named as in a checkpoint, but for the experts' (see `Experts`)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.word_embeddings.weight

    def forward(self, input_ids: Tensor, block_length: int) -> Tensor:
        """Logits (B, T, V) of whole sequences (B, T): a token sees its own block of `block_length` and those before."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        hidden = self.model(input_ids, positions, block_causal(input_ids.shape[1], block_length, input_ids.device))
        return self.lm_head(hidden)  # type: ignore[no-any-return]

    def prefill(self, input_ids: Tensor, cache: Cache, slots: Tensor, block_length: int) -> None:
        """Put the first tokens (1, T) of a sequence, whole blocks, into the slot (1,) of the cache. Nothing in it waits
        for the GPU, as in `step`."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)

        def remember(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            cache.write(layer, keys, values, slots, positions)
            return keys, values

        seen = block_causal(input_ids.shape[1], block_length, input_ids.device)
        self.model(input_ids, positions, seen, remember)

    def step(self, input_ids: Tensor, starts: Tensor, cache: Cache) -> Tensor:
        """Logits (B, L, V) of one block (B, L) of every slot, whose first token stands at `starts` (B,).

        It sees itself and what the cache holds before it; its own keys and values are put into the cache, over those
        of an earlier pass. Nothing in it waits for the GPU, so that it can be captured in a CUDA graph.
        """
        positions = starts.unsqueeze(-1) + torch.arange(input_ids.shape[1], device=input_ids.device)
        ends = starts + input_ids.shape[1]
        seen = torch.arange(cache.length, device=input_ids.device) < ends.unsqueeze(-1)

        def remember(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            cache.write(layer, keys, values, cache.slots, positions)
            return cache.keys[layer], cache.values[layer]

        hidden = self.model(input_ids, positions, seen[:, None, None, :], remember)
        return self.lm_head(hidden)  # type: ignore[no-any-return]


class Trunk(nn.Module):
    """All but the head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids: Tensor, positions: Tensor, seen: Tensor, remember: Remember | None = None) -> Tensor:
        hidden = self.word_embeddings(input_ids)
        rotation = rotary(self.config, positions, hidden.dtype)
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden, rotation, seen, number, remember)
        return self.norm(hidden)  # type: ignore[no-any-return]


def block_causal(length: int, block_length: int, device: torch.device | str) -> Tensor:
    """Which tokens a token sees (1, 1, T, T): those of its own block and of the blocks before."""
    blocks = torch.arange(length, device=device) // block_length
    return (blocks.unsqueeze(-1) >= blocks)[None, None]


def rotary(config: Config, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, T, 1, rotated share of head_dim), computed in float32."""
    width = int(config.head_dim * config.partial_rotary_factor)
    powers = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    angles = positions.unsqueeze(-1).float() / config.rope_theta**powers
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """The first part of each head turned, its halves as pairs; the rest as it was."""
    cosines, sines = rotation
    turned, rest = x[..., : cosines.shape[-1]], x[..., cosines.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat((turned * cosines + torch.cat((-second, first), dim=-1) * sines, rest), dim=-1)


class Norm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Layer(nn.Module):
    def __init__(self, config: Config, number: int) -> None:
        super().__init__()
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        dense = number < config.first_k_dense_replace
        self.mlp = MLP(config.hidden_size, config.intermediate_size) if dense else Experts(config)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], seen: Tensor, number: int, remember: Remember | None
    ) -> Tensor:
        x = x + self.attention(self.input_layernorm(x), rotation, seen, number, remember)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        rows = (self.heads + 2 * self.kv_heads) * self.width
        self.query_key_value = nn.Linear(config.hidden_size, rows, bias=False)
        self.query_layernorm = Norm(self.width, config.rms_norm_eps)
        self.key_layernorm = Norm(self.width, config.rms_norm_eps)
        self.dense = nn.Linear(self.heads * self.width, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], seen: Tensor, number: int, remember: Remember | None
    ) -> Tensor:
        batch, length, _ = x.shape
        joint = self.query_key_value(x).view(batch, length, self.heads + 2 * self.kv_heads, self.width)
        queries, keys, values = joint.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        queries = rotate(self.query_layernorm(queries), rotation)
        keys = rotate(self.key_layernorm(keys), rotation)
        if remember is not None:
            keys, values = remember(number, keys, values)
        # The heads that share keys stand one under the other, as more queries of one head: keys are read once.
        group = self.heads // self.kv_heads
        queries = queries.view(batch, length, self.kv_heads, group, self.width).permute(0, 2, 3, 1, 4)
        if seen.shape[2] != 1:
            seen = seen.repeat(1, 1, group, 1)
        found = functional.scaled_dot_product_attention(
            queries.reshape(batch, self.kv_heads, group * length, self.width),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=seen.expand(-1, -1, group * length, -1),
        )
        found = found.view(batch, self.kv_heads, group, length, self.width).permute(0, 3, 1, 2, 4)
        return self.dense(found.reshape(batch, length, self.heads * self.width))  # type: ignore[no-any-return]


class MLP(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Gate(nn.Module):
    """Which experts a token takes, and their weights, in float32."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size, dtype=torch.float32))
        self.expert_bias: Tensor
        self.register_buffer("expert_bias", torch.zeros(config.num_experts, dtype=torch.float32))
        self.config = config

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Experts and weights (N, k) of tokens (N, hidden). The bias decides on the choice, not on the weights; a
        group of experts counts by its best two."""
        config = self.config
        scores = functional.linear(x.float(), self.weight).sigmoid()
        wanted = (scores + self.expert_bias).view(len(x), config.n_group, -1)
        groups = wanted.topk(2, dim=-1).values.sum(dim=-1).topk(config.topk_group, dim=-1).indices
        allowed = torch.zeros_like(wanted[..., 0], dtype=torch.bool).scatter_(1, groups, True)
        wanted = wanted.masked_fill(~allowed.unsqueeze(-1), -torch.inf).flatten(1)
        experts = wanted.topk(config.num_experts_per_tok, dim=-1).indices
        weights = scores.gather(1, experts)
        if config.num_experts_per_tok > 1:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return experts, weights * config.routed_scaling_factor


class Experts(nn.Module):
    """Routed experts and shared ones. `gate_up` (E, 2 x inter, hidden) and `down` (E, hidden, inter) hold what a
    checkpoint has as `experts.<e>.gate_proj`, `.up_proj` and `.down_proj`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        experts, hidden, inter = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate = Gate(config)
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * inter, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, inter))
        shared = config.num_shared_experts
        self.shared_experts = MLP(hidden, inter * shared) if shared else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        experts, weights = self.gate(tokens)
        each = experts.shape[1]
        # Tokens in the order of their experts; summed up again in their own order, so that every run sums alike.
        ordered, order = experts.flatten().sort(stable=True)
        numbers = torch.arange(len(self.down), device=x.device)
        ends = torch.searchsorted(ordered, numbers, right=True).to(torch.int32)
        taken = functional.grouped_mm(tokens[order // each], self.gate_up.transpose(1, 2), offs=ends)
        gate, up = taken.chunk(2, dim=-1)
        outputs = functional.grouped_mm(functional.silu(gate) * up, self.down.transpose(1, 2), offs=ends)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
        outputs = outputs[back].view(len(tokens), each, -1)
        mixed: Tensor = (weights.to(x.dtype).unsqueeze(1) @ outputs).view_as(x)
        return mixed if self.shared_experts is None else mixed + self.shared_experts(x)
