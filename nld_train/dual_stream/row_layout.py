"""The row of the model: [noisy | clean], where a token has one position in both halves.

A row of text is doubled. Beside images it is asymmetric: the tokens of images stand in the clean half alone, because
they are never masked, so that the noisy half holds the L_text tokens of text [paper sec. 5.3]. Text keeps its true
positions there. What is left of the noisy half is padding, which sees nothing of the row and is seen by nobody.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.noise.blocks import document_positions, row_block_ids, stretch_numbers
from nld_train.row_arithmetic import count_visible_pairs


@dataclass(frozen=True)
class RowLayout:
    """The shape of the model's input row. It is hashable, because masks are cached by it."""

    length: int  # L
    block_size: int  # tokens
    dual: bool  # True: [noisy | clean]; False: the clean half alone
    # True: a noisy token sees its own block only up to itself. So the drafter's verifier reads drafts.
    noisy_causal: bool = False
    text_length: int | None = None  # L_text: places of the noisy half; None: L, as many as the row has tokens

    @property
    def noisy_length(self) -> int:
        """Places of the noisy half."""
        if not self.dual:
            return 0
        return self.length if self.text_length is None else self.text_length

    @property
    def size(self) -> int:
        """S: input positions."""
        return self.noisy_length + self.length

    @property
    def visible_pairs(self) -> int:
        """(query, key) pairs that attention computes in a row of one document of text."""
        return count_visible_pairs(self.length, self.block_size, self.dual, self.noisy_causal)

    @property
    def clean_start(self) -> int:
        """Input position of the first clean token."""
        return self.noisy_length


@dataclass(frozen=True)
class PositionInfo:
    """What visibility needs to know of input positions. The fields have one shape, or broadcast to one."""

    noisy: Tensor  # bool: whether the position lies in the noisy half
    position: Tensor  # int64: token of its document, from 0
    block: Tensor  # int64: block of its row, from 0
    document: Tensor  # int64; -1: padding of the noisy half
    stretch: Tensor  # int64: the document's part between two images; the document where nothing stands in between
    noisy_causal: bool = False  # the layout's setting

    def at(self, *index: Tensor) -> "PositionInfo":
        """The same of the positions at `index`: e.g. at(batch, position) picks from fields [B, S]. Any shape [...]."""
        return PositionInfo(
            self.noisy[index],
            self.position[index],
            self.block[index],
            self.document[index],
            self.stretch[index],
            self.noisy_causal,
        )


def locate_positions(layout: RowLayout, index: Tensor) -> PositionInfo:
    """The info of input positions `index` [...] int64 in a row that is one document; the fields are [...] too.

    This is arithmetic on the index, without a table to read: attention kernels evaluate it as they go.
    """
    assert layout.noisy_length in (0, layout.length), f"{layout}: which tokens of the row have no noisy copy?"
    position = index % layout.length
    block, document = position // layout.block_size, torch.zeros_like(index)
    return PositionInfo(index < layout.clean_start, position, block, document, document, layout.noisy_causal)


def locate_row(
    layout: RowLayout,
    documents: Tensor | None = None,
    clean_only: Tensor | None = None,
    device: torch.device | None = None,
) -> PositionInfo:
    """The info of all input positions: fields [S], or [B, S] for `documents` [B, L], then on their device.

    `clean_only`: [B, L] bool, tokens without a noisy copy; None: there are none.
    """
    if documents is None:
        return locate_positions(layout, torch.arange(layout.size, device=device))
    assert documents.shape[-1] == layout.length, f"{documents.shape[-1]} document numbers for {layout.length} tokens"
    if clean_only is not None:
        return _locate_asymmetric(layout, documents, clean_only)
    halves = layout.size // layout.length
    index = torch.arange(layout.size, device=documents.device)
    return PositionInfo(
        noisy=(index < layout.clean_start).expand(*documents.shape[:-1], -1),
        position=torch.cat([document_positions(documents)] * halves, -1),
        block=torch.cat([layout_block_ids(layout, documents)] * halves, -1),
        document=torch.cat([documents] * halves, -1),
        stretch=torch.cat([documents] * halves, -1),
        noisy_causal=layout.noisy_causal,
    )


def _locate_asymmetric(layout: RowLayout, documents: Tensor, clean_only: Tensor) -> PositionInfo:
    """The info [B, S] of rows in which tokens of `clean_only` [B, L] have no noisy copy; `documents` [B, L]."""
    # 1. The clean half, as it is.
    clean = [
        document_positions(documents),
        layout_block_ids(layout, documents, clean_only),
        documents,
        stretch_numbers(documents, clean_only),
    ]
    # 2. The noisy half: what its tokens have in the clean half, and behind them padding, a document of its own.
    copied = copied_tokens(layout, clean_only)
    place = torch.arange(layout.noisy_length, device=documents.device) - (~clean_only).sum(-1, keepdim=True)
    nobody = torch.full_like(place, -1)
    padding = [place, place // layout.block_size, nobody, nobody]
    noisy = [
        torch.where(place < 0, field.gather(-1, copied), instead) for field, instead in zip(clean, padding, strict=True)
    ]
    # 3. Both, one behind the other.
    position, block, document, stretch = (torch.cat(pair, -1) for pair in zip(noisy, clean, strict=True))
    is_noisy = torch.arange(layout.size, device=documents.device) < layout.clean_start
    return PositionInfo(is_noisy.expand_as(position), position, block, document, stretch, layout.noisy_causal)


def copied_tokens(layout: RowLayout, clean_only: Tensor) -> Tensor:
    """The row's token that each place of the noisy half copies: [B, L_text] int64. All tokens outside of `clean_only`
    [B, L] come first, in their order; the places behind them are padding, whose numbers mean nothing."""
    return clean_only.long().argsort(dim=-1, stable=True)[..., : layout.noisy_length]


def rotary_positions(
    layout: RowLayout,
    documents: Tensor | None = None,
    clean_only: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Positions for the rotary embedding and the query scale: 0..L-1 in both halves, from 0 again at each document.

    `documents`: [B, L] int64 non-decreasing, or None; `clean_only` as for `locate_row`. Returns: [S], or [B, S] with
    documents; int64.
    """
    return locate_row(layout, documents, clean_only, device).position


def layout_block_ids(layout: RowLayout, documents: Tensor | None = None, clean_only: Tensor | None = None) -> Tensor:
    """Block number of every token, counted over the row, where each document starts a new block, and text behind an
    image too.

    `documents`: [L] or [B, L] int64 non-decreasing, or None; `clean_only` as for `locate_row`. Returns: int64, [L] or
    the shape of `documents`.
    """
    return row_block_ids(layout.length, layout.block_size, documents, clean_only)
