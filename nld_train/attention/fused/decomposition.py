"""The doubled row in pieces that fused kernels have a mask for: plain causal calls, and windows over neighbours.

The noisy half sees, of the clean tokens, those of earlier blocks. Shifted by one block that is a plain causal triangle:
noisy token i certainly sees the clean tokens 0..i-b (b = block_size), which is causal attention of the queries b..L-1
over the keys 0..L-b-1, as square and as fast as any. What is missing is near: the rest of the block before (the clean
tokens after i-b, at most b - 1 of them) and the own noisy block. Laid side by side, [clean block j-1 | noisy block j],
that is a window: query o of the block sees the keys from o+1 to the end. The two are merged by log-sum-exp:

    lse = ln(exp(lse_1) + exp(lse_2)),   output = exp(lse_1 - lse) * output_1 + exp(lse_2 - lse) * output_2

and the backward of each piece is run with the merged lse and output, which makes the sum exact (engine.py).

Packed documents are the same, document by document: the triangles of all of them are the problems of one piece, and so
are all the windows. Documents that are no longer than a block have no triangle.

Arithmetic at L 4096, b 32, one head: 8,390,656 pairs causal on the clean half, 8,260,080 in the shifted triangle, both
seen to the last one, 261,120 in the windows of which 194,064 are seen: 1.004 computed pairs a useful one. Kernels work
in tiles; in tiles of 128 x 128 it is 528 + 528 + 128 against 1,056 for plain causal attention of as many pairs: 1.12.
Calls: clean 1, shifted 1, windows 1, the first block 1, and 1 for a last block that is cut short; as many backward. Of
packed rows 1, 1 and 1. Every query is merged at most once.

Weighed and left out: halving the row (level by level, the odd half sees the even half before it whole) needs no mask,
but 5 calls down to 128 tokens, merges half of the queries at each level, and still leaves a masked piece. Chunk c of
size C against the keys 0..cC: one call a chunk, and masked L * 2C.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from nld_train.attention.fused.kernel import CAUSAL, FusedKernel, Segments, Window
from nld_train.config import require
from nld_train.dual_stream.context_shard import TokenSpan
from nld_train.dual_stream.mask_spec import MaskSpec, copy_to_device

TokenIndex = slice | Tensor  # places along the tokens; int64 where they are no slice


@dataclass(frozen=True, eq=False)
class AttentionPiece:
    """Queries over keys, problem by problem. What it takes of tensors: query [T, N, D] of one half, key and value
    [K, M, D], all of the rank's; see Engine for what comes back, of its own queries and keys."""

    queries: TokenIndex  # among the rank's tokens of one half
    keys: TokenIndex  # among the rank's keys
    problems: Segments
    band: Window

    def inputs(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return take_at(query, self.queries), take_at(key, self.keys), take_at(value, self.keys)

    def forward(
        self, engine: FusedKernel, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        return engine.forward(*self.inputs(query, key, value), self.problems, self.band, scale)

    def backward(
        self,
        engine: FusedKernel,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_output, out, stats = (
            take_at(gradient, self.queries),
            take_at(output, self.queries),
            take_at(lse, self.queries, 1),
        )
        inputs = self.inputs(query, key, value)
        return engine.backward(d_output, *inputs, out, stats, self.problems, self.band, scale)


@dataclass(frozen=True)
class NoisyBlock:
    """A diffusion block of noisy queries."""

    start: int  # place of its first query among the rank's noisy tokens
    length: int
    before: int | None  # place of the clean block before it among the rank's keys; None: a document's first block


def take_at(x: Tensor, where: TokenIndex, dim: int = 0) -> Tensor:
    """What of a tensor lies at `where`: a view of a slice, a copy of anything else."""
    if isinstance(where, Tensor):
        return x.index_select(dim, where)
    return x.narrow(dim, where.start, where.stop - where.start)


def put_at(x: Tensor, where: TokenIndex, part: Tensor, dim: int = 0) -> None:
    """The opposite of `taken`, in place. Places differ from each other, so that no order is left open."""
    if isinstance(where, Tensor):
        x.index_copy_(dim, where, part)
    else:
        take_at(x, where, dim).copy_(part)


def add_at(x: Tensor, where: TokenIndex, part: Tensor) -> None:
    """x[where] += part, in place."""
    if isinstance(where, Tensor):
        put_at(x, where, take_at(x, where) + part)
    else:
        take_at(x, where).add_(part)


def clean_pieces(sight: MaskSpec) -> tuple[AttentionPiece, ...]:
    """The clean half: what is causal as it is."""
    first = sight.own_noisy
    if sight.documents is not None:
        (lengths,) = sight.documents
        everything = slice(0, sight.layout.length)
        return (
            AttentionPiece(everything, slice(first, first + sight.layout.length), Segments(lengths, lengths), CAUSAL),
        )
    found = []
    for segment in sight.cut.segments(sight.layout):
        stop = segment.row_start + segment.length
        queries = slice(segment.start, segment.start + segment.length)
        found.append(AttentionPiece(queries, slice(first, first + stop), Segments((segment.length,), (stop,)), CAUSAL))
    return tuple(found)


@lru_cache(maxsize=8)
def shifted_pieces(sight: MaskSpec, device: torch.device) -> tuple[AttentionPiece, ...]:
    """The triangles of the noisy half: of each of a rank's segments that has earlier blocks, or of all documents."""
    size, first = sight.layout.block_size, sight.own_noisy
    if sight.documents is None:
        cut = [_triangle(segment, size, first) for segment in sight.cut.segments(sight.layout)]
        return tuple(piece for piece in cut if piece is not None)
    tall = [segment for segment in _document_spans(sight) if segment.length > size]
    if not tall:
        return ()
    sides = tuple(segment.length - size for segment in tall)
    queries = concatenate_ranges([segment.start + size for segment in tall], sides, device)
    keys = concatenate_ranges([first + segment.start for segment in tall], sides, device)
    return (AttentionPiece(queries, keys, Segments(sides, sides), CAUSAL),)


def _triangle(segment: TokenSpan, size: int, first: int) -> AttentionPiece | None:
    start, stop = max(segment.row_start, size), segment.row_start + segment.length
    if start >= stop:
        return None
    here = segment.start + start - segment.row_start
    queries, keys = slice(here, segment.start + segment.length), slice(first, first + stop - size)
    return AttentionPiece(queries, keys, Segments((stop - start,), (stop - size,)), CAUSAL)


@lru_cache(maxsize=8)
def window_pieces(sight: MaskSpec, device: torch.device) -> tuple[AttentionPiece, ...]:
    """What the triangles leave, in as few pieces of equal problems as there are; of packed rows in one."""
    size, right = sight.layout.block_size, 0 if sight.layout.noisy_causal else None
    if sight.documents is not None:
        return (_window(list(_noisy_blocks(sight)), Window(size - 1, right), size, device),)
    alike = groupby(_noisy_blocks(sight), lambda block: (block.length, block.before is None))
    return tuple(
        _window(list(group), Window(None if at_start else size - 1, right), size, device)
        for (_, at_start), group in alike
    )


def _window(found: Sequence[NoisyBlock], band: Window, size: int, device: torch.device) -> AttentionPiece:
    """Neighbouring blocks, each over [the clean block before it | itself]."""
    own = tuple(block.length for block in found)
    before = [0 if block.before is None else size for block in found]
    # A part of the keys for each block before, and one for each block itself.
    starts = [start for block in found for start in (block.before or 0, block.start)]
    counts = [count for pair in zip(before, own, strict=True) for count in pair]
    queries = slice(found[0].start, found[-1].start + own[-1])
    problems = Segments(own, tuple(a + b for a, b in zip(before, own, strict=True)))
    return AttentionPiece(queries, concatenate_ranges(starts, counts, device), problems, band)


def _noisy_blocks(sight: MaskSpec) -> Iterator[NoisyBlock]:
    """The blocks of the rank's noisy tokens, in order."""
    size, first = sight.layout.block_size, sight.own_noisy
    for segment in _document_spans(sight) if sight.documents is not None else sight.cut.segments(sight.layout):
        begins = sight.documents is not None or segment.row_start == 0  # with a document
        for offset in range(0, segment.length, size):
            before = None if begins and offset == 0 else first + segment.row_start + offset - size
            yield NoisyBlock(segment.start + offset, min(size, segment.length - offset), before)


def _document_spans(sight: MaskSpec) -> list[TokenSpan]:
    """The documents of one flat row of packed ones."""
    assert sight.documents is not None and len(sight.documents) == 1, f"{sight}: not one flat row"
    found, start = [], 0
    for length in sight.documents[0]:
        found.append(TokenSpan(start, start, length))
        start += length
    return found


def concatenate_ranges(starts: Sequence[int], counts: Sequence[int], device: torch.device) -> Tensor:
    """starts[0], starts[0] + 1, ... counts[0] of them, then those from starts[1], and so on: int64."""
    with torch.inference_mode(False):  # pieces are kept, and training may come after an evaluation
        repeats = torch.tensor(counts)
        shift = torch.tensor(starts) - repeats.cumsum(0) + repeats
        return copy_to_device(shift.repeat_interleave(repeats) + torch.arange(sum(counts)), device)


def refuse_packed_documents(name: str, packed: bool, context_ranks: int) -> None:
    """Raises: UserError for rows of several documents where the pieces of them are not made."""
    require(
        not packed or (context_ranks == 1 and name != "te+mod"),
        f"train.attention={name} with packed documents (diffusion.document_mask=True)"
        + (f" and parallel.context={context_ranks}" if context_ranks > 1 else ""),
        "flex, flex+fa4, reference, and without context parallelism te, te+near_flex, te+flex; sdpa on a CPU",
        "set train.attention=auto",
    )
