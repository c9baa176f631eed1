"""Who may see whom in the doubled row [paper sec. 2.2]. Every mask, table and picture comes from `visible`."""

import torch
from torch import Tensor

from nld_train.dual_stream.row_layout import PositionInfo, RowLayout, locate_positions, locate_row


def is_visible(query: PositionInfo, key: PositionInfo) -> Tensor:
    """Whether a query place sees a key place: bool, of the shape the two broadcast to.

    Element-wise operators only, so that it also runs inside an attention kernel.
    """
    own_block = query.noisy & key.noisy & (query.block == key.block)
    if query.noisy_causal:
        own_block = own_block & (key.position <= query.position)
    earlier_blocks = query.noisy & ~key.noisy & (key.block < query.block)
    causal = ~query.noisy & ~key.noisy & (key.position <= query.position)
    return (query.document == key.document) & (own_block | earlier_blocks | causal)


def visible_between(layout: RowLayout, queries: Tensor, keys: Tensor, documents: Tensor | None = None) -> Tensor:
    """A cut of the dense table: which input positions `keys` [K] are visible to which `queries` [Q].

    Returns: [Q, K] bool, or [B, Q, K] for `documents` [B, L].
    """
    if documents is None:
        return is_visible(locate_positions(layout, queries[:, None]), locate_positions(layout, keys[None, :]))
    table = locate_row(layout, documents)
    rows = torch.arange(documents.shape[0], device=documents.device)[:, None, None]
    return is_visible(table.at(rows, queries[:, None]), table.at(rows, keys[None, :]))


def visible_table(layout: RowLayout, documents: Tensor | None = None, device: torch.device | None = None) -> Tensor:
    """The dense table, rows who looks, columns who is seen: [S, S] bool, or [B, S, S] for `documents` [B, L]."""
    index = torch.arange(layout.size, device=device if documents is None else documents.device)
    return visible_between(layout, index, index, documents)
