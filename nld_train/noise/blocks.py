"""Where blocks lie in a row: every document starts a new block, and so does the text behind an image."""

import torch
from torch import Tensor


def document_positions(documents: Tensor) -> Tensor:
    """Position of every token in its document. `documents`: [..., L] non-decreasing. Returns: [..., L] int64."""
    index = torch.arange(documents.shape[-1], device=documents.device)
    starts = torch.zeros_like(documents, dtype=torch.bool)
    starts[..., 1:] = documents[..., 1:] != documents[..., :-1]
    return index - torch.where(starts, index, 0).cummax(-1).values


def stretch_numbers(documents: Tensor, clean_only: Tensor) -> Tensor:
    """Number of the stretch that every token lies in: neighbours of one document that all have a noisy copy, or all
    have none. Both: [..., L]. Returns: [..., L] int64, non-decreasing from 0.
    """
    starts = torch.zeros_like(documents)
    starts[..., 1:] = (documents[..., 1:] != documents[..., :-1]) | (clean_only[..., 1:] != clean_only[..., :-1])
    return starts.cumsum(-1)


def row_block_ids(
    length: int, block_size: int, documents: Tensor | None = None, clean_only: Tensor | None = None
) -> Tensor:
    """Block number of every token of a row, counted over the whole row.

    Blocks count tokens that have a noisy copy. Tokens without one (`clean_only`, an image's) end a block and have the
    number of the block before them, -1 at the row's start: so the blocks behind an image see it, and no others do.

    `documents`: [L] or [B, L] int64 non-decreasing, or None for one document; `clean_only`: bool, as `documents`.
    Returns: int64, [L] or their shape.
    """
    if documents is None:
        assert clean_only is None, "tokens without a noisy copy come with the numbers of documents"
        return torch.arange(length) // block_size
    stretches = documents if clean_only is None else stretch_numbers(documents, clean_only)
    starts = document_positions(stretches) % block_size == 0
    return (starts if clean_only is None else starts & ~clean_only).long().cumsum(-1) - 1
