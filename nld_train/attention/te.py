"""Attention on Transformer Engine: cuDNN's fused kernels, or FlashAttention's where it is installed. NVIDIA GPUs only.

The clean half is a plain causal call of DotProductAttention. For the noisy half there are four ways, one a backend:
    attend                  the pieces of pieces.py, the near ones by the kernel's own window mask
    attend_near_by_flex     the pieces of pieces.py, the near ones by flex_attention
    attend_noisy_by_flex    flex_attention for all of it
    attend_by_score_mod     cuDNN with a mask written into its graph (score_mod.py)
None of them has run on a GPU yet. What is proved is the arithmetic of the pieces, in float64 on the CPU.

Interfaces of Transformer Engine 2.20.2, read in its sources. fused_attn_fwd takes contiguous bshd tensors, bfloat16 or
float16, and returns the output in their dtype and [b, h, s, 1] float32: ln(sum(exp(scale * q k))), maximum included.
fused_attn_bwd takes that and the output back. With the merged ones in their place it gives a piece's part of the
gradients; Transformer Engine's own context parallelism does the same. Each piece's results are rounded once by the
kernel, outputs are merged in float32 and rounded once more, gradients are added up in the tensors' dtype.
"""

import os
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from nld_train.attention import flex, merged, near, score_mod
from nld_train.attention.engine import CAUSAL, Band
from nld_train.dual_stream.context import Cut
from nld_train.dual_stream.layout import Layout
from nld_train.errors import UserError

LAYOUT, FORMAT = "bshd_bshd_bshd", "bshd"
NEXT = "set train.attention=flex"


@dataclass(frozen=True)
class Library:
    """What is used of Transformer Engine."""

    fused: Any  # the module of fused_attn_fwd, fused_attn_bwd and the names of their settings
    attention: Any  # the package of DotProductAttention
    parameters: Any  # the class of what a kernel is asked for by
    dtypes: Any  # torch's to Transformer Engine's


@lru_cache
def library() -> Library:
    """Transformer Engine, imported on first use: it takes seconds, and wants torch to be there before it."""
    from transformer_engine.pytorch import constants  # type: ignore[import-untyped]
    from transformer_engine.pytorch.attention import dot_product_attention  # type: ignore[import-untyped]
    from transformer_engine.pytorch.attention.dot_product_attention import utils  # type: ignore[import-untyped]
    from transformer_engine.pytorch.cpp_extensions import fused_attn  # type: ignore[import-untyped]

    return Library(fused_attn, dot_product_attention, utils.FusedAttentionParams, constants.TE_DType)


class TransformerEngine:
    """engine.Engine on cuDNN by way of Transformer Engine."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, band: Band, scale: float) -> tuple[Tensor, Tensor]:
        output, (stats, *_) = library().fused.fused_attn_fwd(
            True,  # as in training, because without it there are no softmax statistics to merge by
            *_lengths(query, key),
            query,
            key,
            value,
            query.dtype,
            _sub_backend(query, key, band, scale),
            attn_scale=scale,
            qkv_layout=LAYOUT,
            o_format=FORMAT,
            **_mask(band, query, key),
        )
        return output, stats.squeeze(-1)

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        band: Band,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        no_dropout = torch.zeros(2, dtype=torch.int64, device=query.device)  # seed and offset, unused
        d_query, d_key, d_value, *_ = library().fused.fused_attn_bwd(
            *_lengths(query, key),
            query,
            key,
            value,
            output,
            gradient,
            query.dtype,
            [lse.contiguous()[..., None], no_dropout],
            _sub_backend(query, key, band, scale),
            attn_scale=scale,
            qkv_layout=LAYOUT,
            o_format=FORMAT,
            do_format=FORMAT,
            dqkv_layout=LAYOUT,
            deterministic=deterministic(),
            **_mask(band, query, key),
        )
        return d_query, d_key, d_value

    def causal(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        mask = _mask(CAUSAL, query[None], key[None])["attn_mask_type"]
        attention = _dot_product_attention(query.shape[1], key.shape[1], query.shape[2], scale, mask)
        output: Tensor = attention(query[None], key[None], value[None])
        _refuse_unfused()
        return output.view(query.shape)


def _score_mod_half(query: Tensor, key: Tensor, value: Tensor, layout: Layout, cut: Cut, scale: float) -> Tensor:
    """merged.NoisyHalf: query [T, N, D] over key, value [K, M, D]."""
    attention = _dot_product_attention(query.shape[1], key.shape[1], query.shape[2], scale, "no_mask")
    clean_start, outputs = len(key) - layout.length, []
    for part in score_mod.chunks(layout, cut):
        clean = slice(clean_start, clean_start + part.clean)
        keys, values = (torch.cat([x[slice(*part.noisy)], x[clean]])[None] for x in (key, value))
        here = query[slice(*part.queries)]
        tensors = score_mod.mask_tensors(layout, cut, part, query.device)
        output = attention(here[None], keys, values, score_mod=score_mod.hide, score_mod_tensors=tensors)
        outputs.append(output.view(here.shape))
    return torch.cat(outputs)


ENGINE = TransformerEngine()
attend = partial(merged.attend, engine=ENGINE, noisy_half=merged.Merged(ENGINE, near.Windows(ENGINE)))
attend_near_by_flex = partial(merged.attend, engine=ENGINE, noisy_half=merged.Merged(ENGINE, flex.Near()))
attend_noisy_by_flex = partial(merged.attend, engine=ENGINE, noisy_half=flex.noisy_half)
attend_by_score_mod = partial(merged.attend, engine=ENGINE, noisy_half=_score_mod_half)


def deterministic() -> bool:
    """Whether sums have a fixed order, asked as Transformer Engine asks."""
    allowed = os.environ.get("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1") != "0"
    return not allowed or torch.are_deterministic_algorithms_enabled()


def _mask(band: Band, query: Tensor, key: Tensor) -> dict[str, Any]:
    """A band in Transformer Engine's words, for query [P, Q, N, D] and key [P, K, M, D].

    window_size counts keys before and after the level one, -1 is without end; a window needs both ends, or causal.
    """
    queries, keys = query.shape[1], key.shape[1]
    if band.right == 0:
        name = "causal" if queries == keys else "causal_bottom_right"
        return {"attn_mask_type": name, "window_size": (-1 if band.left is None else band.left, 0)}
    assert band.right is None, f"{band}: no piece has such a one"
    window = (-1, -1) if band.left is None else (band.left, queries)
    return {"attn_mask_type": "no_mask", "window_size": window, "bottom_right_diagonal": True}


def _lengths(query: Tensor, key: Tensor) -> tuple[int, int, Tensor, Tensor]:
    queries, keys = query.shape[1], key.shape[1]
    device = query.device
    return queries, keys, _ends(len(query), queries, device), _ends(len(query), keys, device)


@lru_cache(maxsize=64)
def _ends(problems: int, length: int, device: torch.device) -> Tensor:
    """[problems + 1] int32: where problems of equal length start and end."""
    with torch.inference_mode(False):
        return torch.arange(0, (problems + 1) * length, length, dtype=torch.int32, device=device)


def _sub_backend(query: Tensor, key: Tensor, band: Band, scale: float) -> Any:
    """The cuDNN kernel family for a piece. Raises: UserError with Transformer Engine's reason where there is none."""
    words = tuple(sorted(_mask(band, query, key).items()))
    return _ask(tuple(query.shape), tuple(key.shape), query.dtype, scale, deterministic(), words)


@lru_cache(maxsize=64)
def _ask(
    query: tuple[int, ...],
    key: tuple[int, ...],
    dtype: torch.dtype,
    scale: float,
    in_order: bool,
    words: tuple[tuple[str, Any], ...],
) -> Any:
    names = library().fused
    parameters = library().parameters(**question(query, key, dtype, scale, in_order, dict(words)))
    kind, reason = names.tex.get_fused_attn_backend(parameters)
    if names.FusedAttnBackend.cast(kind) == names.FusedAttnBackend.No_Backend:
        piece = f"{query[0]} x {query[1]} queries over {key[1]} keys, {query[2]} heads of {key[2]}, {dict(words)}"
        raise UserError(f"Transformer Engine has no kernel for {piece}: {reason}", "what cuDNN supports", NEXT)
    return names.FusedAttnBackend.cast(kind)


def question(
    query: tuple[int, ...],
    key: tuple[int, ...],
    dtype: torch.dtype,
    scale: float,
    in_order: bool,
    words: dict[str, Any],
) -> dict[str, Any]:
    """What Transformer Engine wants to know of a piece of shapes [P, Q, N, D] and [P, K, M, D], to name its kernels."""
    names, number = library().fused, library().dtypes[dtype]
    left, right = words["window_size"]
    return {
        "deterministic": in_order,
        "attn_mask_type": names.AttnMaskType[words["attn_mask_type"]],
        "window_size_left": left,
        "window_size_right": right,
        "bottom_right_diagonal": words["attn_mask_type"] != "causal",
        "attn_scale": scale,
        **dict.fromkeys(("qkv_dtype", "o_dtype", "do_dtype", "dqkv_dtype"), number),
        **dict.fromkeys(("qkv_layout", "dqkv_layout"), names.QKVLayout[LAYOUT]),
        **dict.fromkeys(("o_format", "do_format"), names.QKVFormat[FORMAT]),
        "batch_size": query[0],
        "num_attn_heads": query[2],
        "num_gqa_groups": key[2],
        "head_dim_qk": query[3],
        "head_dim_v": query[3],
        "max_seqlen_q": query[1],
        "max_seqlen_kv": key[1],
    }


@lru_cache(maxsize=16)
def _dot_product_attention(heads: int, key_heads: int, dim: int, scale: float, mask: str) -> Any:
    return library().attention.DotProductAttention(
        heads, dim, key_heads, attention_dropout=0.0, qkv_format=FORMAT, attn_mask_type=mask, softmax_scale=scale
    )


def _refuse_unfused() -> None:
    """Transformer Engine falls back to plain torch in silence where no fused kernel fits: said here instead."""
    chosen = library().attention._attention_backends
    if chosen["use_unfused_attention"]:
        raise UserError(
            f"Transformer Engine has no fused kernel for the clean half: {chosen['attention_params']}",
            "what cuDNN or an installed flash-attn supports",
            NEXT,
        )
