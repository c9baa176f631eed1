"""Attention on Transformer Engine: cuDNN's fused kernels, or FlashAttention's where it is installed. NVIDIA GPUs only.

The clean half is a plain causal call of DotProductAttention, or, of packed documents, of the kernels that the pieces
are computed with. The noisy half has four ways, one a backend:
    attend_te               the pieces of decomposition.py, the local ones by the kernel's own window mask
    attend_te_local_flex    the pieces of decomposition.py, the local ones by flex_attention
    attend_te_noisy_flex    flex_attention for all of it
    attend_te_score_mod     cuDNN with a mask written into its graph (score_mod.py)
None of them has run on a GPU yet. What is proved is the arithmetic of the pieces, in float64 on the CPU.

The interfaces are those of Transformer Engine 2.20.2, read in its sources. fused_attn_fwd takes contiguous bshd
tensors, or thd tensors where segments differ in length (packed documents), in bfloat16 or float16. It returns the
output in their dtype and, as [b, h, s, 1] or [t, h, 1] float32, ln(sum(exp(scale * q k))), maximum included.
fused_attn_bwd takes these statistics and the output back; given the merged ones in their place, it computes a piece's
part of the gradients, as Transformer Engine's own context parallelism does. The kernel rounds each piece's results
once, the outputs are merged in float32 and rounded once more, and gradients are added up in the tensors' dtype.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nld_train.attention import flex
from nld_train.attention.fused import local, lse_merge, score_mod, te_call
from nld_train.attention.fused.kernel import CAUSAL, QKV, MergedResult, Segments, Window
from nld_train.attention.fused.kernel_causal import attend_causal_segments
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.errors import UserError


class TransformerEngineKernel:
    """`kernel.FusedKernel` on cuDNN by way of Transformer Engine."""

    def forward(self, qkv: QKV, segments: Segments, window: Window, scale: float) -> tuple[Tensor, Tensor]:
        """query [T, N, D]; key, value [U, M, D]. Returns: output [T, N, D], lse [N, T]."""
        call = te_call.TransformerEngineCall.of_piece(qkv, segments, window, scale)
        output, (stats, *_) = te_call.load_transformer_engine().fused.fused_attn_fwd(
            True,  # as in training, because without it there are no softmax statistics to merge by
            *call.lengths(),
            *(call.to_kernel_layout(x) for x in qkv),
            qkv.query.dtype,
            call.sub_backend(),
            o_format=call.format,
            **call.kernel_settings(),
        )
        return output.view(qkv.query.shape), call.from_statistics(stats)

    def backward(self, qkv: QKV, merged: MergedResult, segments: Segments, window: Window, scale: float) -> QKV:
        """The piece's part of the gradients: query [T, N, D]; key, value [U, M, D]."""
        call = te_call.TransformerEngineCall.of_piece(qkv, segments, window, scale)
        no_dropout = torch.zeros(2, dtype=torch.int64, device=qkv.query.device)  # seed and offset, unused
        parts = te_call.load_transformer_engine().fused.fused_attn_bwd(
            *call.lengths(),
            *(call.to_kernel_layout(x) for x in (*qkv, merged.output, merged.gradient)),
            qkv.query.dtype,
            [call.to_statistics(merged.lse), no_dropout],
            call.sub_backend(),
            o_format=call.format,
            do_format=call.format,
            dqkv_layout=call.layout,
            deterministic=te_call.must_be_deterministic(),
            **call.kernel_settings(),
        )
        # Not strict: behind the three come the gradients of a bias and of softmax offsets, which there are none of.
        return QKV(*(part.view(x.shape) for part, x in zip(parts, qkv, strict=False)))

    def causal(self, qkv: QKV, segments: Segments, scale: float) -> Tensor:
        """Causal attention with autograd: query [T, N, D]; key, value [U, M, D]. Returns: [T, N, D].

        Packed documents do not go through DotProductAttention, which would choose a kernel anew whenever their lengths
        differ from those of the call before.
        """
        if not segments.one_fixed_shape:
            return attend_causal_segments(self, qkv, segments, scale)
        call = te_call.TransformerEngineCall.of_piece(qkv, segments, CAUSAL, scale)
        attention = _dot_product_attention(call.heads, scale, call.mask()["attn_mask_type"], call.format)
        output: Tensor = attention(*(call.to_kernel_layout(x) for x in qkv))
        _refuse_unfused()
        return output.view(qkv.query.shape)


def _attend_noisy_score_mod(qkv: QKV, spec: MaskSpec, scale: float) -> Tensor:
    """`lse_merge.NoisyAttention`: query [T, N, D] over key, value [K, M, D]. Returns: [T, N, D]."""
    assert not spec.packed, f"{spec}: backends.refuse_packed_documents lets no packed rows come here"
    query, key, value = qkv
    heads = (query.shape[1], *key.shape[1:])
    attention = _dot_product_attention(heads, scale, "no_mask", te_call.EQUAL)
    clean_start, outputs = len(key) - spec.layout.length, []
    for chunk in score_mod.noisy_chunks(spec):
        clean = slice(clean_start, clean_start + chunk.clean)
        keys, values = (torch.cat([x[slice(*chunk.noisy)], x[clean]])[None] for x in (key, value))
        here = query[slice(*chunk.queries)]
        tensors = score_mod.interval_tensors(spec, chunk, query.device)
        output = attention(here[None], keys, values, score_mod=score_mod.hide_unseen_scores, score_mod_tensors=tensors)
        outputs.append(output.view(here.shape))
    return torch.cat(outputs)


KERNEL = TransformerEngineKernel()
_BY_WINDOW = lse_merge.MergedNoisyAttention(KERNEL, local.WindowedLocalAttention(KERNEL))
_BY_FLEX = lse_merge.MergedNoisyAttention(KERNEL, flex.FlexLocalAttention())
attend_te = lse_merge.FusedAttention(KERNEL, _BY_WINDOW)
attend_te_local_flex = lse_merge.FusedAttention(KERNEL, _BY_FLEX)
attend_te_noisy_flex = lse_merge.FusedAttention(KERNEL, flex.attend_noisy_flex)
attend_te_score_mod = lse_merge.FusedAttention(KERNEL, _attend_noisy_score_mod)


@lru_cache(maxsize=16)
def _dot_product_attention(heads: tuple[int, int, int], scale: float, mask: str, layout: str) -> Any:
    """Transformer Engine's module for N query heads, M key heads of D = `heads`."""
    query_heads, key_heads, dim = heads
    return te_call.load_transformer_engine().attention.DotProductAttention(
        query_heads, dim, key_heads, attention_dropout=0.0, qkv_format=layout, attn_mask_type=mask, softmax_scale=scale
    )


def _refuse_unfused() -> None:
    """Transformer Engine falls back to plain torch in silence where no fused kernel fits; this says so instead."""
    chosen = te_call.load_transformer_engine().attention._attention_backends
    if chosen["use_unfused_attention"]:
        raise UserError(
            f"Transformer Engine has no fused kernel for the clean half: {chosen['attention_params']}",
            "what cuDNN or an installed flash-attn supports",
            te_call.NEXT,
        )
