"""What a fused attention kernel has to do for a piece of the row, and a plain one to read and to test with.

A piece is P problems, one behind the other: queries [T, N, D] and keys [U, M, D], of which every problem has its share.
Letters beside those of types.py: N query heads and M key heads of a micro-batch (head n of N reads head n * M // N).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from nld_train.attention.reference import attend_dense


@dataclass(frozen=True)
class Window:
    """Who sees whom in a problem: query i of Q, level with key K - Q + i (the last ones are level), sees the keys from
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


CAUSAL = Window(right=0)


@dataclass(frozen=True)
class Segments:
    """How many queries and how many keys each problem of a piece has. Hashable, and known on the host."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.queries)

    @cached_property
    def equal(self) -> bool:
        """Whether they are all of one shape."""
        return len(set(self.queries)) == len(set(self.keys)) == 1

    @cached_property
    def square(self) -> bool:
        """Whether each has as many keys as queries."""
        return self.queries == self.keys

    def groups(self) -> Iterator[tuple[slice, slice, int]]:
        """(queries, keys, count): neighbouring problems of one shape, as few groups as there are."""
        query = key = 0
        for (queries, keys), alike in groupby(zip(self.queries, self.keys, strict=True)):
            count = len(list(alike))
            yield slice(query, query + count * queries), slice(key, key + count * keys), count
            query, key = query + count * queries, key + count * keys


class FusedKernel(Protocol):
    """Computes pieces. query, output and gradient [T, N, D]; key, value [U, M, D]; lse [N, T]: of each query,
    ln(sum over its keys of exp(scale * q k)), in float32, or float64 for float64."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, problems: Segments, band: Window, scale: float
    ) -> tuple[Tensor, Tensor]:
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
        problems: Segments,
        band: Window,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """This piece's part of the gradients of query, key and value.

        `output` and `lse` are those over all keys of all pieces: with them exp(scale * q k - lse) is a pair's weight in
        the whole softmax, so the parts of all pieces add up to the exact gradients, as in ring attention.
        """
        ...

    def causal(self, query: Tensor, key: Tensor, value: Tensor, problems: Segments, scale: float) -> Tensor:
        """Causal attention with autograd: the output [T, N, D]."""
        ...


class PlainKernel:
    """The arithmetic of an engine in plain torch, dense; any dtype and device. float64 stays float64, anything less is
    computed in float32 and rounded once."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, problems: Segments, band: Window, scale: float
    ) -> tuple[Tensor, Tensor]:
        outputs, statistics = [], []
        for queries, keys, count in problems.groups():
            q, k, v = _each(count, query[queries], key[keys], value[keys])
            scores = _scores(q, k, band, scale)
            lse = scores.logsumexp(-1)
            output = torch.einsum("pmrqk,pkmd->pqmrd", (scores - lse[..., None]).exp(), v.to(scores.dtype))
            outputs.append(output.reshape(query[queries].shape).to(query.dtype))
            statistics.append(lse.flatten(1, 2).transpose(0, 1).flatten(1))
        return torch.cat(outputs), torch.cat(statistics, 1)

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
        d_query, d_key, d_value = (torch.empty_like(x) for x in (query, key, value))
        for queries, keys, count in problems.groups():
            k, v = _each(count, key[keys], value[keys])
            scores = _scores(_each(count, query[queries])[0], k, band, scale)
            wide, heads = scores.dtype, key.shape[1]
            d_output, q, o = (
                x.to(wide).unflatten(2, (heads, -1))
                for x in _each(count, gradient[queries], query[queries], output[queries])
            )
            stats = lse[:, queries].to(wide).unflatten(0, (heads, -1)).unflatten(2, (count, -1)).movedim(2, 0)
            weights = (scores - stats[..., None]).exp()
            d_weights = torch.einsum("pqmrd,pkmd->pmrqk", d_output, v.to(wide))
            mean = torch.einsum("pqmrd,pqmrd->pmrq", d_output, o)
            d_scores = weights * (d_weights - mean[..., None]) * scale
            d_query[queries] = torch.einsum("pmrqk,pkmd->pqmrd", d_scores, k.to(wide)).reshape(query[queries].shape)
            d_key[keys] = torch.einsum("pmrqk,pqmrd->pkmd", d_scores, q).flatten(0, 1)
            d_value[keys] = torch.einsum("pmrqk,pqmrd->pkmd", weights, d_output).flatten(0, 1)
        return d_query, d_key, d_value

    def causal(self, query: Tensor, key: Tensor, value: Tensor, problems: Segments, scale: float) -> Tensor:
        outputs = []
        for queries, keys, count in problems.groups():
            q, k, v = (x.transpose(1, 2) for x in _each(count, query[queries], key[keys], value[keys]))
            seen = CAUSAL.table(q.shape[2], k.shape[2], query.device)
            outputs.append(attend_dense(q, k, v, seen, scale).transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)


def _each(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """[T, N, D] of `count` problems of one shape -> [count, T / count, N, D]; views."""
    return tuple(x.unflatten(0, (count, -1)) for x in tensors)


def _scores(query: Tensor, key: Tensor, band: Window, scale: float) -> Tensor:
    """scale * q k^T, -inf where not seen, of query [P, Q, N, D] and key [P, K, M, D]: [P, M, N/M, Q, K]."""
    wide = torch.promote_types(query.dtype, torch.float32)
    grouped = query.to(wide).unflatten(2, (key.shape[2], -1))
    scores = torch.einsum("pqmrd,pkmd->pmrqk", grouped, key.to(wide)) * scale
    return scores.masked_fill(~band.table(query.shape[1], key.shape[1], query.device), -torch.inf)
