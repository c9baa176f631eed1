"""The doubled row: [noisy | clean], the same positions in both halves."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.noise.blocks import document_positions, row_block_ids
from nld_train.row_arithmetic import count_visible_pairs


@dataclass(frozen=True)
class RowLayout:
    """The shape of the model's input row. It is hashable, because masks are cached by it."""

    length: int  # L
    block_size: int  # tokens
    dual: bool  # True: [noisy | clean]; False: the clean half alone
    # True: a noisy token sees its own block only up to itself. So the drafter's verifier reads drafts.
    noisy_causal: bool = False

    @property
    def size(self) -> int:
        """S: input positions."""
        return 2 * self.length if self.dual else self.length

    @property
    def visible_pairs(self) -> int:
        """(query, key) pairs that attention computes in a row of one document."""
        return count_visible_pairs(self.length, self.block_size, self.dual, self.noisy_causal)

    @property
    def clean_start(self) -> int:
        """Input position of the first clean token."""
        return self.length if self.dual else 0


@dataclass(frozen=True)
class PositionInfo:
    """What visibility needs to know of input positions. The fields have one shape, or broadcast to one."""

    noisy: Tensor  # bool: whether the position lies in the noisy half
    position: Tensor  # int64: token of its document, from 0
    block: Tensor  # int64: block of its row, from 0
    document: Tensor  # int64
    noisy_causal: bool = False  # the layout's setting

    def at(self, *index: Tensor) -> "PositionInfo":
        """The same of the positions at `index`: e.g. at(batch, position) picks from fields [B, S]. Any shape [...]."""
        return PositionInfo(
            self.noisy[index], self.position[index], self.block[index], self.document[index], self.noisy_causal
        )


def locate_positions(layout: RowLayout, index: Tensor) -> PositionInfo:
    """The info of input positions `index` [...] int64 in a row that is one document; the fields are [...] too.

    This is arithmetic on the index, without a table to read: attention kernels evaluate it as they go.
    """
    position = index % layout.length
    block, document = position // layout.block_size, torch.zeros_like(index)
    return PositionInfo(index < layout.clean_start, position, block, document, layout.noisy_causal)


def locate_row(layout: RowLayout, documents: Tensor | None = None, device: torch.device | None = None) -> PositionInfo:
    """The info of all input positions: fields [S], or [B, S] for `documents` [B, L], then on their device."""
    if documents is None:
        return locate_positions(layout, torch.arange(layout.size, device=device))
    assert documents.shape[-1] == layout.length, f"{documents.shape[-1]} document numbers for {layout.length} tokens"
    halves = layout.size // layout.length
    index = torch.arange(layout.size, device=documents.device)
    return PositionInfo(
        noisy=(index < layout.clean_start).expand(*documents.shape[:-1], -1),
        position=torch.cat([document_positions(documents)] * halves, -1),
        block=torch.cat([layout_block_ids(layout, documents)] * halves, -1),
        document=torch.cat([documents] * halves, -1),
        noisy_causal=layout.noisy_causal,
    )


def rotary_positions(layout: RowLayout, documents: Tensor | None = None, device: torch.device | None = None) -> Tensor:
    """Positions for the rotary embedding and the query scale: 0..L-1 in both halves, from 0 again at each document.

    `documents`: [B, L] int64 non-decreasing, or None. Returns: [S], or [B, S] with documents; int64.
    """
    return locate_row(layout, documents, device).position


def layout_block_ids(layout: RowLayout, documents: Tensor | None = None) -> Tensor:
    """Block number of every token, counted over the row, where each document starts a new block.

    `documents`: [L] or [B, L] int64 non-decreasing, or None. Returns: int64, [L] or the shape of `documents`.
    """
    return row_block_ids(layout.length, layout.block_size, documents)
