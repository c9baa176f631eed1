"""Causal attention with autograd, from the two halves of any fused kernel."""

from typing import Any

import torch
from torch import Tensor

from nld_train.attention.fused.kernel import CAUSAL, QKV, FusedKernel, MergedResult, Segments


def attend_causal_segments(kernel: FusedKernel, qkv: QKV, segments: Segments, scale: float) -> Tensor:
    """Causal attention within segments of any lengths: query [T, N, D]; key, value [U, M, D]. Returns: [T, N, D]."""
    output: Tensor = _CausalSegments.apply(*qkv, kernel, segments, scale)
    return output


class _CausalSegments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, kernel: FusedKernel, segments: Segments, scale: float
    ) -> Tensor:
        output, lse = kernel.forward(QKV(query, key, value), segments, CAUSAL, scale)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.settings = (kernel, segments, scale)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        kernel, segments, scale = ctx.settings
        merged = MergedResult(output, lse, gradient.contiguous())
        return *kernel.backward(QKV(query, key, value), merged, segments, CAUSAL, scale), None, None, None
