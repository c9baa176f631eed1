"""The doubled row in pieces that fused kernels have a mask for: plain causal calls, and one window over neighbours.

The noisy half sees, of the clean tokens, those of earlier blocks. Shifted by one block that is a plain causal triangle:
noisy token i certainly sees the clean tokens 0..i-b (b = block_size), which is causal attention of the queries b..L-1
over the keys 0..L-b-1, as square and as fast as any. What is missing is near: the rest of the block before (the clean
tokens after i-b, at most b - 1 of them) and the own noisy block. Laid side by side, [clean block j-1 | noisy block j],
that is a window: query o of the block sees the keys from o+1 to the end. The two are merged by log-sum-exp:

    lse = ln(exp(lse_1) + exp(lse_2)),   output = exp(lse_1 - lse) * output_1 + exp(lse_2 - lse) * output_2

and the backward of each piece is run with the merged lse and output, which makes the sum exact (engine.py).

Arithmetic at L 4096, b 32, one head: 8,390,656 pairs causal on the clean half, 8,260,080 in the shifted triangle, both
seen to the last one, 261,120 in the windows of which 194,064 are seen: 1.004 computed pairs a useful one. Kernels work
in tiles; in tiles of 128 x 128 it is 528 + 528 + 128 against 1,056 for plain causal attention of as many pairs: 1.12.
Calls: clean 1, shifted 1, windows 1, the first block 1, and 1 for a last block that is cut short; as many backward.
Every query is merged at most once.

Weighed and left out: halving the row (level by level, the odd half sees the even half before it whole) needs no mask,
but 5 calls down to 128 tokens, merges half of the queries at each level, and still leaves a masked piece. Chunk c of
size C against the keys 0..cC: one call a chunk, and masked L * 2C.
"""

from dataclasses import dataclass
from functools import lru_cache

from nld_train.attention.engine import Band
from nld_train.config import require
from nld_train.dual_stream.context import Cut
from nld_train.dual_stream.layout import Layout


@dataclass(frozen=True)
class Shifted:
    """Noisy queries over the clean keys of earlier blocks, causal with the last ones level. Rows are one document."""

    queries: slice  # of the rank's noisy tokens
    keys: int  # clean keys, from the row's first on


@dataclass(frozen=True)
class Window:
    """Neighbouring blocks of noisy queries, each over the clean block before it and its own noisy one."""

    queries: slice  # of the rank's noisy tokens: `blocks` blocks of equal length
    blocks: int
    before: slice  # clean keys: the blocks before, as many, full ones; empty for the row's first block
    band: Band


@lru_cache
def shifted(layout: Layout, cut: Cut) -> tuple[Shifted, ...]:
    """The triangles of a rank: one for each of its segments that has earlier blocks."""
    found = []
    for segment in cut.segments(layout):
        stop = segment.row_start + segment.length
        first = max(segment.row_start, layout.block_size)
        if first < stop:
            start = segment.start + first - segment.row_start
            found.append(Shifted(slice(start, segment.start + segment.length), stop - layout.block_size))
    return tuple(found)


@lru_cache
def windows(layout: Layout, cut: Cut) -> tuple[Window, ...]:
    """What the triangles leave, in as few pieces of equal problems as there are."""
    size, right = layout.block_size, 0 if layout.noisy_causal else None
    found = []
    for segment in cut.segments(layout):
        start, row, left = segment.start, segment.row_start, segment.length
        if row == 0:
            length = min(size, left)
            found.append(Window(slice(start, start + length), 1, slice(0, 0), Band(None, right)))
            start, row, left = start + length, row + length, left - length
        for blocks, length in ((left // size, size), (1, left % size)):
            if blocks and length:
                count = blocks * length
                before = slice(row - size, row - size + blocks * size)
                found.append(Window(slice(start, start + count), blocks, before, Band(size - 1, right)))
                start, row = start + count, row + count
    return tuple(found)


def refuse_packed(packed: bool) -> None:
    """Raises: UserError for rows of several documents."""
    require(
        not packed,
        "train.attention=te with packed documents (diffusion.document_mask=True): rows must be one document",
        "flex, flex+fa4, reference; sdpa on a CPU",
        "set train.attention=auto",
    )
