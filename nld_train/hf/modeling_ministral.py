"""The decoder of the Ministral-3 family. This file travels with every export.

Letters: B rows, n given tokens of a row, K places of it that are looked at, H query heads, G key/value heads,
D head dimension, E hidden size. A *place* is where a token stands in its row, padding not counted.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .cache_nemotron_labs_diffusion import (
    CACHE_FIELD,
    KVCache,
    Visibility,
    build_attention_mask,
    column_positions,
    column_visibility,
    token_places,
)
from .configuration_nemotron_labs_diffusion import require_input


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


def encode_positions(positions: Tensor, rope: dict[str, Any], dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles (float32, as in training) of positions [B, n]: each [B, n, D] in `dtype`."""
    wide = torch.promote_types(dtype, torch.float32)
    angles = (positions[..., None].float() * inverse_frequencies(rope, dim, positions.device)).to(wide)
    angles = torch.cat([angles, angles], -1)
    scale = rotary_attention_factor(rope)
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def query_scales(positions: Tensor, rope: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """The Llama-4 scale of the queries at positions [B, n], in `dtype`.

    Returns: [B, n], 1 + beta * ln(1 + floor(position / original_max_position_embeddings)).
    """
    wraps = torch.div(positions, rope["original_max_position_embeddings"], rounding_mode="floor")
    wide = torch.promote_types(dtype, torch.float32)
    return (1.0 + rope["llama_4_scaling_beta"] * torch.log1p(wraps.to(wide))).to(dtype)


def rotate_by_positions(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, n, heads, D] by cos, sin [B, n, D], halves paired."""
    first, second = x.chunk(2, -1)
    return x * cos[:, :, None] + torch.cat([-second, first], -1) * sin[:, :, None]


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool = True,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out, which is what gives the attention weights to those who ask for them.

    query: [B, H, n, D]; key, value: [B, G, K, D]; attention_mask: [B, 1, n, K], bool (who sees whom) or added to the
    scores; None: everybody sees everybody, or with `is_causal` what comes before.
    Returns: [B, n, H, D], and the weights [B, H, n, K].
    """
    shared = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(shared, 1) for part in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is None and is_causal and query.shape[2] > 1:
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


class MinistralAttention(nn.Module):
    """Grouped-query attention over the given tokens and the cache."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling, self.is_causal = config.head_dim**-0.5, True
        inner, shared = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=config.attention_bias)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=config.attention_bias)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        position_ids: Tensor,
        past_key_values: KVCache | Cache | None = None,
        places: Tensor | None = None,
        is_causal: bool | None = None,
        **attention_kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states [B, n, E] -> [B, n, E], and the attention weights [B, H, n, K] where the implementation has
        them. The rest is as in `MinistralDecoderLayer`.
        """
        query, key, value = (
            project(hidden_states).unflatten(-1, (-1, self.head_dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        scales = query_scales(position_ids, self.config.rope_parameters, query.dtype)
        query = rotate_by_positions(query, *position_embeddings) * scales[:, :, None, None]
        key = rotate_by_positions(key, *position_embeddings)
        if isinstance(past_key_values, KVCache):
            assert places is not None, "the cache of rows needs the places of the given tokens"
            end = past_key_values.get_seq_length() + places.shape[1]
            key, value = past_key_values.write(self.layer_idx, key, value, places, end)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if past_key_values is not None and not isinstance(past_key_values, KVCache):
            key, value = past_key_values.update(key, value, self.layer_idx)
        implementation = self.config._attn_implementation
        attend = eager_attention if implementation == "eager" else ALL_ATTENTION_FUNCTIONS[implementation]
        seen, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=0.0,
            scaling=self.scaling,
            is_causal=self.is_causal if is_causal is None else is_causal,
            **attention_kwargs,
        )
        return self.o_proj(seen.flatten(2)), weights


class MinistralMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """hidden_states [B, n, E] -> [B, n, E]."""
        return self.down_proj(silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class MinistralDecoderLayer(GradientCheckpointingLayer):
    """Attention and MLP, each behind a norm and beside a residual; called as transformers' decoder layers are."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = MinistralAttention(config, layer_idx)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MinistralMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KVCache | Cache | None = None,
        use_cache: bool = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attentions: list[Tensor] | None = None,
        **attention_kwargs: Any,
    ) -> Tensor:
        """hidden_states [B, n, E] -> [B, n, E].

        attention_mask: [B, 1, n, K], bool (who sees whom) or added to the scores; None: everybody sees everybody
        where `is_causal` is False, else what comes before. position_ids: [B, n] or [1, n]; None: 0 to n - 1.
        position_embeddings: cosine and sine of those positions, [B, n, D] each; None: they are computed.
        past_key_values: keys and values of the past, to which those of the given tokens are added. use_cache is part
        of the convention and decides nothing here. attentions: a list that is given this layer's attention weights.
        attention_kwargs go to the attention function.
        """
        if position_ids is None:
            position_ids = torch.arange(hidden_states.shape[1], device=hidden_states.device)[None]
        if position_embeddings is None:
            attention = self.self_attn
            rope, dim = attention.config.rope_parameters, attention.head_dim
            position_embeddings = encode_positions(position_ids, rope, dim, hidden_states.dtype)
        seen, weights = self.self_attn(
            self.input_layernorm(hidden_states),
            position_embeddings,
            attention_mask,
            position_ids,
            past_key_values,
            **attention_kwargs,
        )
        if attentions is not None:
            require_input(
                weights is not None,
                f"output_attentions with the attention {self.self_attn.config._attn_implementation!r}",
                "'eager', which alone computes the weights",
                "load the model with attn_implementation='eager'",
            )
            attentions.append(weights)
        hidden_states = hidden_states + seen
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class MinistralEncoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MinistralDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: KVCache | Cache | None = None,
        use_cache: bool = False,
        causal: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        **attention_kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Tokens [B, n], or their embeddings [B, n, E], through all layers: last_hidden_state is [B, n, E], normed.

        attention_mask: [B, past + n], 0 for padding; or [B, 1, n, K], who sees whom over all places. Of the first, the
        last n columns are read with a KVCache, which padding never enters; transformers' own cache keeps padding, and
        there all columns are. position_ids: [B, n]; None: the places of the tokens in their rows. use_cache: whether a
        KVCache counts the given tokens as past from now on; transformers' own cache always does. causal None is for
        trainers that call the trunk by itself and compute the causal loss of what it gives: True.
        hidden_states: the embedded tokens, then every layer's output. Raises: InputError.
        """
        require_input(
            causal is not None or not self.training or self.config.dlm_loss_weight is None,
            f"dlm_loss_weight={self.config.dlm_loss_weight} with a trainer that reads hidden states, not the loss",
            "dlm_loss_weight=null there",
            "set it to None, or use a trainer that gives `labels` to the model, such as transformers' own Trainer",
        )
        causal = True if causal is None else causal
        embedded = inputs_embeds if input_ids is None else self.embed_tokens(input_ids)
        assert embedded is not None, "input_ids or inputs_embeds are needed"
        cache, rows, width = past_key_values, embedded.shape[0], embedded.shape[1]
        whole = attention_mask is not None and attention_mask.dim() == 4
        padding = None if attention_mask is None or whole else attention_mask.bool()
        real, places = None if padding is None else padding[:, -width:], None
        if cache is None or isinstance(cache, KVCache):
            lengths = [0] * rows if cache is None else cache.lengths
            places = chosen = token_places(lengths, width, real, embedded.device)
            seen = build_attention_mask(lengths, places, real, cache is not None, causal)
        else:
            past = cache.get_seq_length()
            chosen = column_positions(past, width, padding, embedded.device)
            seen = column_visibility(past, width, padding, causal, embedded.device)
        seen = Visibility(attention_mask) if whole else seen
        chosen = chosen if position_ids is None else position_ids
        attentions: list[Tensor] | None = [] if output_attentions else None
        states = self._through_layers(
            embedded,
            output_hidden_states,
            attention_mask=seen.mask,
            position_ids=chosen,
            past_key_values=cache,
            use_cache=use_cache,
            attentions=attentions,
            places=places,
            is_causal=seen.is_causal,
            **attention_kwargs,
        )
        if isinstance(cache, KVCache) and use_cache:
            given = [width] * rows if real is None else real.sum(1).tolist()
            cache.lengths = [old + new for old, new in zip(cache.lengths, given, strict=True)]
        fields: dict[str, Any] = {
            "last_hidden_state": states[-1],
            "hidden_states": tuple(states) if output_hidden_states else None,
            "attentions": None if attentions is None else tuple(attentions),
            CACHE_FIELD: cache,
        }
        return BaseModelOutputWithPast(**fields)

    def _through_layers(self, hidden: Tensor, every: bool, position_ids: Tensor, **how: Any) -> list[Tensor]:
        """The embedded tokens [B, n, E] and every layer's output, or the last alone; the last one normed."""
        angles = encode_positions(position_ids, self.config.rope_parameters, self.config.head_dim, hidden.dtype)
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, position_ids=position_ids, position_embeddings=angles, **how)
            states = [*states, hidden] if every else [hidden]
        return [*states[:-1], self.norm(hidden)]
