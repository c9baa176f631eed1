"""Attention of noisy tokens over what is near: the part of the row that the shifted triangles leave (pieces.py)."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nld_train.attention.engine import Engine
from nld_train.attention.pieces import Window, windows
from nld_train.dual_stream.context import Cut
from nld_train.dual_stream.layout import Layout


class Near(Protocol):
    """Attention of the noisy tokens over what the shifted triangle leaves: the rest of the block before, and their own.

    query, output, gradient [T, N, D] of the rank's T noisy tokens; key, value [K, M, D]; lse [N, T].
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, cut: Cut, scale: float
    ) -> tuple[Tensor, Tensor]: ...

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        layout: Layout,
        cut: Cut,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True)
class Windows:
    """`Near` by the engine's own window mask, block by block."""

    engine: Engine

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, cut: Cut, scale: float
    ) -> tuple[Tensor, Tensor]:
        output = torch.empty_like(query)
        lse = query.new_empty(query.shape[1::-1], dtype=torch.promote_types(query.dtype, torch.float32))
        for window in windows(layout, cut):
            keys, values = (_beside(x, window, layout) for x in (key, value))
            out, stats = self.engine.forward(_problems(query, window), keys, values, window.band, scale)
            output[window.queries] = out.flatten(0, 1)
            lse[:, window.queries] = stats.transpose(0, 1).flatten(1)
        return output, lse

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        layout: Layout,
        cut: Cut,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for window in windows(layout, cut):
            keys, values = (_beside(x, window, layout) for x in (key, value))
            stats = lse[:, window.queries].unflatten(1, (window.blocks, -1)).transpose(0, 1)
            d_output, here, out = (_problems(x, window) for x in (gradient, query, output))
            dq, dk, dv = self.engine.backward(d_output, here, keys, values, out, stats, window.band, scale)
            d_query[window.queries] = dq.flatten(0, 1)
            _put_back(d_key, dk, window, layout)
            _put_back(d_value, dv, window, layout)
        return d_query, d_key, d_value


def _problems(x: Tensor, window: Window) -> Tensor:
    """[T, N, D] -> the window's queries, [P, Q, N, D]; a view."""
    return x[window.queries].unflatten(0, (window.blocks, -1))


def _beside(x: Tensor, window: Window, layout: Layout) -> Tensor:
    """Keys [K, M, D] -> [clean block before | own noisy block] of each problem: [P, b + Q, M, D]."""
    own = _problems(x, window)
    if window.before.stop == 0:
        return own
    before = x[len(x) - layout.length :][window.before].unflatten(0, (window.blocks, -1))
    return torch.cat([before, own], 1)


def _put_back(whole: Tensor, part: Tensor, window: Window, layout: Layout) -> None:
    """The opposite of `_beside`: no two problems of no two windows share a key, so nothing is added up."""
    own = window.queries
    count = (own.stop - own.start) // window.blocks
    whole[own] = part[:, -count:].flatten(0, 1)
    if window.before.stop:
        whole[len(whole) - layout.length :][window.before] = part[:, :-count].flatten(0, 1)
