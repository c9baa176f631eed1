"""Where blocks lie in a row: every document starts a new block."""

import torch
from torch import Tensor


def document_positions(documents: Tensor) -> Tensor:
    """Position of every token in its document. `documents`: [..., L] non-decreasing. Returns: [..., L] int64."""
    index = torch.arange(documents.shape[-1], device=documents.device)
    starts = torch.zeros_like(documents, dtype=torch.bool)
    starts[..., 1:] = documents[..., 1:] != documents[..., :-1]
    return index - torch.where(starts, index, 0).cummax(-1).values


def row_block_ids(length: int, block_size: int, documents: Tensor | None = None) -> Tensor:
    """Block number of every token of a row, counted over the whole row.

    `documents`: [L] or [B, L] int64 non-decreasing, or None for one document. Returns: int64, [L] or their shape.
    """
    if documents is None:
        return torch.arange(length) // block_size
    return (document_positions(documents) % block_size == 0).long().cumsum(-1) - 1
