"""The draft blocks of a row and their random numbers: a pure function of the row, as the noise is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.config import DiffusionConfig, DrafterConfig
from nld_train.noise.blocks import row_block_ids
from nld_train.noise.seeding import keyed_uniforms
from nld_train.types import DraftDraws, Row


@dataclass(frozen=True)
class DraftRow:
    """A row, its blocks that are drafted, and one draw for them. N blocks, n drafted tokens of each."""

    row: Row
    seeds: Tensor  # [N] int64: place of each block's first token, which is given
    draws: DraftDraws


def draftable_blocks(row: Row, config: DiffusionConfig) -> Tensor:
    """Places of the first tokens of the blocks that can be drafted: [N] int64.

    Those of block_size tokens whose second token is supervised: where an answer is being given. What the row holds
    behind the seed does not matter otherwise, because the drafts take its place.
    """
    length = row.tokens.numel() - 1
    documents = row.documents if config.document_mask else None
    blocks = row_block_ids(length, config.block_size, documents)
    sizes = blocks.bincount()
    seeds = sizes.cumsum(0) - sizes
    return seeds[(sizes == config.block_size) & row.supervised[(seeds + 1).clamp(max=length)]]


def draw_draft_blocks(row: Row, drafter: DrafterConfig, config: DiffusionConfig, purpose: str) -> DraftRow:
    """The row with its draft blocks and their random numbers: a pure function of the arguments and of `row.index`.

    Numbers are drawn for every place of the row, so that one block's never depend on the others.
    """
    length, size = row.tokens.numel() - 1, config.block_size
    token, accept, block = (
        keyed_uniforms(config.noise_seed, row.index, f"{purpose}/drafts/{kind}", length)
        for kind in ("token", "accept", "block")
    )
    seeds = draftable_blocks(row, config)
    if drafter.blocks_per_row is not None:
        # The number behind a seed picks the blocks, that of the seed itself their kind.
        seeds = seeds[block[seeds + 1].argsort(stable=True)[: drafter.blocks_per_row].sort().values]
    places = seeds[:, None] + torch.arange(1, size)
    draws = DraftDraws(token[places], accept[places], block[seeds] >= drafter.sampled_share)
    return DraftRow(row, seeds, draws)
