"""The doubled row by pieces (pieces.py) on an engine (engine.py): results merged by log-sum-exp, an exact backward."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nld_train.attention.compiled import compile_on_gpu
from nld_train.attention.fused.decomposition import TokenIndex, add_at, clean_pieces, put_at, shifted_pieces, take_at
from nld_train.attention.fused.kernel import FusedKernel
from nld_train.attention.fused.local import LocalAttention
from nld_train.dual_stream.context_shard import WHOLE, ContextShard
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout

# The noisy half: query [T, N, D], key and value [K, M, D] of all of the rank's keys -> [T, N, D]; with autograd.
NoisyAttention = Callable[[Tensor, Tensor, Tensor, MaskSpec, float], Tensor]


def attend_fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: RowLayout,
    scale: float,
    documents: Tensor | None = None,
    cut: ContextShard = WHOLE,
    *,
    engine: FusedKernel,
    noisy_half: NoisyAttention,
) -> Tensor:
    """query [B, H, S/c, D]; key, value [B, G, K, D]; documents [B, L] int64 or None. Returns: [B, H, S/c, D].

    Rows of one document are alike, so that their heads are as heads of one row; packed ones come one behind the other.
    """
    sight, rows, halves = MaskSpec.of(layout, cut, documents), len(query), layout.size // layout.length
    if documents is None:
        query, key, value = (to_tokens_first(x) for x in (query, key, value))
        return to_heads_first(_attend_fused_row(query, key, value, sight, scale, engine, noisy_half), rows)
    query, key, value = (_flatten_rows(x, halves) for x in (query, key, value))
    return _unflatten_rows(_attend_fused_row(query, key, value, sight.flat(), scale, engine, noisy_half), rows, halves)


def _attend_fused_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sight: MaskSpec,
    scale: float,
    engine: FusedKernel,
    noisy_half: NoisyAttention,
) -> Tensor:
    """query [T, N, D] of both halves; key, value [K, M, D]. Returns: [T, N, D]."""
    own = sight.own_noisy
    noisy_queries, clean_queries = query.split([own, len(query) - own])
    outputs = [noisy_half(noisy_queries, key, value, sight, scale)] if own else []
    for piece in clean_pieces(sight):
        outputs.append(engine.causal(*piece.inputs(clean_queries, key, value), piece.problems, scale))
    return torch.cat(outputs)


def to_tokens_first(x: Tensor) -> Tensor:
    """[B, H, S, D] -> [S, B * H, D], contiguous; nothing is copied where memory is Megatron's [S, B, H, D]."""
    return x.permute(2, 0, 1, 3).flatten(1, 2).contiguous()


def to_heads_first(x: Tensor, rows: int) -> Tensor:
    """[S, B * H, D] -> [B, H, S, D], a view."""
    return x.unflatten(1, (rows, -1)).permute(1, 2, 0, 3)


def _flatten_rows(x: Tensor, halves: int) -> Tensor:
    """[B, H, S, D] -> [halves * B * L, H, D], contiguous: all rows of one half, then all of the other."""
    return x.unflatten(2, (halves, -1)).permute(2, 0, 3, 1, 4).flatten(0, 2).contiguous()


def _unflatten_rows(x: Tensor, rows: int, halves: int) -> Tensor:
    """The opposite of `rows_in_line`."""
    return x.unflatten(0, (halves, rows, -1)).permute(1, 3, 0, 2, 4).flatten(2, 3)


@dataclass(frozen=True)
class MergedNoisyAttention:
    """The noisy half of a row as its shifted triangles and what is near, merged. A `NoisyHalf`."""

    engine: FusedKernel
    near: LocalAttention

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, sight: MaskSpec, scale: float) -> Tensor:
        output: Tensor = _Merged.apply(query, key, value, sight, scale, self.engine, self.near)
        return output


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sight: MaskSpec,
        scale: float,
        engine: FusedKernel,
        near: LocalAttention,
    ) -> Tensor:
        output, lse = near.forward(query, key, value, sight, scale)
        for piece in shifted_pieces(sight, query.device):
            _merge_piece_at(piece.queries, output, lse, *piece.forward(engine, query, key, value, scale))
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.settings = (sight, scale, engine, near)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        sight, scale, engine, near = ctx.settings
        gradient = gradient.contiguous()
        d_query, d_key, d_value = near.backward(gradient, query, key, value, output, lse, sight, scale)
        for piece in shifted_pieces(sight, query.device):
            dq, dk, dv = piece.backward(engine, gradient, query, key, value, output, lse, scale)
            add_at(d_query, piece.queries, dq)
            add_at(d_key, piece.keys, dk)
            add_at(d_value, piece.keys, dv)
        return d_query, d_key, d_value, None, None, None, None


def _merge_piece_at(where: TokenIndex, output: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Take a second piece of the queries at `where` into `output` [T, N, D] and `lse` [N, T], in place."""
    merge = compile_on_gpu(merge_by_lse, output.device.type)  # packed rows have other triangles every time
    here, here_lse = take_at(output, where), take_at(lse, where, 1)
    merge(here, here_lse, other, other_lse)
    if isinstance(where, Tensor):  # what was merged are copies
        put_at(output, where, here)
        put_at(lse, where, here_lse, 1)


def merge_by_lse(output: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Take a second piece of the same queries into `output` [Q, N, D] and `lse` [N, Q], in place.

    Computed in float32 or wider, rounded once. A piece without keys has lse -inf and weight 0; one of the two has keys.
    """
    share = torch.sigmoid(other_lse - lse).transpose(0, 1)[..., None]
    mixed = output.to(lse.dtype) * (1 - share) + other.to(lse.dtype) * share
    lse.copy_(torch.logaddexp(lse, other_lse))
    output.copy_(mixed)
