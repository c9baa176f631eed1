"""The network written out in plain torch from its formulas: what the Megatron model is compared with."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from nld_train.attention.reference import attend_reference
from nld_train.config import ModelConfig, RopeConfig
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout, rotary_positions

Weights = dict[str, Tensor]


def yarn_frequencies(rope: RopeConfig, dim: int) -> Tensor:
    """YaRN (arXiv 2309.00071, NTK-by-parts): [D / 2] radians per position."""
    plain = rope.theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)

    def dimension_turning(turns: float) -> float:
        return dim * math.log(rope.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = max(math.floor(dimension_turning(rope.beta_fast)), 0)
    high = min(math.ceil(dimension_turning(rope.beta_slow)), dim - 1)
    stretched = ((torch.arange(dim // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return plain * (1 - stretched) + plain / rope.factor * stretched


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """x [B, H, S, D], angles [B or 1, 1, S, D / 2]."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def attention(
    x: Tensor, weights: Weights, prefix: str, model: ModelConfig, layout: RowLayout, documents: Tensor | None
) -> Tensor:
    per_group = model.heads // model.kv_heads
    groups = (x @ weights[f"{prefix}.linear_qkv.weight"].T).unflatten(
        -1, (model.kv_heads, per_group + 2, model.head_dim)
    )
    query, key, value = groups.split([per_group, 1, 1], dim=-2)
    query, key, value = (part.flatten(-3, -2).transpose(1, 2) for part in (query, key, value))
    place = rotary_positions(layout, documents).view(-1, 1, layout.size)
    angles = place[..., None] * yarn_frequencies(model.rope, model.head_dim)
    wraps = (place // model.rope.original_max_position).double()
    query = rotate(query, angles) * (1 + model.rope.query_scale_beta * torch.log1p(wraps))[..., None]
    spec = MaskSpec.from_documents(layout, documents)
    seen = attend_reference(query, rotate(key, angles), value, spec, model.head_dim**-0.5)
    return seen.transpose(1, 2).flatten(2) @ weights[f"{prefix}.linear_proj.weight"].T


def logits(
    ids: Tensor, weights: Weights, model: ModelConfig, layout: RowLayout, documents: Tensor | None = None
) -> Tensor:
    """ids [B, S]; documents [B, L] or None. Returns: [B, S, V] float64."""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    x = weights["embedding.word_embeddings.weight"][ids]
    for number in range(model.layers):
        layer = f"decoder.layers.{number}"
        normed = rms_norm(x, weights[f"{layer}.input_layernorm.weight"], model.norm_eps)
        x = x + attention(normed, weights, f"{layer}.self_attention", model, layout, documents)
        normed = rms_norm(x, weights[f"{layer}.pre_mlp_layernorm.weight"], model.norm_eps)
        gate, up = (normed @ weights[f"{layer}.mlp.linear_fc1.weight"].T).chunk(2, -1)
        x = x + (functional.silu(gate) * up) @ weights[f"{layer}.mlp.linear_fc2.weight"].T
    return rms_norm(x, weights["decoder.final_layernorm.weight"], model.norm_eps) @ weights["output_layer.weight"].T
