"""Local attention of the noisy tokens: over the part of the row that the shifted triangles leave (decomposition.py)."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nld_train.attention.fused.decomposition import put_at, window_pieces
from nld_train.attention.fused.kernel import QKV, FusedKernel, MergedResult
from nld_train.dual_stream.mask_spec import MaskSpec


class LocalAttention(Protocol):
    """Attention of the noisy tokens over what the shifted triangles leave: the rest of the block before, and their own.

    query, output and gradient [T, N, D] of the rank's T noisy tokens; key, value [K, M, D] of all its keys; lse [N, T].
    """

    def forward(self, qkv: QKV, spec: MaskSpec, scale: float) -> tuple[Tensor, Tensor]:
        """The output [T, N, D] over the local keys alone, and their lse [N, T]."""
        ...

    def backward(self, qkv: QKV, merged: MergedResult, spec: MaskSpec, scale: float) -> QKV:
        """The local part of the gradients: query [T, N, D]; key, value [K, M, D], 0 where no local pair has a key."""
        ...


@dataclass(frozen=True)
class WindowedLocalAttention:
    """`LocalAttention` by the kernel's own sliding window, block by block."""

    kernel: FusedKernel

    def forward(self, qkv: QKV, spec: MaskSpec, scale: float) -> tuple[Tensor, Tensor]:
        """The output [T, N, D] over the local keys alone, and their lse [N, T]."""
        outputs, statistics = [], []
        for piece in window_pieces(spec, qkv.query.device):
            output, lse = piece.forward(self.kernel, qkv, scale)
            outputs.append(output)
            statistics.append(lse)
        return torch.cat(outputs), torch.cat(statistics, 1)

    def backward(self, qkv: QKV, merged: MergedResult, spec: MaskSpec, scale: float) -> QKV:
        """The local part of the gradients: query [T, N, D]; key, value [K, M, D], 0 where no local pair has a key."""
        d_queries, d_key, d_value = [], torch.zeros_like(qkv.key), torch.zeros_like(qkv.value)
        for piece in window_pieces(spec, qkv.query.device):
            part = piece.backward(self.kernel, qkv, merged, scale)
            d_queries.append(part.query)
            # No two segments share a key, in one piece or in two, so nothing has to be added up.
            put_at(d_key, piece.keys, part.key)
            put_at(d_value, piece.keys, part.value)
        return QKV(torch.cat(d_queries), d_key, d_value)
