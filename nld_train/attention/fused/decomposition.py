"""The doubled row in pieces that fused kernels have a mask for: plain causal calls, and windows over neighbours.

With b = block_size, noisy token i of block m = i // b sees the clean tokens 0..m*b-1 and the noisy tokens of block m.

1. The shifted triangle. Since m*b > i - b, noisy token i sees at least the clean tokens 0..i-b. That is causal
   attention of the queries b..L-1 over the keys 0..L-b-1, square, and as fast as any.
2. The local part is the rest: the clean tokens i-b+1..m*b-1, at most b - 1 of them and all in the block before, and the
   token's own noisy block. For the block's query number o, keys laid side by side as [clean block m-1 | noisy block m]
   make it the window "key j >= o + 1 of 2b keys".
3. The two are merged by log-sum-exp:

    lse = ln(exp(lse_1) + exp(lse_2)),   output = exp(lse_1 - lse) * output_1 + exp(lse_2 - lse) * output_2

   The backward of each piece is run with the merged lse and output, which makes the sum exact (kernel.FusedKernel).

Packed documents are treated alike, document by document: the triangles of all of them are the segments of one piece,
and so are all their windows. A document that is no longer than a block has no triangle.

Beside images a document falls into stretches of text, each of which starts a block. A stretch is treated as a document
is, and sees besides all clean tokens of its document before it, images included, without a mask: one more piece for the
second stretch of every document (the first, where an image stands before it), one for the third, and so on.

What it costs at L 4096, b 32, one head. The clean half has 8,390,656 causal pairs and the shifted triangle 8,260,080,
all of them visible. The windows compute 261,120 pairs, of which 194,064 are visible. In sum 1.004 pairs are computed
for each visible one. Kernels work in tiles: tiles of 128 x 128 make it 528 + 528 + 128 tiles, against 1,056 for plain
causal attention of as many pairs: 1.12. There is one call for the clean half, one for the triangle, one for the
windows, one for the first block, and one more for a last block that is cut short; the backward has as many. Packed rows
take one call each for the clean half, the triangles and the windows. Every query is merged at most once.

Two ways were weighed and left out. Halving the row (level by level, the odd half sees the whole even half before it)
needs no mask, but it takes 5 calls to get down to 128 tokens, merges half of the queries at each level, and still
leaves a masked piece. Giving chunk c of size C the keys 0..cC takes one call a chunk, and masks L * 2C pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from nld_train.attention.fused.kernel import CAUSAL, QKV, FusedKernel, MergedResult, Segments, Window
from nld_train.dual_stream.context_shard import TokenSpan
from nld_train.dual_stream.mask_spec import MaskSpec, copy_to_device

TokenIndex = slice | Tensor  # which tokens; a Tensor is [n] int64


@dataclass(frozen=True, eq=False)
class AttentionPiece:
    """Queries over keys, segment by segment.

    Its methods take all of the rank's tensors, query [T, N, D] of one half and key, value [K, M, D], and pick the
    piece's own T' queries and K' keys from them.
    """

    queries: TokenIndex  # among the rank's tokens of one half
    keys: TokenIndex  # among the rank's keys
    segments: Segments
    window: Window

    def select_inputs(self, qkv: QKV) -> QKV:
        """The piece's own query [T', N, D]; key, value [K', M, D]."""
        return QKV(take_at(qkv.query, self.queries), take_at(qkv.key, self.keys), take_at(qkv.value, self.keys))

    def forward(self, kernel: FusedKernel, qkv: QKV, scale: float) -> tuple[Tensor, Tensor]:
        """The output [T', N, D] of the piece's queries over its keys, and their lse [N, T']."""
        return kernel.forward(self.select_inputs(qkv), self.segments, self.window, scale)

    def backward(self, kernel: FusedKernel, qkv: QKV, merged: MergedResult, scale: float) -> QKV:
        """The piece's part of the gradients of its own query [T', N, D]; key, value [K', M, D]."""
        own = MergedResult(
            take_at(merged.output, self.queries),
            take_at(merged.lse, self.queries, 1),
            take_at(merged.gradient, self.queries),
        )
        return kernel.backward(self.select_inputs(qkv), own, self.segments, self.window, scale)


@dataclass(frozen=True)
class NoisyBlock:
    """A diffusion block of noisy queries."""

    start: int  # index of its first query among the rank's noisy tokens
    length: int
    before: int | None  # index, among the rank's keys, of the clean block before it; None: a document's first block


def take_at(x: Tensor, where: TokenIndex, dim: int = 0) -> Tensor:
    """The tokens `where` along a dimension of x [..., L, ...]: a view if `where` is a slice, else a copy."""
    if isinstance(where, Tensor):
        return x.index_select(dim, where)
    return x.narrow(dim, where.start, where.stop - where.start)


def put_at(x: Tensor, where: TokenIndex, part: Tensor, dim: int = 0) -> None:
    """Write `part` [..., n, ...] to the tokens `where` of x [..., L, ...], in place.

    No token stands in `where` twice, so that the result does not depend on an order.
    """
    if isinstance(where, Tensor):
        x.index_copy_(dim, where, part)
    else:
        take_at(x, where, dim).copy_(part)


def add_at(x: Tensor, where: TokenIndex, part: Tensor) -> None:
    """Add `part` [n, ...] to the tokens `where` of x [L, ...], in place."""
    if isinstance(where, Tensor):
        put_at(x, where, take_at(x, where) + part)
    else:
        take_at(x, where).add_(part)


def clean_pieces(spec: MaskSpec) -> tuple[AttentionPiece, ...]:
    """The clean half, which is causal as it is: a piece for each of the rank's segments, or one for all documents."""
    first = spec.own_noisy_count
    if spec.documents is not None:
        (lengths,) = spec.documents
        queries, keys = slice(0, spec.layout.length), slice(first, first + spec.layout.length)
        return (AttentionPiece(queries, keys, Segments(lengths, lengths, of_documents=True), CAUSAL),)
    found = []
    for segment in spec.shard.segments(spec.layout):
        stop = segment.row_start + segment.length
        queries = slice(segment.start, segment.start + segment.length)
        found.append(AttentionPiece(queries, slice(first, first + stop), Segments((segment.length,), (stop,)), CAUSAL))
    return tuple(found)


@lru_cache(maxsize=8)
def shifted_pieces(spec: MaskSpec, device: torch.device) -> tuple[AttentionPiece, ...]:
    """What noisy tokens see but for the local part. The shifted triangles: of each of a rank's segments that has
    earlier blocks, or one piece for all documents. Beside images also what stands before each stretch of text."""
    size, first = spec.layout.block_size, spec.own_noisy_count
    if spec.documents is None:
        triangles = [_triangle(segment, size, first) for segment in spec.shard.segments(spec.layout)]
        return tuple(piece for piece in triangles if piece is not None)
    spans = _text_spans(spec)
    tall = [span for span in spans if span.length > size]
    sides = tuple(span.length - size for span in tall)
    queries = [span.start + size for span in tall]
    keys = [first + span.row_start for span in tall]
    packed = [_packed_piece(queries, sides, keys, sides, CAUSAL, device)] if tall else []
    return (*packed, *_earlier_pieces(spans, first, device))


def _earlier_pieces(spans: Sequence["TextSpan"], first: int, device: torch.device) -> Iterator[AttentionPiece]:
    """The noisy tokens of stretches over all clean tokens of their document before them.

    No two stretches of one document share a piece, so that no key stands in a piece twice.
    """
    behind = [span for span in spans if span.before]
    for number in sorted({span.number for span in behind}):
        these = [span for span in behind if span.number == number]
        keys = [first + span.row_start - span.before for span in these]
        lengths, before = tuple(span.length for span in these), tuple(span.before for span in these)
        yield _packed_piece([span.start for span in these], lengths, keys, before, Window(), device)


def _packed_piece(
    queries: Sequence[int],
    query_counts: tuple[int, ...],
    keys: Sequence[int],
    key_counts: tuple[int, ...],
    window: Window,
    device: torch.device,
) -> AttentionPiece:
    """A piece of segments that start at `queries` and `keys`."""
    here = concatenate_ranges(queries, query_counts, device)
    there = concatenate_ranges(keys, key_counts, device)
    return AttentionPiece(here, there, Segments(query_counts, key_counts, of_documents=True), window)


def _triangle(segment: TokenSpan, size: int, first: int) -> AttentionPiece | None:
    """The segment's queries from the row's token `size` on, each over the clean tokens up to `size` before it.

    `first` is the index of the first clean key. None where the segment lies in the row's first block.
    """
    start, stop = max(segment.row_start, size), segment.row_start + segment.length
    if start >= stop:
        return None
    here = segment.start + start - segment.row_start
    queries, keys = slice(here, segment.start + segment.length), slice(first, first + stop - size)
    return AttentionPiece(queries, keys, Segments((stop - start,), (stop - size,)), CAUSAL)


@lru_cache(maxsize=8)
def window_pieces(spec: MaskSpec, device: torch.device) -> tuple[AttentionPiece, ...]:
    """The local part, which the triangles leave: windows over [the clean block before | the noisy block itself].

    Packed rows make one piece. Otherwise neighbouring blocks of one shape share a piece, because kernels are faster
    where all segments are alike: the first block, the blocks with one before them, and a last one that is cut short.
    """
    # 1. How far a query sees to the right: to the end of its block, or up to itself.
    size, right = spec.layout.block_size, 0 if spec.layout.noisy_causal else None
    # 2. How far to the left. Query o of a whole block is aligned with key size + o of 2 * size, and sees from key o + 1
    #    on: left = size - 1. A block cut short to n queries is aligned with the last n of size + n keys: the same.
    window = Window(size - 1, right)
    if spec.documents is not None:
        piece = _window_piece(list(_noisy_blocks(spec)), window, size, device)
        return (replace(piece, segments=replace(piece.segments, of_documents=True)),)
    # 3. A first block has its own keys alone, and sees to their start: no bound, which kernels have a faster mask for.
    first_window = Window(None, right)
    alike = groupby(_noisy_blocks(spec), lambda block: (block.length, block.before is None))
    return tuple(
        _window_piece(list(group), first_window if is_first else window, size, device) for (_, is_first), group in alike
    )


def _window_piece(blocks: Sequence[NoisyBlock], window: Window, size: int, device: torch.device) -> AttentionPiece:
    """Neighbouring blocks, each over [the clean block before it | itself]."""
    # 1. Each block is a segment: its queries, over `size` clean keys if a block is before it, and its own noisy ones.
    own = tuple(block.length for block in blocks)
    before = [0 if block.before is None else size for block in blocks]
    segments = Segments(own, tuple(a + b for a, b in zip(before, own, strict=True)))
    # 2. Its keys lie in two ranges, which alternate along the piece: the block before, then the block itself.
    starts = [start for block in blocks for start in (block.before or 0, block.start)]
    counts = [count for pair in zip(before, own, strict=True) for count in pair]
    keys = concatenate_ranges(starts, counts, device)
    # 3. The queries of neighbouring blocks are one range.
    queries = slice(blocks[0].start, blocks[-1].start + own[-1])
    return AttentionPiece(queries, keys, segments, window)


def _noisy_blocks(spec: MaskSpec) -> Iterator[NoisyBlock]:
    """The blocks of the rank's noisy tokens, in order."""
    size, first = spec.layout.block_size, spec.own_noisy_count
    spans = _text_spans(spec) if spec.packed else []
    for segment in spans if spec.packed else spec.shard.segments(spec.layout):
        starts_document = spec.packed or segment.row_start == 0
        for offset in range(0, segment.length, size):
            before = None if starts_document and offset == 0 else first + segment.row_start + offset - size
            yield NoisyBlock(segment.start + offset, min(size, segment.length - offset), before)
    # Padding of the noisy half sees itself alone.
    text = spans[-1].start + spans[-1].length if spans else 0
    for start in range(text, first, size) if spec.clean_only is not None else ():
        yield NoisyBlock(start, min(size, first - start), None)


@dataclass(frozen=True)
class TextSpan(TokenSpan):
    """A stretch of text of a packed document: its `start` among the noisy tokens, its `row_start` among the clean."""

    before: int  # clean tokens of its document before it
    number: int  # among the stretches of its document


def _text_spans(spec: MaskSpec) -> list[TextSpan]:
    """The stretches of text of a packed row, or of rows laid out as one; without images, its documents."""
    assert spec.documents is not None and len(spec.documents) == 1, f"{spec}: not a single packed row"
    images = [] if spec.clean_only is None else list(spec.clean_only[0])
    found: list[TextSpan] = []
    noisy = end = 0
    for length in spec.documents[0]:
        start, end, number = end, end + length, 0
        # Spans without a noisy copy may reach over the ends of documents.
        cuts = [(max(a, start), min(a + count, end)) for a, count in images if a < end and a + count > start]
        for left, right in zip([start, *(b for _, b in cuts)], [*(a for a, _ in cuts), end], strict=True):
            if left < right:
                found.append(TextSpan(noisy, left, right - left, left - start, number))
                noisy, number = noisy + right - left, number + 1
    return found


def concatenate_ranges(starts: Sequence[int], counts: Sequence[int], device: torch.device) -> Tensor:
    """counts[0] numbers from starts[0] on, then counts[1] from starts[1] on, and so on: [sum of counts] int64."""
    with torch.inference_mode(False):  # pieces are cached, and training may come after an evaluation
        repeats = torch.tensor(counts)
        shift = torch.tensor(starts) - repeats.cumsum(0) + repeats
        return copy_to_device(shift.repeat_interleave(repeats) + torch.arange(sum(counts)), device)
