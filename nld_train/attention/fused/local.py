"""Attention of noisy tokens over what is near: the part of the row that the shifted triangles leave (pieces.py)."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nld_train.attention.fused.decomposition import put_at, window_pieces
from nld_train.attention.fused.kernel import FusedKernel
from nld_train.dual_stream.mask_spec import MaskSpec


class LocalAttention(Protocol):
    """Attention of the noisy tokens over what the shifted triangles leave: the rest of the block before, and their own.

    query, output, gradient [T, N, D] of the rank's T noisy tokens; key, value [K, M, D]; lse [N, T].
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, sight: MaskSpec, scale: float
    ) -> tuple[Tensor, Tensor]: ...

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        sight: MaskSpec,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True)
class WindowedLocalAttention:
    """`Near` by the engine's own window mask, block by block."""

    engine: FusedKernel

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, sight: MaskSpec, scale: float
    ) -> tuple[Tensor, Tensor]:
        outputs, statistics = [], []
        for piece in window_pieces(sight, query.device):
            output, lse = piece.forward(self.engine, query, key, value, scale)
            outputs.append(output)
            statistics.append(lse)
        return torch.cat(outputs), torch.cat(statistics, 1)

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        sight: MaskSpec,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_queries, d_key, d_value = [], torch.zeros_like(key), torch.zeros_like(value)
        for piece in window_pieces(sight, query.device):
            dq, dk, dv = piece.backward(self.engine, gradient, query, key, value, output, lse, scale)
            d_queries.append(dq)
            # No two problems of no two pieces share a key, so nothing is added up.
            put_at(d_key, piece.keys, dk)
            put_at(d_value, piece.keys, dv)
        return torch.cat(d_queries), d_key, d_value
