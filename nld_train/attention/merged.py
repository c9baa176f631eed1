"""The doubled row by pieces (pieces.py) on an engine (engine.py): results merged by log-sum-exp, an exact backward."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nld_train.attention.engine import CAUSAL, Engine
from nld_train.attention.fused import fused
from nld_train.attention.near import Near
from nld_train.attention.pieces import Shifted, refuse_packed, shifted
from nld_train.dual_stream.context import WHOLE, Cut
from nld_train.dual_stream.layout import Layout

# The noisy half: query [T, N, D], key and value [K, M, D] of all of the rank's keys -> [T, N, D]; with autograd.
NoisyHalf = Callable[[Tensor, Tensor, Tensor, Layout, Cut, float], Tensor]


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
    """query [B, H, S/c, D]; key, value [B, G, K, D]; rows of one document. Returns: [B, H, S/c, D]."""
    refuse_packed(documents is not None)
    rows, own = query.shape[0], cut.tokens(layout) if layout.dual else 0
    query, key, value = (tokens_first(x) for x in (query, key, value))
    noisy, clean = query.split([own, len(query) - own])
    outputs = [noisy_half(noisy, key, value, layout, cut, scale)] if layout.dual else []
    outputs.append(attend_clean(clean, key, value, layout, scale, cut, engine))
    return heads_first(torch.cat(outputs), rows)


def attend_clean(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, cut: Cut, engine: Engine
) -> Tensor:
    """The clean half: query [L/c, N, D] over the clean ones among key, value [K, M, D]. Returns: [L/c, N, D]."""
    noisy_keys = len(key) - layout.length
    key, value = (x.split([noisy_keys, layout.length])[1] for x in (key, value))
    outputs = []
    for segment in cut.segments(layout):
        stop = segment.row_start + segment.length
        here = query[segment.start : segment.start + segment.length]
        outputs.append(engine.causal(here, key[:stop], value[:stop], scale))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def tokens_first(x: Tensor) -> Tensor:
    """[B, H, S, D] -> [S, B * H, D], contiguous; nothing is copied where memory is Megatron's [S, B, H, D]."""
    return x.permute(2, 0, 1, 3).flatten(1, 2).contiguous()


def heads_first(x: Tensor, rows: int) -> Tensor:
    """[S, B * H, D] -> [B, H, S, D], a view."""
    return x.unflatten(1, (rows, -1)).permute(1, 2, 0, 3)


@dataclass(frozen=True)
class Merged:
    """The noisy half of a row as its shifted triangles and what is near, merged. A `NoisyHalf`."""

    engine: Engine
    near: Near

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, cut: Cut, scale: float) -> Tensor:
        output: Tensor = _Merged.apply(query, key, value, layout, cut, scale, self.engine, self.near)
        return output


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: Layout,
        cut: Cut,
        scale: float,
        engine: Engine,
        near: Near,
    ) -> Tensor:
        output, lse = near.forward(query, key, value, layout, cut, scale)
        for piece in shifted(layout, cut):
            here, keys, values = _of_triangle(piece, query, key, value, layout)
            out, stats = engine.forward(here, keys, values, CAUSAL, scale)
            merge = fused(merge_into, query.device.type, dynamic=False)
            merge(output[piece.queries], lse[:, piece.queries], out[0], stats[0])
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.settings = (layout, cut, scale, engine, near)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        layout, cut, scale, engine, near = ctx.settings
        gradient = gradient.contiguous()
        d_query, d_key, d_value = near.backward(gradient, query, key, value, output, lse, layout, cut, scale)
        first_clean = len(key) - layout.length
        for piece in shifted(layout, cut):
            here, keys, values = _of_triangle(piece, query, key, value, layout)
            d_output, out = (x[piece.queries][None] for x in (gradient, output))
            stats = lse[:, piece.queries][None]
            dq, dk, dv = engine.backward(d_output, here, keys, values, out, stats, CAUSAL, scale)
            d_query[piece.queries] += dq[0]
            d_key[first_clean : first_clean + piece.keys] += dk[0]
            d_value[first_clean : first_clean + piece.keys] += dv[0]
        return d_query, d_key, d_value, None, None, None, None, None


def _of_triangle(
    piece: Shifted, query: Tensor, key: Tensor, value: Tensor, layout: Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """The triangle's tensors as one problem; views."""
    first_clean = len(key) - layout.length
    keys = slice(first_clean, first_clean + piece.keys)
    return query[piece.queries][None], key[keys][None], value[keys][None]


def merge_into(output: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Take a second piece of the same queries into `output` [Q, N, D] and `lse` [N, Q], in place.

    Computed in float32 or wider, rounded once. A piece without keys has lse -inf and weight 0; one of the two has keys.
    """
    share = torch.sigmoid(other_lse - lse).transpose(0, 1)[..., None]
    mixed = output.to(lse.dtype) * (1 - share) + other.to(lse.dtype) * share
    lse.copy_(torch.logaddexp(lse, other_lse))
    output.copy_(mixed)
