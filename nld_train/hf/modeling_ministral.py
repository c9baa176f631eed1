"""The decoder of the Ministral-3 family and its key/value cache. This file travels with every export.

Letters: B rows, n given tokens of a row, K places of it that are looked at, H query heads, G key/value heads,
D head dimension, E hidden size. A *place* is where a token stands in its row, padding not counted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

GROWTH = 256  # places by which a full cache grows at least


class KVCache:
    """Keys and values of every layer by row and place, for decoding without gradients.

    The first lengths[b] places of row b are its past. What lies behind them is scratch: a forward that does not keep
    its keys writes there, the next one overwrites it, and dropping tokens is lowering a length.
    """

    def __init__(self, rows: int) -> None:
        self.lengths = [0] * rows
        self.layers: list[tuple[Tensor, Tensor]] = []  # keys and values, each [B, capacity, G, D]

    def get_seq_length(self) -> int:
        """Places of the longest row."""
        return max(self.lengths)

    def crop(self, lengths: int | Sequence[int]) -> None:
        """Forget what stands behind the first `lengths` places: of every row, or row by row."""
        wanted = [lengths] * len(self.lengths) if isinstance(lengths, int) else list(lengths)
        assert len(wanted) == len(self.lengths), f"{len(wanted)} lengths for {len(self.lengths)} rows"
        self.lengths = [min(old, new) for old, new in zip(self.lengths, wanted, strict=True)]

    def write(self, layer: int, key: Tensor, value: Tensor, places: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Write key, value [B, n, G, D] at places [B, n]. Returns: the first `end` places of both, [B, end, G, D]."""
        keys, values = self._reserve(layer, key, end)
        rows = torch.arange(len(places), device=places.device)[:, None]
        keys[rows, places] = key
        values[rows, places] = value
        return keys[:, :end], values[:, :end]

    def _reserve(self, layer: int, like: Tensor, end: int) -> tuple[Tensor, Tensor]:
        if layer == len(self.layers):
            empty = like[:, :0]
            self.layers.append((empty, empty))
        keys, values = self.layers[layer]
        capacity = keys.shape[1]
        if end > capacity:
            more = max(end - capacity, capacity, GROWTH)
            # Zeros, because scratch that is masked out still takes part in a product with weight zero.
            room = like.new_zeros(like.shape[0], more, *like.shape[2:])
            self.layers[layer] = (torch.cat([keys, room], 1), torch.cat([values, room], 1))
        return self.layers[layer]


@dataclass(frozen=True)
class AttentionMask:
    """Who may see whom, as scaled_dot_product_attention takes it."""

    mask: Tensor | None  # [B, 1, n, K] bool; None: everything, or what comes before
    is_causal: bool = False


def token_places(lengths: Sequence[int], width: int, real: Tensor | None, device: torch.device) -> Tensor:
    """Places of `width` given tokens behind `lengths` [B] past ones: [B, n] int64.

    `real` [B, n] bool marks padding with False, on whichever side; padding stands behind the row's own tokens, where
    nobody looks.
    """
    past = torch.tensor(lengths, device=device)[:, None]
    if real is None:
        return past + torch.arange(width, device=device)
    own = real.cumsum(1) - 1
    behind = real.sum(1, keepdim=True) + (~real).cumsum(1) - 1
    return past + torch.where(real, own, behind)


def build_attention_mask(
    lengths: Sequence[int], places: Tensor, real: Tensor | None, cached: bool, causal: bool
) -> AttentionMask:
    """Who sees whom among the given tokens and the past: earlier places (causal), or every real one."""
    width = places.shape[1]
    even = real is None and len(set(lengths)) == 1
    if even and (not causal or width == 1):
        return AttentionMask(None)
    if even and lengths[0] == 0:
        return AttentionMask(None, is_causal=True)
    keys = torch.arange(max(lengths) + width, device=places.device)[None] if cached else places
    query, key = places[:, :, None], keys[:, None, :]
    if causal:
        return AttentionMask((key <= query)[:, None])
    given = places.new_full((len(places), 1), width) if real is None else real.sum(1, keepdim=True)
    end = torch.tensor(lengths, device=places.device)[:, None] + given
    # Padding sees itself, so that no query is left without a key.
    return AttentionMask(((key < end[:, :, None]) | (key == query))[:, None])


def inverse_frequencies(rope: dict[str, Any], dim: int, device: torch.device) -> Tensor:
    """YaRN frequencies [D / 2], float32, with the correction range rounded outwards to whole dimensions.

    Operation by operation what Megatron-Core's YarnRotaryEmbedding computes in training, so that the bits agree.
    """
    theta, factor = rope["rope_theta"], rope["factor"]
    powers = theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    low = max(math.floor(_turning_dimension(rope, dim, rope["beta_fast"])), 0)
    high = min(math.ceil(_turning_dimension(rope, dim, rope["beta_slow"])), dim - 1)
    width = high - low if high != low else 0.001
    ramp = torch.clamp((torch.arange(dim // 2, dtype=torch.float32, device=device) - low) / width, 0, 1)
    kept = 1.0 - ramp
    return 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept


def _turning_dimension(rope: dict[str, Any], dim: int, turns: float) -> float:
    """The dimension whose wave turns `turns` times within the original context."""
    context = rope["original_max_position_embeddings"]
    return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))


def rotary_attention_factor(rope: dict[str, Any]) -> float:
    """YaRN's factor on sine and cosine: 1 where mscale equals mscale_all_dim."""
    grown = 0.1 * math.log(max(rope["factor"], 1.0))
    return (grown * rope["mscale"] + 1.0) / (grown * rope["mscale_all_dim"] + 1.0)


@dataclass(frozen=True)
class RotaryPositions:
    """What attention needs to know of the positions of the given tokens."""

    cos: Tensor  # [B, n, 1, D]
    sin: Tensor  # [B, n, 1, D]
    query_scale: Tensor  # [B, n, 1, 1]: 1 + beta * ln(1 + floor(position / original_max_position_embeddings))


def encode_positions(positions: Tensor, rope: dict[str, Any], dim: int, dtype: torch.dtype) -> RotaryPositions:
    """Rotary angles (float32, as in training) and Llama-4 query scale of positions [B, n], as factors in `dtype`."""
    wide = torch.promote_types(dtype, torch.float32)
    angles = (positions[..., None].float() * inverse_frequencies(rope, dim, positions.device)).to(wide)
    angles = torch.cat([angles, angles], -1)[:, :, None]
    scale = rotary_attention_factor(rope)
    wraps = torch.div(positions, rope["original_max_position_embeddings"], rounding_mode="floor")
    query_scale = 1.0 + rope["llama_4_scaling_beta"] * torch.log1p(wraps.to(wide))
    return RotaryPositions(
        (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype), query_scale[..., None, None].to(dtype)
    )


def rotate_by_positions(x: Tensor, positions: RotaryPositions) -> Tensor:
    """Rotary embedding of x [B, n, heads, D], halves paired."""
    first, second = x.chunk(2, -1)
    return x * positions.cos + torch.cat([-second, first], -1) * positions.sin


class MinistralAttention(nn.Module):
    """Grouped-query attention over the given tokens and the cache."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        inner, shared = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=config.attention_bias)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=config.attention_bias)

    def forward(
        self, hidden: Tensor, positions: RotaryPositions, visible: AttentionMask, places: Tensor, cache: KVCache | None
    ) -> Tensor:
        """hidden [B, n, E] -> [B, n, E]; writes keys and values of `places` into the cache, where there is one."""
        query, key, value = (
            project(hidden).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query = rotate_by_positions(query, positions) * positions.query_scale
        key = rotate_by_positions(key, positions)
        if cache is not None:
            key, value = cache.write(self.layer, key, value, places, cache.get_seq_length() + places.shape[1])
        seen = scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=visible.mask,
            is_causal=visible.is_causal,
            scale=self.head_dim**-0.5,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return self.o_proj(seen.transpose(1, 2).flatten(2))


class MinistralMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class MinistralDecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = MinistralAttention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MinistralMLP(config)

    def forward(
        self, hidden: Tensor, positions: RotaryPositions, visible: AttentionMask, places: Tensor, cache: KVCache | None
    ) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), positions, visible, places, cache)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class MinistralEncoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.rope, self.head_dim = config.rope_parameters, config.head_dim
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MinistralDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: KVCache | None,
        causal: bool,
        keep: bool,
    ) -> Tensor:
        """Embedded tokens [B, n, E] to normed hidden states [B, n, E].

        attention_mask: [B, past + n], 0 for padding, of which the last n columns are read (padding never enters the
        cache); or [B, 1, n, K] bool, who sees whom over all places. position_ids: [B, n]; None: the places.
        keep: whether the cache counts the given tokens as past from now on.
        """
        rows, width = hidden.shape[:2]
        lengths = [0] * rows if cache is None else cache.lengths
        whole = attention_mask is not None and attention_mask.dim() == 4
        real = None if attention_mask is None or whole else attention_mask[:, -width:].bool()
        places = token_places(lengths, width, real, hidden.device)
        seen = (
            AttentionMask(attention_mask)
            if whole
            else build_attention_mask(lengths, places, real, cache is not None, causal)
        )
        chosen = places if position_ids is None else position_ids
        positions = encode_positions(chosen, self.rope, self.head_dim, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, positions, seen, places, cache)
        if cache is not None and keep:
            given = [width] * rows if real is None else real.sum(1).tolist()
            cache.lengths = [past + new for past, new in zip(lengths, given, strict=True)]
        return self.norm(hidden)
