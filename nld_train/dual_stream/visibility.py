"""Who sees whom in the doubled row [paper sec. 2.2]. Every mask, table and picture comes from `is_visible`."""

import torch
from torch import Tensor

from nld_train.dual_stream.row_layout import PositionInfo, RowLayout, locate_positions, locate_row


def is_visible(query: PositionInfo, key: PositionInfo) -> Tensor:
    """Whether a query position sees a key position: bool, of the shape [...] that the two broadcast to.

    A noisy query sees the noisy keys of its own block and the clean keys of earlier blocks; a clean query sees the
    clean keys up to itself; nobody sees another document. An image's clean tokens count to the block before them
    (noise/blocks.py). Only element-wise operators are used, so that the same
    predicate also runs inside an attention kernel.
    """
    own_block = query.noisy & key.noisy & (query.block == key.block)
    if query.noisy_causal:
        own_block = own_block & (key.position <= query.position)
    earlier_blocks = query.noisy & ~key.noisy & (key.block < query.block)
    causal = ~query.noisy & ~key.noisy & (key.position <= query.position)
    return (query.document == key.document) & (own_block | earlier_blocks | causal)


def visible_between(
    layout: RowLayout,
    queries: Tensor,
    keys: Tensor,
    documents: Tensor | None = None,
    clean_only: Tensor | None = None,
) -> Tensor:
    """A part of the dense table: which input positions `keys` [K] are seen by which `queries` [Q].

    Returns: [Q, K] bool, or [B, Q, K] for `documents` [B, L], where `clean_only` [B, L] bool may say which tokens have
    no noisy copy.
    """
    if documents is None:
        return is_visible(locate_positions(layout, queries[:, None]), locate_positions(layout, keys[None, :]))
    info = locate_row(layout, documents, clean_only)
    rows = torch.arange(documents.shape[0], device=documents.device)[:, None, None]
    return is_visible(info.at(rows, queries[:, None]), info.at(rows, keys[None, :]))


def visible_table(
    layout: RowLayout,
    documents: Tensor | None = None,
    clean_only: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """The dense table, queries down and keys across: [S, S] bool, or [B, S, S] for `documents` [B, L]; `clean_only`
    as for `visible_between`."""
    index = torch.arange(layout.size, device=device if documents is None else documents.device)
    return visible_between(layout, index, index, documents, clean_only)
