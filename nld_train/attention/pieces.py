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

from nld_train.attention.engine import CAUSAL, Band, Engine, Problems
from nld_train.config import require
from nld_train.dual_stream.context import Segment
from nld_train.dual_stream.sight import Sight, sent

Where = slice | Tensor  # places along the tokens; int64 where they are no slice


@dataclass(frozen=True, eq=False)
class Piece:
    """Queries over keys, problem by problem. What it takes of tensors: query [T, N, D] of one half, key and value
    [K, M, D], all of the rank's; see Engine for what comes back, of its own queries and keys."""

    queries: Where  # among the rank's tokens of one half
    keys: Where  # among the rank's keys
    problems: Problems
    band: Band

    def inputs(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return taken(query, self.queries), taken(key, self.keys), taken(value, self.keys)

    def forward(self, engine: Engine, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return engine.forward(*self.inputs(query, key, value), self.problems, self.band, scale)

    def backward(
        self,
        engine: Engine,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_output, out, stats = taken(gradient, self.queries), taken(output, self.queries), taken(lse, self.queries, 1)
        inputs = self.inputs(query, key, value)
        return engine.backward(d_output, *inputs, out, stats, self.problems, self.band, scale)


@dataclass(frozen=True)
class Block:
    """A diffusion block of noisy queries."""

    start: int  # place of its first query among the rank's noisy tokens
    length: int
    before: int | None  # place of the clean block before it among the rank's keys; None: a document's first block


def taken(x: Tensor, where: Where, dim: int = 0) -> Tensor:
    """What of a tensor lies at `where`: a view of a slice, a copy of anything else."""
    if isinstance(where, Tensor):
        return x.index_select(dim, where)
    return x.narrow(dim, where.start, where.stop - where.start)


def put(x: Tensor, where: Where, part: Tensor, dim: int = 0) -> None:
    """The opposite of `taken`, in place. Places differ from each other, so that no order is left open."""
    if isinstance(where, Tensor):
        x.index_copy_(dim, where, part)
    else:
        taken(x, where, dim).copy_(part)


def add(x: Tensor, where: Where, part: Tensor) -> None:
    """x[where] += part, in place."""
    if isinstance(where, Tensor):
        put(x, where, taken(x, where) + part)
    else:
        taken(x, where).add_(part)


def clean(sight: Sight) -> tuple[Piece, ...]:
    """The clean half: what is causal as it is."""
    first = sight.own_noisy
    if sight.documents is not None:
        (lengths,) = sight.documents
        everything = slice(0, sight.layout.length)
        return (Piece(everything, slice(first, first + sight.layout.length), Problems(lengths, lengths), CAUSAL),)
    found = []
    for segment in sight.cut.segments(sight.layout):
        stop = segment.row_start + segment.length
        queries = slice(segment.start, segment.start + segment.length)
        found.append(Piece(queries, slice(first, first + stop), Problems((segment.length,), (stop,)), CAUSAL))
    return tuple(found)


@lru_cache(maxsize=8)
def shifted(sight: Sight, device: torch.device) -> tuple[Piece, ...]:
    """The triangles of the noisy half: of each of a rank's segments that has earlier blocks, or of all documents."""
    size, first = sight.layout.block_size, sight.own_noisy
    if sight.documents is None:
        cut = [_triangle(segment, size, first) for segment in sight.cut.segments(sight.layout)]
        return tuple(piece for piece in cut if piece is not None)
    tall = [segment for segment in documents(sight) if segment.length > size]
    if not tall:
        return ()
    sides = tuple(segment.length - size for segment in tall)
    queries = ranges([segment.start + size for segment in tall], sides, device)
    keys = ranges([first + segment.start for segment in tall], sides, device)
    return (Piece(queries, keys, Problems(sides, sides), CAUSAL),)


def _triangle(segment: Segment, size: int, first: int) -> Piece | None:
    start, stop = max(segment.row_start, size), segment.row_start + segment.length
    if start >= stop:
        return None
    here = segment.start + start - segment.row_start
    queries, keys = slice(here, segment.start + segment.length), slice(first, first + stop - size)
    return Piece(queries, keys, Problems((stop - start,), (stop - size,)), CAUSAL)


@lru_cache(maxsize=8)
def windows(sight: Sight, device: torch.device) -> tuple[Piece, ...]:
    """What the triangles leave, in as few pieces of equal problems as there are; of packed rows in one."""
    size, right = sight.layout.block_size, 0 if sight.layout.noisy_causal else None
    if sight.documents is not None:
        return (_window(list(blocks(sight)), Band(size - 1, right), size, device),)
    alike = groupby(blocks(sight), lambda block: (block.length, block.before is None))
    return tuple(
        _window(list(group), Band(None if at_start else size - 1, right), size, device)
        for (_, at_start), group in alike
    )


def _window(found: Sequence[Block], band: Band, size: int, device: torch.device) -> Piece:
    """Neighbouring blocks, each over [the clean block before it | itself]."""
    own = tuple(block.length for block in found)
    before = [0 if block.before is None else size for block in found]
    # A part of the keys for each block before, and one for each block itself.
    starts = [start for block in found for start in (block.before or 0, block.start)]
    counts = [count for pair in zip(before, own, strict=True) for count in pair]
    queries = slice(found[0].start, found[-1].start + own[-1])
    problems = Problems(own, tuple(a + b for a, b in zip(before, own, strict=True)))
    return Piece(queries, ranges(starts, counts, device), problems, band)


def blocks(sight: Sight) -> Iterator[Block]:
    """The blocks of the rank's noisy tokens, in order."""
    size, first = sight.layout.block_size, sight.own_noisy
    for segment in documents(sight) if sight.documents is not None else sight.cut.segments(sight.layout):
        begins = sight.documents is not None or segment.row_start == 0  # with a document
        for offset in range(0, segment.length, size):
            before = None if begins and offset == 0 else first + segment.row_start + offset - size
            yield Block(segment.start + offset, min(size, segment.length - offset), before)


def documents(sight: Sight) -> list[Segment]:
    """The documents of one flat row of packed ones."""
    assert sight.documents is not None and len(sight.documents) == 1, f"{sight}: not one flat row"
    found, start = [], 0
    for length in sight.documents[0]:
        found.append(Segment(start, start, length))
        start += length
    return found


def ranges(starts: Sequence[int], counts: Sequence[int], device: torch.device) -> Tensor:
    """starts[0], starts[0] + 1, ... counts[0] of them, then those from starts[1], and so on: int64."""
    with torch.inference_mode(False):  # pieces are kept, and training may come after an evaluation
        repeats = torch.tensor(counts)
        shift = torch.tensor(starts) - repeats.cumsum(0) + repeats
        return sent(shift.repeat_interleave(repeats) + torch.arange(sum(counts)), device)


def refuse_packed(name: str, packed: bool, context_ranks: int) -> None:
    """Raises: UserError for rows of several documents where the pieces of them are not made."""
    require(
        not packed or (context_ranks == 1 and name != "te+mod"),
        f"train.attention={name} with packed documents (diffusion.document_mask=True)"
        + (f" and parallel.context={context_ranks}" if context_ranks > 1 else ""),
        "flex, flex+fa4, reference, and without context parallelism te, te+near_flex, te+flex; sdpa on a CPU",
        "set train.attention=auto",
    )
