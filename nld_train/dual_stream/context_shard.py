"""Context parallelism: which part of a row a rank holds, and its part of a batch. This is arithmetic; nothing is sent.

The L positions are divided into 2c chunks for c ranks. Rank r holds chunks r and 2c-1-r of both halves, in the order
[noisy r, noisy 2c-1-r | clean r, clean 2c-1-r]: an early chunk sees little and a late one sees much, so every rank has
the same amount of attention to compute, and the noisy blocks of a rank meet their own clean tokens there.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nld_train.dual_stream.row_layout import RowLayout
from nld_train.types import Batch, HeadRequest


@dataclass(frozen=True)
class TokenSpan:
    """Tokens that are neighbours in the row, and neighbours on the rank too."""

    start: int  # index of the first one among the rank's tokens
    row_start: int  # its index in the row
    length: int  # tokens


@dataclass(frozen=True)
class ContextShard:
    """One context rank's share of every row. It is hashable, because masks are cached by it.

    The rank's query positions, S/c of them, are its tokens of both halves. Its key positions are the noisy tokens that
    its queries may see, followed by all clean tokens in natural order. Where a row is one document, those noisy tokens
    are the rank's own, because blocks do not straddle chunks; where packed documents start blocks anywhere (`packed`),
    they are all L.
    """

    ranks: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.ranks, f"context rank {self.rank} of {self.ranks}"

    def tokens(self, layout: RowLayout) -> int:
        """L/c: tokens of a row on this rank."""
        assert self.ranks == 1 or layout.length % (2 * self.ranks) == 0, f"{layout} in {2 * self.ranks} chunks"
        return layout.length // self.ranks

    def segments(self, layout: RowLayout) -> list[TokenSpan]:
        """The rank's two chunks, or the whole row where there is one rank."""
        if self.ranks == 1:
            return [TokenSpan(0, 0, layout.length)]
        chunk = self.tokens(layout) // 2
        first, second = chunk_order(self.ranks)[2 * self.rank : 2 * self.rank + 2]
        return [TokenSpan(0, first * chunk, chunk), TokenSpan(chunk, second * chunk, chunk)]

    def noisy_segments(self, layout: RowLayout) -> list[TokenSpan]:
        """The same of the noisy half, which beside images is a row's one segment of L_text places; none without it."""
        if not layout.dual:
            return []
        return [TokenSpan(0, 0, layout.noisy_length)] if self.ranks == 1 else self.segments(layout)

    def queries_at(self, layout: RowLayout, index: Tensor) -> Tensor:
        """Where the rank's queries number `index` [...] (of S/c) stand in the whole row: input positions [...] int64.

        Only element-wise operators are used, so that this also runs inside an attention kernel.
        """
        if self.ranks == 1:
            return index
        count = self.tokens(layout)
        token = self._row_token(layout, index % count)
        return torch.where(index < (count if layout.dual else 0), token, token + layout.clean_start)

    def keys_at(self, layout: RowLayout, index: Tensor, packed: bool) -> Tensor:
        """Where the keys number `index` [...] (of K) stand in the whole row: input positions [...] int64."""
        own = self._own_noisy(layout, packed)
        if not own:
            return index
        return torch.where(index < own, self._row_token(layout, index), index - own + layout.clean_start)

    def queries(self, layout: RowLayout, device: torch.device | None = None) -> Tensor:
        """Input positions of all the rank's queries: [S/c] int64."""
        return self.queries_at(layout, torch.arange(layout.size // self.ranks, device=device))

    def keys(self, layout: RowLayout, packed: bool, device: torch.device | None = None) -> Tensor:
        """Input positions of all keys that the rank's queries are given: [K] int64.

        K is L/c + L for a doubled row, 2L for a packed one, and L where there is a clean half alone.
        """
        return self.keys_at(layout, torch.arange(self.key_count(layout, packed), device=device), packed)

    def key_count(self, layout: RowLayout, packed: bool) -> int:
        """K: how many keys the rank's queries are given."""
        own = self._own_noisy(layout, packed)
        return own + layout.length if own else layout.size

    def _own_noisy(self, layout: RowLayout, packed: bool) -> int:
        """How many noisy keys are the rank's own alone; 0 where the keys are all input positions in natural order."""
        if packed or not layout.dual or self.ranks == 1:
            return 0
        count = self.tokens(layout)
        assert count // 2 % layout.block_size == 0, f"{layout}: blocks straddle the {2 * self.ranks} chunks"
        return count

    def _row_token(self, layout: RowLayout, index: Tensor) -> Tensor:
        """The row's token that is the rank's token number `index` [...]: [...] int64."""
        first, second = self.segments(layout)
        return index + torch.where(index < second.start, first.row_start, second.row_start - second.start)


WHOLE = ContextShard()


def chunk_order(ranks: int) -> list[int]:
    """The row's 2c chunks in the order in which the ranks hold them: rank 0's two, rank 1's two, ..."""
    return [number for rank in range(ranks) for number in (rank, 2 * ranks - 1 - rank)]


def shard_batch(batch: Batch, layout: RowLayout, shard: ContextShard) -> Batch:
    """The rank's part of a batch of whole rows: input_ids [B, S] -> [B, S/c], flat positions numbered in those.

    Documents stay whole, because positions in a document are counted from its start. Rank 0 keeps the counts and the
    other ranks get 0, so that the sum over the ranks is the count of the whole batch.
    """
    if shard.ranks == 1:
        return batch
    inputs = shard.queries(layout)
    ar_kept, ar_positions = _renumbered(batch.ar_positions, layout, inputs)
    diffusion_kept, diffusion_positions = _renumbered(batch.diffusion_positions, layout, inputs)
    share = 1.0 if shard.rank == 0 else 0.0
    return replace(
        batch,
        input_ids=batch.input_ids[:, inputs],
        ar_positions=ar_positions,
        ar_targets=batch.ar_targets[ar_kept],
        ar_weights=batch.ar_weights[ar_kept],
        diffusion_positions=diffusion_positions,
        diffusion_targets=batch.diffusion_targets[diffusion_kept],
        diffusion_weights=batch.diffusion_weights[diffusion_kept],
        denominator=batch.denominator * share,
        maskable=batch.maskable * share,
    )


def shard_request(request: HeadRequest, layout: RowLayout, shard: ContextShard) -> tuple[Tensor, HeadRequest]:
    """Which of a request's R positions are this rank's, bool [R]; and its part of the request, as of a batch."""
    inputs = shard.queries(layout, request.input_ids.device)
    kept, positions = _renumbered(request.head_positions, layout, inputs)
    return kept, replace(request, input_ids=request.input_ids[:, inputs], head_positions=positions)


def _renumbered(flat: Tensor, layout: RowLayout, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Which flat positions [R] of the whole batch are among `inputs` [S/c], bool [R]; and their flat positions here."""
    here = torch.full((layout.size,), -1, device=flat.device)
    here[inputs] = torch.arange(inputs.numel(), device=flat.device)
    position = here[flat % layout.size]
    kept = position >= 0
    return kept, (flat // layout.size * inputs.numel() + position)[kept]
