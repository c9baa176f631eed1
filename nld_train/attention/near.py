"""Attention of noisy tokens over what is near: the part of the row that the shifted triangles leave (pieces.py)."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nld_train.attention.engine import Engine
from nld_train.attention.pieces import put, taken, windows
from nld_train.dual_stream.sight import Sight


class Near(Protocol):
    """Attention of the noisy tokens over what the shifted triangles leave: the rest of the block before, and their own.

    query, output, gradient [T, N, D] of the rank's T noisy tokens; key, value [K, M, D]; lse [N, T].
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, sight: Sight, scale: float
    ) -> tuple[Tensor, Tensor]: ...

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        sight: Sight,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True)
class Windows:
    """`Near` by the engine's own window mask, block by block."""

    engine: Engine

    def forward(self, query: Tensor, key: Tensor, value: Tensor, sight: Sight, scale: float) -> tuple[Tensor, Tensor]:
        outputs, statistics = [], []
        for piece in windows(sight, query.device):
            here, keys, values = taken(query, piece.queries), taken(key, piece.keys), taken(value, piece.keys)
            output, lse = self.engine.forward(here, keys, values, piece.problems, piece.band, scale)
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
        sight: Sight,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_queries, d_key, d_value = [], torch.zeros_like(key), torch.zeros_like(value)
        for piece in windows(sight, query.device):
            d_output, here, out = (taken(x, piece.queries) for x in (gradient, query, output))
            keys, values, stats = taken(key, piece.keys), taken(value, piece.keys), taken(lse, piece.queries, 1)
            dq, dk, dv = self.engine.backward(
                d_output, here, keys, values, out, stats, piece.problems, piece.band, scale
            )
            d_queries.append(dq)
            # No two problems of no two pieces share a key, so nothing is added up.
            put(d_key, piece.keys, dk)
            put(d_value, piece.keys, dv)
        return torch.cat(d_queries), d_key, d_value
