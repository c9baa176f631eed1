"""The doubled row by pieces (pieces.py) on an engine (engine.py): results merged by log-sum-exp, an exact backward."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nld_train.attention.engine import Engine
from nld_train.attention.fused import fused
from nld_train.attention.near import Near
from nld_train.attention.pieces import Where, add, clean, put, shifted, taken
from nld_train.dual_stream.context import WHOLE, Cut
from nld_train.dual_stream.layout import Layout
from nld_train.dual_stream.sight import Sight

# The noisy half: query [T, N, D], key and value [K, M, D] of all of the rank's keys -> [T, N, D]; with autograd.
NoisyHalf = Callable[[Tensor, Tensor, Tensor, Sight, float], Tensor]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float,
    documents: Tensor | None = None,
    cut: Cut = WHOLE,
    *,
    engine: Engine,
    noisy_half: NoisyHalf,
) -> Tensor:
    """query [B, H, S/c, D]; key, value [B, G, K, D]; documents [B, L] int64 or None. Returns: [B, H, S/c, D].

    Rows of one document are alike, so that their heads are as heads of one row; packed ones come one behind the other.
    """
    sight, rows, halves = Sight.of(layout, cut, documents), len(query), layout.size // layout.length
    if documents is None:
        query, key, value = (tokens_first(x) for x in (query, key, value))
        return heads_first(attend_row(query, key, value, sight, scale, engine, noisy_half), rows)
    query, key, value = (rows_in_line(x, halves) for x in (query, key, value))
    return rows_apart(attend_row(query, key, value, sight.flat(), scale, engine, noisy_half), rows, halves)


def attend_row(
    query: Tensor, key: Tensor, value: Tensor, sight: Sight, scale: float, engine: Engine, noisy_half: NoisyHalf
) -> Tensor:
    """query [T, N, D] of both halves; key, value [K, M, D]. Returns: [T, N, D]."""
    own = sight.own_noisy
    noisy_queries, clean_queries = query.split([own, len(query) - own])
    outputs = [noisy_half(noisy_queries, key, value, sight, scale)] if own else []
    for piece in clean(sight):
        outputs.append(engine.causal(*piece.inputs(clean_queries, key, value), piece.problems, scale))
    return torch.cat(outputs)


def tokens_first(x: Tensor) -> Tensor:
    """[B, H, S, D] -> [S, B * H, D], contiguous; nothing is copied where memory is Megatron's [S, B, H, D]."""
    return x.permute(2, 0, 1, 3).flatten(1, 2).contiguous()


def heads_first(x: Tensor, rows: int) -> Tensor:
    """[S, B * H, D] -> [B, H, S, D], a view."""
    return x.unflatten(1, (rows, -1)).permute(1, 2, 0, 3)


def rows_in_line(x: Tensor, halves: int) -> Tensor:
    """[B, H, S, D] -> [halves * B * L, H, D], contiguous: all rows of one half, then all of the other."""
    return x.unflatten(2, (halves, -1)).permute(2, 0, 3, 1, 4).flatten(0, 2).contiguous()


def rows_apart(x: Tensor, rows: int, halves: int) -> Tensor:
    """The opposite of `rows_in_line`."""
    return x.unflatten(0, (halves, rows, -1)).permute(1, 3, 0, 2, 4).flatten(2, 3)


@dataclass(frozen=True)
class Merged:
    """The noisy half of a row as its shifted triangles and what is near, merged. A `NoisyHalf`."""

    engine: Engine
    near: Near

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, sight: Sight, scale: float) -> Tensor:
        output: Tensor = _Merged.apply(query, key, value, sight, scale, self.engine, self.near)
        return output


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sight: Sight, scale: float, engine: Engine, near: Near
    ) -> Tensor:
        output, lse = near.forward(query, key, value, sight, scale)
        for piece in shifted(sight, query.device):
            merge_at(piece.queries, output, lse, *piece.forward(engine, query, key, value, scale))
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.settings = (sight, scale, engine, near)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        sight, scale, engine, near = ctx.settings
        gradient = gradient.contiguous()
        d_query, d_key, d_value = near.backward(gradient, query, key, value, output, lse, sight, scale)
        for piece in shifted(sight, query.device):
            dq, dk, dv = piece.backward(engine, gradient, query, key, value, output, lse, scale)
            add(d_query, piece.queries, dq)
            add(d_key, piece.keys, dk)
            add(d_value, piece.keys, dv)
        return d_query, d_key, d_value, None, None, None, None


def merge_at(where: Where, output: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Take a second piece of the queries at `where` into `output` [T, N, D] and `lse` [N, T], in place."""
    merge = fused(merge_into, output.device.type)  # packed rows have other triangles every time
    here, here_lse = taken(output, where), taken(lse, where, 1)
    merge(here, here_lse, other, other_lse)
    if isinstance(where, Tensor):  # what was merged are copies
        put(output, where, here)
        put(lse, where, here_lse, 1)


def merge_into(output: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Take a second piece of the same queries into `output` [Q, N, D] and `lse` [N, Q], in place.

    Computed in float32 or wider, rounded once. A piece without keys has lse -inf and weight 0; one of the two has keys.
    """
    share = torch.sigmoid(other_lse - lse).transpose(0, 1)[..., None]
    mixed = output.to(lse.dtype) * (1 - share) + other.to(lse.dtype) * share
    lse.copy_(torch.logaddexp(lse, other_lse))
    output.copy_(mixed)
