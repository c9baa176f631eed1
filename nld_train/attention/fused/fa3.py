"""Attention on FlashAttention 3, which is built from source for Hopper GPUs: the pieces of decomposition.py, each as
segments of any lengths.

The interface is the one that Transformer Engine 2.20.2 calls, read in its context parallelism (`get_fa_args` and the
calls around it): `_flash_attn_forward` and `_flash_attn_backward` of the module flash_attn_interface, tokens first,
with int32 ends of segments. The forward returns the output and ln(sum(exp(scale * q k))) as [N, T] float32. The
backward takes the merged output and lse in place of a piece's own, as Transformer Engine's ring attention gives them.
Nothing of it has run on a GPU; what is proved is the arithmetic, and that the calls are Transformer Engine's.
"""

from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from nld_train.attention.fused import local, lse_merge
from nld_train.attention.fused.kernel import QKV, MergedResult, Segments, Window
from nld_train.attention.fused.kernel_causal import attend_causal_segments
from nld_train.attention.fused.te_call import must_be_deterministic, segment_ends

MODULE = "flash_attn_interface"
UNBOUNDED = -1
NOT_USED_BEFORE = (None,) * 4  # new keys and values, a second query, an output to fill
NOT_USED_BEHIND = (None,) * 9  # pages, batch indices, paddings at the left, rotary tables, scales of FP8


@lru_cache
def load_flash_attention_3() -> Any:
    """The module, imported on first use: it is there only where FlashAttention 3 was built."""
    return import_module(MODULE)


class FlashAttention3Kernel:
    """`kernel.FusedKernel` on FlashAttention 3."""

    def forward(self, qkv: QKV, segments: Segments, window: Window, scale: float) -> tuple[Tensor, Tensor]:
        """query [T, N, D]; key, value [U, M, D]. Returns: output [T, N, D], lse [N, T]."""
        ends, longest = _ends_and_longest(segments, qkv.query.device)
        output, lse, *_ = load_flash_attention_3()._flash_attn_forward(
            *(x.contiguous() for x in qkv),
            *NOT_USED_BEFORE,
            *ends,
            None,  # ends of new keys
            *(None, None),  # segments are as long as their ends say
            *longest,
            *NOT_USED_BEHIND,
            softmax_scale=scale,
            causal=_is_causal(window),
            **_bounds(window),
        )
        return output, lse

    def backward(self, qkv: QKV, merged: MergedResult, segments: Segments, window: Window, scale: float) -> QKV:
        """The piece's part of the gradients: query [T, N, D]; key, value [U, M, D]."""
        ends, longest = _ends_and_longest(segments, qkv.query.device)
        inputs = QKV(*(x.contiguous() for x in qkv))
        gradients = QKV(*(torch.empty_like(x) for x in inputs))
        load_flash_attention_3()._flash_attn_backward(
            merged.gradient.contiguous(),
            *inputs,
            merged.output.contiguous(),
            merged.lse.contiguous(),
            *ends,
            *(None, None),
            *longest,
            *gradients,
            softmax_scale=scale,
            is_causal=_is_causal(window),
            **_bounds(window),
            deterministic=must_be_deterministic(),
        )
        return gradients

    def causal(self, qkv: QKV, segments: Segments, scale: float) -> Tensor:
        """Causal attention with autograd: query [T, N, D]; key, value [U, M, D]. Returns: [T, N, D]."""
        return attend_causal_segments(self, qkv, segments, scale)


def _ends_and_longest(segments: Segments, device: torch.device) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """Where the segments of queries and of keys end, [P + 1] int32 each, and the most that one of them has."""
    ends = segment_ends(segments.queries, device), segment_ends(segments.keys, device)
    return ends, (max(segments.queries), max(segments.keys))


def _is_causal(window: Window) -> bool:
    return window.left is None and window.right == 0


def _bounds(window: Window) -> dict[str, int]:
    """flash-attn's window, bottom-right aligned as `Window` is."""
    left, right = (UNBOUNDED if side is None else side for side in (window.left, window.right))
    return {"window_size_left": left, "window_size_right": right}


KERNEL = FlashAttention3Kernel()
attend_fa3 = lse_merge.FusedAttention(
    KERNEL, lse_merge.MergedNoisyAttention(KERNEL, local.WindowedLocalAttention(KERNEL))
)
