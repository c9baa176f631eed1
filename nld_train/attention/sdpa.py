"""Attention on torch's scaled_dot_product_attention: the CPU's fast path.

The clean half is plain causal attention. The noisy half is cut into chunks of whole blocks, each of which is shown its
own noisy tokens and the clean tokens up to its end: most of the pairs that nobody sees are never computed.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nld_train.dual_stream.context_shard import WHOLE, ContextShard, TokenSpan
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_between

CHUNKS = 8  # measured on 2 cores, L 256 and 1024: 2.2 times causal attention; 4 chunks 2.3, a single one 3.0 to 3.7

Span = tuple[int, int]  # first, after the last


@dataclass(frozen=True)
class QueryChunk:
    """Neighbouring queries, and keys among which are all that they see."""

    queries: Span  # among the rank's queries
    noisy: Span  # among the noisy keys that the rank was given; empty for clean queries
    clean: int  # clean keys, from the row's first on
    causal: bool  # query i sees keys 0..i and no other


def attend_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: RowLayout,
    scale: float,
    documents: Tensor | None = None,
    cut: ContextShard = WHOLE,
) -> Tensor:
    """query [B, H, S/c, D]; key, value [B, G, K, D]; documents [B, L] int64 or None. Returns: [B, H, S/c, D]."""
    held, given = layout.size // cut.ranks, cut.key_count(layout, documents is not None)
    assert query.shape[2] == held, f"{query.shape[2]} positions for a layout of {held}"
    assert key.shape[2] == given, f"{key.shape[2]} keys for a layout of {given}"
    todo = query_chunks(layout, cut, documents is not None)
    return torch.cat([_attend(query, key, value, layout, scale, documents, cut, part) for part in todo], 2)


@lru_cache
def query_chunks(layout: RowLayout, cut: ContextShard, packed: bool) -> tuple[QueryChunk, ...]:
    """The rank's queries in parts, in order."""
    noisy = [part for segment in cut.segments(layout) for part in _noisy(segment, layout, cut, packed)]
    clean_start = cut.tokens(layout) if layout.dual else 0
    clean = []
    for segment in cut.segments(layout):
        stop = segment.row_start + segment.length
        queries = (clean_start + segment.start, clean_start + segment.start + segment.length)
        clean.append(QueryChunk(queries, (0, 0), stop, causal=segment.row_start == 0 and not packed))
    return (*noisy, *clean)


def _noisy(segment: TokenSpan, layout: RowLayout, cut: ContextShard, packed: bool) -> list[QueryChunk]:
    """The noisy queries of a segment, whole blocks in each part; a single one for packed rows, each with blocks of its
    own, which see noisy tokens of other segments too."""
    if not layout.dual:
        return []
    start, end = segment.start, segment.start + segment.length
    if packed:
        return [QueryChunk((start, end), (0, layout.length), layout.length, causal=False)]
    blocks = -(-segment.length // layout.block_size)
    step = -(-blocks * len(cut.segments(layout)) // CHUNKS) * layout.block_size
    spans = [(first, min(first + step, end)) for first in range(start, end, step)]
    return [QueryChunk(span, span, segment.row_start + span[1] - start, causal=False) for span in spans]


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: RowLayout,
    scale: float,
    documents: Tensor | None,
    cut: ContextShard,
    part: QueryChunk,
) -> Tensor:
    """The queries of one part over its keys: [B, H, queries, D]."""
    keys, values = (_given(x, layout, part) for x in (key, value))
    if part.causal:
        mask = None
    elif documents is None:
        mask = _part_mask(layout, cut, part, query.device)
    else:
        mask = visible_in_chunk(layout, cut, part, query.device, documents)[:, None]
    return scaled_dot_product_attention(
        query[:, :, slice(*part.queries)],
        keys,
        values,
        attn_mask=mask,
        is_causal=part.causal,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _given(x: Tensor, layout: RowLayout, part: QueryChunk) -> Tensor:
    """A part's keys among [B, G, K, D]; copied only where they lie apart."""
    first_clean = x.shape[2] - layout.length
    clean = x[:, :, first_clean : first_clean + part.clean]
    return torch.cat([x[:, :, slice(*part.noisy)], clean], 2) if part.noisy[1] else clean


def visible_in_chunk(
    layout: RowLayout, cut: ContextShard, part: QueryChunk, device: torch.device, documents: Tensor | None = None
) -> Tensor:
    """What the queries of a part see of its keys: [queries, keys], or [B, queries, keys]; bool."""
    queries = cut.queries_at(layout, torch.arange(*part.queries, device=device))
    noisy = cut.keys_at(layout, torch.arange(*part.noisy, device=device), packed=documents is not None)
    clean = torch.arange(layout.clean_start, layout.clean_start + part.clean, device=device)
    return visible_between(layout, queries, torch.cat([noisy, clean]), documents)


@lru_cache(maxsize=8 * CHUNKS)
def _part_mask(layout: RowLayout, cut: ContextShard, part: QueryChunk, device: torch.device) -> Tensor:
    return visible_in_chunk(layout, cut, part, device)
