"""What a fused attention kernel has to do for a piece of the row, and a plain one to read and to test with.

A piece is P problems of one shape: Q queries over K keys. Letters beside those of types.py: N query heads and M key
heads of all rows of a micro-batch (B * H and B * G; head n of N reads head n * M // N of M).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nld_train.attention.reference import attend


@dataclass(frozen=True)
class Band:
    """Who sees whom in a piece: query i of Q, level with key K - Q + i (the last ones are level), sees the keys from
    `left` before that one to `right` after it. None: without end. Every query sees one key or more."""

    left: int | None = None
    right: int | None = None

    def table(self, queries: int, keys: int, device: torch.device | None = None) -> Tensor:
        """[queries, keys] bool."""
        ahead = torch.arange(keys, device=device) - (keys - queries + torch.arange(queries, device=device)[:, None])
        seen = torch.ones_like(ahead, dtype=torch.bool)
        if self.left is not None:
            seen &= ahead >= -self.left
        if self.right is not None:
            seen &= ahead <= self.right
        return seen

    def pairs(self, queries: int, keys: int) -> int:
        return int(self.table(queries, keys).sum())


CAUSAL = Band(right=0)


class Engine(Protocol):
    """Computes pieces. query, output and gradient [P, Q, N, D]; key, value [P, K, M, D]; lse [P, N, Q]: of each query,
    ln(sum over its keys of exp(scale * q k)), in float32, or float64 for float64."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, band: Band, scale: float) -> tuple[Tensor, Tensor]:
        """The output over this piece's keys alone, and their lse."""
        ...

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
        """This piece's part of the gradients of query, key and value.

        `output` and `lse` are those over all keys of all pieces: with them exp(scale * q k - lse) is a pair's weight in
        the whole softmax, so the parts of all pieces add up to the exact gradients, as in ring attention.
        """
        ...

    def causal(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Causal attention of one problem, with autograd: query [Q, N, D]; key, value [K, M, D]. Returns: [Q, N, D]."""
        ...


class PlainEngine:
    """The arithmetic of an engine in plain torch, dense; any dtype and device. float64 stays float64, anything less is
    computed in float32 and rounded once."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, band: Band, scale: float) -> tuple[Tensor, Tensor]:
        scores = self._scores(query, key, band, scale)
        lse = scores.logsumexp(-1)
        output = torch.einsum("pmrqk,pkmd->pqmrd", (scores - lse[..., None]).exp(), value.to(scores.dtype))
        return output.reshape(query.shape).to(query.dtype), lse.flatten(1, 2)

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
        scores = self._scores(query, key, band, scale)
        wide, heads = scores.dtype, key.shape[2]
        grouped = [x.to(wide).unflatten(2, (heads, -1)) for x in (gradient, query, output)]
        d_output, q, o = grouped
        k, v = key.to(wide), value.to(wide)
        weights = (scores - lse.to(wide).unflatten(1, (heads, -1))[..., None]).exp()
        d_weights = torch.einsum("pqmrd,pkmd->pmrqk", d_output, v)
        mean = torch.einsum("pqmrd,pqmrd->pmrq", d_output, o)
        d_scores = weights * (d_weights - mean[..., None]) * scale
        d_query = torch.einsum("pmrqk,pkmd->pqmrd", d_scores, k).reshape(query.shape)
        d_key = torch.einsum("pmrqk,pqmrd->pkmd", d_scores, q)
        d_value = torch.einsum("pmrqk,pqmrd->pkmd", weights, d_output)
        return d_query.to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype)

    def causal(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        seen = CAUSAL.table(len(query), len(key), query.device)
        query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
        return attend(query, key, value, seen, scale)[0].transpose(0, 1)

    @staticmethod
    def _scores(query: Tensor, key: Tensor, band: Band, scale: float) -> Tensor:
        """scale * q k^T, -inf where not seen: [P, M, N/M, Q, K]."""
        wide = torch.promote_types(query.dtype, torch.float32)
        grouped = query.to(wide).unflatten(2, (key.shape[2], -1))
        scores = torch.einsum("pqmrd,pkmd->pmrqk", grouped, key.to(wide)) * scale
        return scores.masked_fill(~band.table(query.shape[1], key.shape[1], query.device), -torch.inf)
