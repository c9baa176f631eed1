"""The key/value cache of rows of different lengths, and who sees whom. This file travels with every export.

Letters: B rows, n given tokens of a row, K places of it that are looked at, G key/value heads, D head dimension. A
*place* is where a token stands in its row, padding not counted; a *column* is where it stands with the padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

# Where outputs of transformers keep the cache: 5.24 renamed the field.
CACHE_FIELD = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
GROWTH = 256  # places by which a full cache grows at least


class KVCache:
    """Keys and values of every layer by row and place, for decoding without gradients.

    The first lengths[b] places of row b are its past. What lies behind them is scratch: a forward that does not keep
    its keys writes there, the next one overwrites it, and dropping tokens is lowering a length.
    """

    def __init__(self, rows: int) -> None:
        self.lengths = [0] * rows
        self.layers: list[tuple[Tensor, Tensor]] = []  # keys and values, each [B, capacity, G, D]

    def get_seq_length(self) -> int:
        """Places of the longest row."""
        return max(self.lengths)

    def crop(self, lengths: int | Sequence[int]) -> None:
        """Forget what stands behind the first `lengths` places: of every row, or row by row."""
        wanted = [lengths] * len(self.lengths) if isinstance(lengths, int) else list(lengths)
        assert len(wanted) == len(self.lengths), f"{len(wanted)} lengths for {len(self.lengths)} rows"
        self.lengths = [min(old, new) for old, new in zip(self.lengths, wanted, strict=True)]

    def write(self, layer: int, key: Tensor, value: Tensor, places: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Write key, value [B, n, G, D] at places [B, n]. Returns: the first `end` places of both, [B, end, G, D]."""
        keys, values = self._reserve(layer, key, end)
        rows = torch.arange(len(places), device=places.device)[:, None]
        keys[rows, places] = key
        values[rows, places] = value
        return keys[:, :end], values[:, :end]

    def _reserve(self, layer: int, like: Tensor, end: int) -> tuple[Tensor, Tensor]:
        if layer == len(self.layers):
            empty = like[:, :0]
            self.layers.append((empty, empty))
        keys, values = self.layers[layer]
        capacity = keys.shape[1]
        if end > capacity:
            more = max(end - capacity, capacity, GROWTH)
            # Zeros, because scratch that is masked out still takes part in a product with weight zero.
            room = like.new_zeros(like.shape[0], more, *like.shape[2:])
            self.layers[layer] = (torch.cat([keys, room], 1), torch.cat([values, room], 1))
        return self.layers[layer]


@dataclass(frozen=True)
class Visibility:
    """Who may see whom, as transformers' attention functions take it."""

    mask: Tensor | None  # [B, 1, n, K] bool; None: everything, or what comes before
    is_causal: bool = False


def token_places(lengths: Sequence[int], width: int, real: Tensor | None, device: torch.device) -> Tensor:
    """Places of `width` given tokens behind `lengths` [B] past ones: [B, n] int64.

    `real` [B, n] bool marks padding with False, on whichever side; padding stands behind the row's own tokens, where
    nobody looks.
    """
    past = torch.tensor(lengths, device=device)[:, None]
    if real is None:
        return past + torch.arange(width, device=device)
    own = real.cumsum(1) - 1
    behind = real.sum(1, keepdim=True) + (~real).cumsum(1) - 1
    return past + torch.where(real, own, behind)


def build_attention_mask(
    lengths: Sequence[int], places: Tensor, real: Tensor | None, cached: bool, causal: bool
) -> Visibility:
    """Who sees whom among the given tokens and the past: earlier places (causal), or every real one.

    places [B, S]; real [B, S] bool, or None where every token is real. The mask is [B, 1, S, past + S].
    """
    width = places.shape[1]
    even = real is None and len(set(lengths)) == 1
    if even and (not causal or width == 1):
        return Visibility(None)
    if even and lengths[0] == 0:
        return Visibility(None, is_causal=True)
    keys = torch.arange(max(lengths) + width, device=places.device)[None] if cached else places
    query, key = places[:, :, None], keys[:, None, :]
    if causal:
        return Visibility((key <= query)[:, None])
    given = places.new_full((len(places), 1), width) if real is None else real.sum(1, keepdim=True)
    end = torch.tensor(lengths, device=places.device)[:, None] + given
    # Padding sees itself, so that no query is left without a key.
    return Visibility(((key < end[:, :, None]) | (key == query))[:, None])


def column_visibility(past: int, width: int, real: Tensor | None, causal: bool, device: torch.device) -> Visibility:
    """Who sees whom where transformers' own cache keeps `past` columns, padding among them, before `width` given ones.

    real: [B, past + width] bool, False for padding; None: there is none.
    """
    if real is None or bool(real.all()):
        columns = (past + torch.arange(width, device=device))[None]
        return build_attention_mask([past], columns, None, cached=True, causal=causal)
    query = past + torch.arange(width, device=device)[:, None]
    key = torch.arange(past + width, device=device)
    seen = real[:, None, :] & (key <= query) if causal else real[:, None, :].expand(-1, width, -1)
    # Padding sees itself, so that no query is left without a key.
    return Visibility((seen | (key == query))[:, None])


def column_positions(past: int, width: int, real: Tensor | None, device: torch.device) -> Tensor:
    """Positions [B, width] or [1, width] of given tokens behind `past` columns of transformers' own cache: the place
    of each among the real tokens of its row, where `real` [B, past + width] bool marks padding with False.
    """
    if real is None:
        return (past + torch.arange(width, device=device))[None]
    return (real.long().cumsum(1) - 1).clamp(min=0)[:, -width:]
