"""Context parallelism: which part of a row a rank holds, and its part of a batch. Arithmetic alone; nothing is sent.

The L positions are cut into 2c chunks for c ranks. Rank r holds chunks r and 2c-1-r of both halves, in the order
[noisy r, noisy 2c-1-r | clean r, clean 2c-1-r]: an early chunk sees little and a late one much, so every rank has the
same attention to compute, and its noisy blocks meet their own clean tokens.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nld_train.dual_stream.row_layout import RowLayout
from nld_train.types import Batch


@dataclass(frozen=True)
class TokenSpan:
    """Neighbouring tokens of the row that neighbour each other on the rank too."""

    start: int  # place of the first among the rank's tokens
    row_start: int  # and in the row
    length: int  # tokens


@dataclass(frozen=True)
class ContextShard:
    """One context rank's share of every row. Hashable: masks are cached by it.

    Its query positions, S/c: its tokens of both halves. Its key positions: all clean tokens in natural order, after the
    noisy tokens that its queries may see. Where rows are one document those are its own, because blocks do not straddle
    chunks; where packed documents start blocks anywhere (`packed`), they are all noisy tokens.
    """

    ranks: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.ranks, f"context rank {self.rank} of {self.ranks}"

    def tokens(self, layout: RowLayout) -> int:
        """L/c, tokens of a row on this rank."""
        assert self.ranks == 1 or layout.length % (2 * self.ranks) == 0, f"{layout} in {2 * self.ranks} chunks"
        return layout.length // self.ranks

    def segments(self, layout: RowLayout) -> list[TokenSpan]:
        """The rank's chunks, or the whole row where there is one rank."""
        if self.ranks == 1:
            return [TokenSpan(0, 0, layout.length)]
        chunk = self.tokens(layout) // 2
        first, second = chunk_order(self.ranks)[2 * self.rank : 2 * self.rank + 2]
        return [TokenSpan(0, first * chunk, chunk), TokenSpan(chunk, second * chunk, chunk)]

    def queries_at(self, layout: RowLayout, index: Tensor) -> Tensor:
        """Input positions in the whole row of the rank's S/c positions `index` (any shape).

        Element-wise operators only, so that it also runs inside an attention kernel.
        """
        if self.ranks == 1:
            return index
        count = self.tokens(layout)
        token = self._row_token(layout, index % count)
        return torch.where(index < (count if layout.dual else 0), token, token + layout.clean_start)

    def keys_at(self, layout: RowLayout, index: Tensor, packed: bool) -> Tensor:
        """Input positions in the whole row of the keys `index` (any shape) that the rank's queries are given."""
        own = self._own_noisy(layout, packed)
        if not own:
            return index
        return torch.where(index < own, self._row_token(layout, index), index - own + layout.clean_start)

    def queries(self, layout: RowLayout, device: torch.device | None = None) -> Tensor:
        """`queries_at` of all of them: [S/c] int64."""
        return self.queries_at(layout, torch.arange(layout.size // self.ranks, device=device))

    def keys(self, layout: RowLayout, packed: bool, device: torch.device | None = None) -> Tensor:
        """`keys_at` of all of them, int64: [L/c + L] of a doubled row, [2L] if `packed`; [L] of a clean half alone."""
        return self.keys_at(layout, torch.arange(self.key_count(layout, packed), device=device), packed)

    def key_count(self, layout: RowLayout, packed: bool) -> int:
        own = self._own_noisy(layout, packed)
        return own + layout.length if own else layout.size

    def _own_noisy(self, layout: RowLayout, packed: bool) -> int:
        """How many noisy keys are the rank's own alone; 0 where keys are all input positions in natural order."""
        if packed or not layout.dual or self.ranks == 1:
            return 0
        count = self.tokens(layout)
        assert count // 2 % layout.block_size == 0, f"{layout}: blocks straddle the {2 * self.ranks} chunks"
        return count

    def _row_token(self, layout: RowLayout, index: Tensor) -> Tensor:
        first, second = self.segments(layout)
        return index + torch.where(index < second.start, first.row_start, second.row_start - second.start)


WHOLE = ContextShard()


def chunk_order(ranks: int) -> list[int]:
    """The row's 2c chunks in the order in which the ranks hold them: rank 0's two, rank 1's two, ..."""
    return [number for rank in range(ranks) for number in (rank, 2 * ranks - 1 - rank)]


def shard_batch(batch: Batch, layout: RowLayout, cut: ContextShard) -> Batch:
    """The rank's part of a batch of whole rows: flat positions number its S/c inputs.

    Documents stay whole, because places in them are counted from their start. The counts stay with rank 0: added up
    over the ranks they are those of the whole batch.
    """
    if cut.ranks == 1:
        return batch
    inputs = cut.queries(layout)
    ar_kept, ar_positions = _renumbered(batch.ar_positions, layout, inputs)
    diffusion_kept, diffusion_positions = _renumbered(batch.diffusion_positions, layout, inputs)
    share = 1.0 if cut.rank == 0 else 0.0
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


def _renumbered(flat: Tensor, layout: RowLayout, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Which flat positions [R] of the whole batch are among `inputs` [S/c]: bool [R]; and their flat positions here."""
    here = torch.full((layout.size,), -1)
    here[inputs] = torch.arange(inputs.numel())
    place = here[flat % layout.size]
    kept = place >= 0
    return kept, (flat // layout.size * inputs.numel() + place)[kept]
