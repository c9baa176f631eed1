"""Attention on Transformer Engine: cuDNN's fused kernels, or FlashAttention's where it is installed. NVIDIA GPUs only.

The clean half is a plain causal call of DotProductAttention. For the noisy half there are four ways, one a backend:
    attend                  the pieces of pieces.py, the near ones by the kernel's own window mask
    attend_near_by_flex     the pieces of pieces.py, the near ones by flex_attention
    attend_noisy_by_flex    flex_attention for all of it
    attend_by_score_mod     cuDNN with a mask written into its graph (score_mod.py)
None of them has run on a GPU yet. What is proved is the arithmetic of the pieces, in float64 on the CPU.

Interfaces of Transformer Engine 2.20.2, read in its sources. fused_attn_fwd takes contiguous bshd tensors, or thd ones
where problems differ in length (packed documents), bfloat16 or float16, and returns the output in their dtype and, as
[b, h, s, 1] or [t, h, 1] float32, ln(sum(exp(scale * q k))), maximum included. fused_attn_bwd takes that and the output
back. With the merged ones in their place it gives a piece's part of the gradients; Transformer Engine's own context
parallelism does the same. Each piece's results are rounded once by the kernel, outputs are merged in float32 and
rounded once more, gradients are added up in the tensors' dtype.
"""

from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from nld_train.attention import flex
from nld_train.attention.fused import local, lse_merge, score_mod, te_call
from nld_train.attention.fused.decomposition import refuse_packed_documents
from nld_train.attention.fused.kernel import CAUSAL, Segments, Window
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.errors import UserError


class TransformerEngineKernel:
    """engine.Engine on cuDNN by way of Transformer Engine."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, problems: Segments, band: Window, scale: float
    ) -> tuple[Tensor, Tensor]:
        call = te_call.TransformerEngineCall.of(query, key, problems, band, scale)
        output, (stats, *_) = te_call.load_transformer_engine().fused.fused_attn_fwd(
            True,  # as in training, because without it there are no softmax statistics to merge by
            *call.lengths(),
            *(call.shaped(x) for x in (query, key, value)),
            query.dtype,
            call.sub_backend(),
            o_format=call.format,
            **call.words(),
        )
        return output.view(query.shape), call.statistics(stats)

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        problems: Segments,
        band: Window,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        call = te_call.TransformerEngineCall.of(query, key, problems, band, scale)
        no_dropout = torch.zeros(2, dtype=torch.int64, device=query.device)  # seed and offset, unused
        parts = te_call.load_transformer_engine().fused.fused_attn_bwd(
            *call.lengths(),
            *(call.shaped(x) for x in (query, key, value, output, gradient)),
            query.dtype,
            [call.as_statistics(lse), no_dropout],
            call.sub_backend(),
            o_format=call.format,
            do_format=call.format,
            dqkv_layout=call.layout,
            deterministic=te_call.must_be_deterministic(),
            **call.words(),
        )
        d_query, d_key, d_value = (part.view(x.shape) for part, x in zip(parts, (query, key, value), strict=False))
        return d_query, d_key, d_value

    def causal(self, query: Tensor, key: Tensor, value: Tensor, problems: Segments, scale: float) -> Tensor:
        call = te_call.TransformerEngineCall.of(query, key, problems, CAUSAL, scale)
        attention = _dot_product_attention(
            query.shape[1], key.shape[1], query.shape[2], scale, call.mask()["attn_mask_type"], call.format
        )
        shaped = (call.shaped(x) for x in (query, key, value))
        output: Tensor = attention(*shaped, **call.ragged_lengths())
        _refuse_unfused()
        return output.view(query.shape)


def _score_mod_half(query: Tensor, key: Tensor, value: Tensor, sight: MaskSpec, scale: float) -> Tensor:
    """merged.NoisyHalf: query [T, N, D] over key, value [K, M, D]."""
    refuse_packed_documents("te+mod", sight.documents is not None, sight.cut.ranks)
    layout, cut = sight.layout, sight.cut
    attention = _dot_product_attention(query.shape[1], key.shape[1], query.shape[2], scale, "no_mask", te_call.EQUAL)
    clean_start, outputs = len(key) - layout.length, []
    for part in score_mod.noisy_chunks(layout, cut):
        clean = slice(clean_start, clean_start + part.clean)
        keys, values = (torch.cat([x[slice(*part.noisy)], x[clean]])[None] for x in (key, value))
        here = query[slice(*part.queries)]
        tensors = score_mod.interval_tensors(layout, cut, part, query.device)
        output = attention(here[None], keys, values, score_mod=score_mod.hide_unseen_scores, score_mod_tensors=tensors)
        outputs.append(output.view(here.shape))
    return torch.cat(outputs)


KERNEL = TransformerEngineKernel()
attend_te = partial(
    lse_merge.attend_fused,
    engine=KERNEL,
    noisy_half=lse_merge.MergedNoisyAttention(KERNEL, local.WindowedLocalAttention(KERNEL)),
)
attend_te_local_flex = partial(
    lse_merge.attend_fused, engine=KERNEL, noisy_half=lse_merge.MergedNoisyAttention(KERNEL, flex.FlexLocalAttention())
)
attend_te_noisy_flex = partial(lse_merge.attend_fused, engine=KERNEL, noisy_half=flex.attend_noisy_flex)
attend_te_score_mod = partial(lse_merge.attend_fused, engine=KERNEL, noisy_half=_score_mod_half)


@lru_cache(maxsize=16)
def _dot_product_attention(heads: int, key_heads: int, dim: int, scale: float, mask: str, layout: str) -> Any:
    return te_call.load_transformer_engine().attention.DotProductAttention(
        heads, dim, key_heads, attention_dropout=0.0, qkv_format=layout, attn_mask_type=mask, softmax_scale=scale
    )


def _refuse_unfused() -> None:
    """Transformer Engine falls back to plain torch in silence where no fused kernel fits: said here instead."""
    chosen = te_call.load_transformer_engine().attention._attention_backends
    if chosen["use_unfused_attention"]:
        raise UserError(
            f"Transformer Engine has no fused kernel for the clean half: {chosen['attention_params']}",
            "what cuDNN or an installed flash-attn supports",
            te_call.NEXT,
        )
