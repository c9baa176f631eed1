"""What a fused attention kernel has to do for a piece of the row, and a plain kernel to read and to test with.

A piece is P independent attention problems laid one behind the other, the varlen segments of FlashAttention: of the
queries [T, N, D] and the keys [U, M, D] every segment has its share. Letters beside those of types.py: N query heads
and M key heads of a whole micro-batch (head n of N reads key head n * M // N).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nld_train.attention.reference import attend_dense


class QKV(NamedTuple):
    """Queries, keys and values, or their gradients. Fused kernels take them tokens first."""

    query: Tensor  # [T, N, D]
    key: Tensor  # [U, M, D]
    value: Tensor  # [U, M, D]


class MergedResult(NamedTuple):
    """What the backward of a piece needs to know of the attention over all keys of all pieces."""

    output: Tensor  # [T, N, D]
    lse: Tensor  # [N, T]
    gradient: Tensor  # [T, N, D], of `output`


@dataclass(frozen=True)
class Window:
    """A sliding window, bottom-right aligned: query i of Q sees key j of K iff

        -left <= j - (K - Q + i) <= right

    which is flash-attn's window_size. None: no bound on that side. Every query sees at least one key.
    """

    left: int | None = None
    right: int | None = None

    def visible_table(self, queries: int, keys: int, device: torch.device | None = None) -> Tensor:
        """The mask of one segment: [queries, keys] bool."""
        ahead = torch.arange(keys, device=device) - (keys - queries + torch.arange(queries, device=device)[:, None])
        seen = torch.ones_like(ahead, dtype=torch.bool)
        if self.left is not None:
            seen &= ahead >= -self.left
        if self.right is not None:
            seen &= ahead <= self.right
        return seen

    def count_pairs(self, queries: int, keys: int) -> int:
        """The visible pairs of one segment."""
        return int(self.visible_table(queries, keys).sum())


CAUSAL = Window(right=0)


@dataclass(frozen=True)
class Segments:
    """How many queries and how many keys each segment of a piece has. Hashable, and known on the host."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    of_documents: bool = False  # packed documents, whose lengths are new in every batch

    def __len__(self) -> int:
        return len(self.queries)

    @cached_property
    def one_fixed_shape(self) -> bool:
        """Whether all segments have one shape, and have it again in the next batch: a kernel may be made for it."""
        return not self.of_documents and len(set(self.queries)) == len(set(self.keys)) == 1

    @cached_property
    def all_square(self) -> bool:
        """Whether every segment has as many keys as queries."""
        return self.queries == self.keys

    def same_shape_groups(self) -> Iterator[tuple[slice, slice, int]]:
        """Neighbouring segments of one shape, in as few groups as there are: (queries, keys, number of segments)."""
        query = key = 0
        for (queries, keys), alike in groupby(zip(self.queries, self.keys, strict=True)):
            count = len(list(alike))
            yield slice(query, query + count * queries), slice(key, key + count * keys), count
            query, key = query + count * queries, key + count * keys


class FusedKernel(Protocol):
    """Computes one piece: query, output and gradient [T, N, D]; key, value [U, M, D]; lse [N, T].

    lse is, for each query, ln(sum over its keys of exp(scale * q k)), in float32, or float64 for float64.
    """

    def forward(self, qkv: QKV, segments: Segments, window: Window, scale: float) -> tuple[Tensor, Tensor]:
        """The output [T, N, D] over this piece's keys alone, and their lse [N, T]."""
        ...

    def backward(self, qkv: QKV, merged: MergedResult, segments: Segments, window: Window, scale: float) -> QKV:
        """This piece's part of the gradients: query [T, N, D]; key, value [U, M, D].

        `merged` spans all keys of all pieces. With its lse, exp(scale * q k - lse) is the weight of a pair in the whole
        softmax, so that the parts of all pieces add up to the exact gradients, as in ring attention.
        """
        ...

    def causal(self, qkv: QKV, segments: Segments, scale: float) -> Tensor:
        """Causal attention with autograd: the output [T, N, D]."""
        ...


class PlainKernel:
    """A kernel in plain torch, dense, for any dtype and device.

    float64 stays float64; anything less is computed in float32 and rounded once.
    """

    def forward(self, qkv: QKV, segments: Segments, window: Window, scale: float) -> tuple[Tensor, Tensor]:
        """The output [T, N, D] over this piece's keys alone, and their lse [N, T]."""
        query, key, value = qkv
        outputs, statistics = [], []
        for queries, keys, count in segments.same_shape_groups():
            q, k, v = _by_segment(count, query[queries], key[keys], value[keys])
            scores = _scores(q, k, window, scale)
            lse = scores.logsumexp(-1)
            output = torch.einsum("pmrqk,pkmd->pqmrd", (scores - lse[..., None]).exp(), v.to(scores.dtype))
            outputs.append(output.reshape(query[queries].shape).to(query.dtype))
            statistics.append(lse.flatten(1, 2).transpose(0, 1).flatten(1))
        return torch.cat(outputs), torch.cat(statistics, 1)

    def backward(self, qkv: QKV, merged: MergedResult, segments: Segments, window: Window, scale: float) -> QKV:
        """This piece's part of the gradients: query [T, N, D]; key, value [U, M, D].

        With P the weights and dP = dO v^T:  dS = P * (dP - sum(dO * O)) * scale,  dq = dS k,  dk = dS^T q,  dv = P^T dO
        [FlashAttention, arXiv 2205.14135, algorithm 4].
        """
        query, key, value = qkv
        d_query, d_key, d_value = (torch.empty_like(x) for x in qkv)
        for queries, keys, count in segments.same_shape_groups():
            # 1. The segment's tensors, heads grouped by the key head that they read.
            k, v = _by_segment(count, key[keys], value[keys])
            scores = _scores(_by_segment(count, query[queries])[0], k, window, scale)
            wide, heads = scores.dtype, key.shape[1]
            d_output, q, o = (
                x.to(wide).unflatten(2, (heads, -1))
                for x in _by_segment(count, merged.gradient[queries], query[queries], merged.output[queries])
            )
            # 2. The weights in the whole softmax, by the merged lse.
            lse = merged.lse[:, queries].to(wide).unflatten(0, (heads, -1)).unflatten(2, (count, -1)).movedim(2, 0)
            weights = (scores - lse[..., None]).exp()
            # 3. The gradient of the scores.
            d_weights = torch.einsum("pqmrd,pkmd->pmrqk", d_output, v.to(wide))
            mean = torch.einsum("pqmrd,pqmrd->pmrq", d_output, o)
            d_scores = weights * (d_weights - mean[..., None]) * scale
            # 4. The gradients of the inputs; a key head sums over the query heads that read it.
            d_query[queries] = torch.einsum("pmrqk,pkmd->pqmrd", d_scores, k.to(wide)).reshape(query[queries].shape)
            d_key[keys] = torch.einsum("pmrqk,pqmrd->pkmd", d_scores, q).flatten(0, 1)
            d_value[keys] = torch.einsum("pmrqk,pqmrd->pkmd", weights, d_output).flatten(0, 1)
        return QKV(d_query, d_key, d_value)

    def causal(self, qkv: QKV, segments: Segments, scale: float) -> Tensor:
        """Causal attention with autograd: the output [T, N, D]."""
        query, key, value = qkv
        outputs = []
        for queries, keys, count in segments.same_shape_groups():
            q, k, v = (x.transpose(1, 2) for x in _by_segment(count, query[queries], key[keys], value[keys]))
            seen = CAUSAL.visible_table(q.shape[2], k.shape[2], query.device)
            outputs.append(attend_dense(q, k, v, seen, scale).transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)


def _by_segment(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """[T, N, D] of `count` segments of one shape -> [count, T / count, N, D]; views."""
    return tuple(x.unflatten(0, (count, -1)) for x in tensors)


def _scores(query: Tensor, key: Tensor, window: Window, scale: float) -> Tensor:
    """scale * q k^T, -inf where not seen, of query [P, Q, N, D] and key [P, K, M, D]: [P, M, N/M, Q, K]."""
    wide = torch.promote_types(query.dtype, torch.float32)
    grouped = query.to(wide).unflatten(2, (key.shape[2], -1))
    scores = torch.einsum("pqmrd,pkmd->pmrqk", grouped, key.to(wide)) * scale
    return scores.masked_fill(~window.visible_table(query.shape[1], key.shape[1], query.device), -torch.inf)
