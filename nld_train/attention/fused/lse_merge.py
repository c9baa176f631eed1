"""The doubled row by pieces (decomposition.py) on a fused kernel (kernel.py): outputs merged by log-sum-exp, and an
exact backward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nld_train.attention.compiled import compile_on_gpu
from nld_train.attention.fused.decomposition import TokenIndex, add_at, clean_pieces, put_at, shifted_pieces, take_at
from nld_train.attention.fused.kernel import QKV, FusedKernel, MergedResult
from nld_train.attention.fused.local import LocalAttention
from nld_train.dual_stream.mask_spec import MaskSpec

# The noisy half, with autograd: query [T, N, D], and key and value [K, M, D] of all the rank's keys -> [T, N, D].
NoisyAttention = Callable[[QKV, MaskSpec, float], Tensor]


@dataclass(frozen=True)
class FusedAttention:
    """A backend: the clean half by the causal mask of `kernel`, the noisy half by `noisy_half`."""

    kernel: FusedKernel
    noisy_half: NoisyAttention

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, spec: MaskSpec, scale: float) -> Tensor:
        """query [B, H, S/c, D]; key, value [B, G, K, D]. Returns: [B, H, S/c, D].

        Rows of one document have one mask, so the heads of B rows are treated as B * H heads of one row. Packed rows
        have masks of their own, so they are laid one behind the other. Beside images each row is computed by itself,
        because padding of its noisy half would stand between two rows.
        """
        rows = len(query)
        if spec.clean_only is not None:
            each = [QKV(*(to_tokens_first(x[row : row + 1]) for x in (query, key, value))) for row in range(rows)]
            outputs = [self._attend_row(qkv, spec.row_spec(row), scale) for row, qkv in enumerate(each)]
            return torch.cat([to_heads_first(output, 1) for output in outputs])
        halves = spec.layout.size // spec.layout.length
        if not spec.packed:
            qkv = QKV(*(to_tokens_first(x) for x in (query, key, value)))
            return to_heads_first(self._attend_row(qkv, spec, scale), rows)
        qkv = QKV(*(_flatten_rows(x, halves) for x in (query, key, value)))
        return _unflatten_rows(self._attend_row(qkv, spec.as_single_row(), scale), rows, halves)

    def _attend_row(self, qkv: QKV, spec: MaskSpec, scale: float) -> Tensor:
        """query [T, N, D] of both halves, noisy first; key, value [K, M, D]. Returns: [T, N, D]."""
        own = spec.own_noisy_count
        noisy_query, clean_query = qkv.query.split([own, len(qkv.query) - own])
        outputs = [self.noisy_half(qkv._replace(query=noisy_query), spec, scale)] if own else []
        clean = qkv._replace(query=clean_query)
        for piece in clean_pieces(spec):
            outputs.append(self.kernel.causal(piece.select_inputs(clean), piece.segments, scale))
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
    """The opposite of `_flatten_rows`."""
    return x.unflatten(0, (halves, rows, -1)).permute(1, 3, 0, 2, 4).flatten(2, 3)


@dataclass(frozen=True)
class MergedNoisyAttention:
    """A `NoisyAttention`: the shifted triangles of the noisy half and its local part, merged."""

    kernel: FusedKernel
    local: LocalAttention

    def __call__(self, qkv: QKV, spec: MaskSpec, scale: float) -> Tensor:
        """query [T, N, D]; key, value [K, M, D]. Returns: [T, N, D]."""
        output: Tensor = _MergedNoisyFunction.apply(*qkv, spec, scale, self.kernel, self.local)
        return output


class _MergedNoisyFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        spec: MaskSpec,
        scale: float,
        kernel: FusedKernel,
        local: LocalAttention,
    ) -> Tensor:
        qkv = QKV(query, key, value)
        output, lse = local.forward(qkv, spec, scale)
        for piece in shifted_pieces(spec, query.device):
            _merge_piece_at(piece.queries, output, lse, *piece.forward(kernel, qkv, scale))
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.settings = (spec, scale, kernel, local)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        spec, scale, kernel, local = ctx.settings
        qkv, merged = QKV(query, key, value), MergedResult(output, lse, gradient.contiguous())
        d_query, d_key, d_value = local.backward(qkv, merged, spec, scale)
        for piece in shifted_pieces(spec, query.device):
            part = piece.backward(kernel, qkv, merged, scale)
            add_at(d_query, piece.queries, part.query)
            add_at(d_key, piece.keys, part.key)
            add_at(d_value, piece.keys, part.value)
        return d_query, d_key, d_value, None, None, None, None


def _merge_piece_at(where: TokenIndex, output: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Merge a second piece of the queries `where` into `output` [T, N, D] and `lse` [N, T], in place."""
    # Of dynamic shape: packed rows have other triangles every time.
    merge = compile_on_gpu(merge_by_lse, output.device.type)
    here, here_lse = take_at(output, where), take_at(lse, where, 1)
    merge(here, here_lse, other, other_lse)
    if isinstance(where, Tensor):  # then what was merged are copies
        put_at(output, where, here)
        put_at(lse, where, here_lse, 1)


def merge_by_lse(output: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Merge a second piece of the same queries into `output` [Q, N, D] and `lse` [N, Q], in place.

    Computed in float32 or wider, and rounded once. A piece without keys has lse -inf and weight 0; at most one of the
    two may be such a one.
    """
    share = torch.sigmoid(other_lse - lse).transpose(0, 1)[..., None]
    mixed = output.to(lse.dtype) * (1 - share) + other.to(lse.dtype) * share
    lse.copy_(torch.logaddexp(lse, other_lse))
    output.copy_(mixed)
