"""Attention on torch's scaled_dot_product_attention: the CPU's fast path.

The clean half is plain causal attention. The noisy half is divided into chunks of whole blocks, and each chunk is given
its own noisy tokens and the clean tokens up to its end. So most of the pairs that nobody sees are never computed.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nld_train.dual_stream.context_shard import TokenSpan
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.visibility import visible_between

# Measured on 2 cores at L 256 and 1024, in times of causal attention: 8 chunks 2.2, 4 chunks 2.3, one chunk 3.0 to 3.7.
CHUNKS = 8

Span = tuple[int, int]  # index of the first, index after the last


@dataclass(frozen=True)
class QueryChunk:
    """Neighbouring queries, and a set of keys that holds all that they see."""

    queries: Span  # among the rank's queries
    noisy: Span  # among the noisy keys that the rank was given; empty for clean queries
    clean: int  # the number of clean keys, counted from the row's first
    causal: bool  # True: query i sees the keys 0..i and no other, so that no mask is needed


def attend_sdpa(query: Tensor, key: Tensor, value: Tensor, spec: MaskSpec, scale: float) -> Tensor:
    """query [B, H, S/c, D]; key, value [B, G, K, D]. Returns: [B, H, S/c, D]."""
    assert query.shape[2] == spec.query_count, f"{query.shape[2]} positions for a layout of {spec.query_count}"
    assert key.shape[2] == spec.key_count, f"{key.shape[2]} keys for a layout of {spec.key_count}"
    outputs = []
    for chunk in query_chunks(spec):
        keys, values = (_keys_of_chunk(x, spec, chunk) for x in (key, value))
        output = scaled_dot_product_attention(
            query[:, :, slice(*chunk.queries)],
            keys,
            values,
            attn_mask=_chunk_mask(spec, chunk, query.device),
            is_causal=chunk.causal,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(output)
    return torch.cat(outputs, 2)


@lru_cache
def query_chunks(spec: MaskSpec) -> tuple[QueryChunk, ...]:
    """The rank's queries in chunks, in order: the noisy ones, then the clean ones."""
    layout, shard = spec.layout, spec.shard
    noisy = [chunk for segment in shard.noisy_segments(layout) for chunk in _noisy_chunks(segment, spec)]
    clean_start = spec.own_noisy_count
    clean = []
    for segment in shard.segments(layout):
        stop = segment.row_start + segment.length
        queries = (clean_start + segment.start, clean_start + segment.start + segment.length)
        clean.append(QueryChunk(queries, (0, 0), stop, causal=segment.row_start == 0 and not spec.packed))
    return (*noisy, *clean)


def _noisy_chunks(segment: TokenSpan, spec: MaskSpec) -> list[QueryChunk]:
    """The noisy queries of a segment in chunks of whole blocks."""
    layout = spec.layout
    start, end = segment.start, segment.start + segment.length
    if spec.packed:
        # Every row has blocks of its own, which may straddle segments: one chunk that is given all keys.
        return [QueryChunk((start, end), (0, layout.noisy_length), layout.length, causal=False)]
    blocks = -(-segment.length // layout.block_size)
    step = -(-blocks * len(spec.shard.segments(layout)) // CHUNKS) * layout.block_size
    spans = [(first, min(first + step, end)) for first in range(start, end, step)]
    return [QueryChunk(span, span, segment.row_start + span[1] - start, causal=False) for span in spans]


def _keys_of_chunk(x: Tensor, spec: MaskSpec, chunk: QueryChunk) -> Tensor:
    """A chunk's keys among [B, G, K, D]; copied only where they lie apart."""
    first_clean = x.shape[2] - spec.layout.length
    clean = x[:, :, first_clean : first_clean + chunk.clean]
    return torch.cat([x[:, :, slice(*chunk.noisy)], clean], 2) if chunk.noisy[1] else clean


def visible_in_chunk(spec: MaskSpec, chunk: QueryChunk, device: torch.device) -> Tensor:
    """What the queries of a chunk see of its keys: [queries, keys] bool, or [B, queries, keys] of packed rows."""
    layout, shard = spec.layout, spec.shard
    queries = shard.queries_at(layout, torch.arange(*chunk.queries, device=device))
    noisy = shard.keys_at(layout, torch.arange(*chunk.noisy, device=device), spec.packed)
    clean = torch.arange(layout.clean_start, layout.clean_start + chunk.clean, device=device)
    return visible_between(layout, queries, torch.cat([noisy, clean]), *spec.places_on(device))


def _chunk_mask(spec: MaskSpec, chunk: QueryChunk, device: torch.device) -> Tensor | None:
    """The mask that broadcasts to [B, H, queries, keys]; None where the kernel's own causal mask does."""
    if chunk.causal:
        return None
    if spec.packed:
        return visible_in_chunk(spec, chunk, device)[:, None]
    return _cached_mask(spec, chunk, device)


# Rows of one document have the same masks in every step. Packed rows never repeat, and their masks are large.
@lru_cache(maxsize=8 * CHUNKS)
def _cached_mask(spec: MaskSpec, chunk: QueryChunk, device: torch.device) -> Tensor:
    return visible_in_chunk(spec, chunk, device)
