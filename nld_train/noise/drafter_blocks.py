"""The blocks of a row that are drafted, and their random numbers: a pure function of the row, as the noise is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.config import DiffusionConfig, DrafterConfig
from nld_train.noise.blocks import row_block_ids
from nld_train.noise.seeding import keyed_uniforms
from nld_train.types import DraftDraws, Row


@dataclass(frozen=True)
class DraftRow:
    """A row, its N blocks that are drafted, and one draw of their random numbers; n tokens of each are drafted."""

    row: Row
    seeds: Tensor  # [N] int64: the token of the row that each block starts with; it is given, not drafted
    draws: DraftDraws


def draftable_blocks(row: Row, config: DiffusionConfig) -> Tensor:
    """The first tokens, as indices into the row, of the blocks that can be drafted: [N] int64.

    A block can be drafted if it has block_size tokens and its second token is supervised, so that the draft stands
    where an answer is being given. The row's other tokens behind the seed do not matter, because drafts replace them.
    """
    length = row.tokens.numel() - 1
    documents = row.documents if config.document_mask else None
    blocks = row_block_ids(length, config.block_size, documents)
    sizes = blocks.bincount()
    seeds = sizes.cumsum(0) - sizes
    return seeds[(sizes == config.block_size) & row.supervised[(seeds + 1).clamp(max=length)]]


def draw_draft_blocks(row: Row, drafter: DrafterConfig, config: DiffusionConfig, purpose: str) -> DraftRow:
    """The row with N blocks to draft, seeds [N] and draws [N, n]: a pure function of the arguments and `row.index`."""
    length, size = row.tokens.numel() - 1, config.block_size
    # 1. Numbers for every token of the row, so that the numbers of one block never depend on which others are drafted.
    token, accept, block = (
        keyed_uniforms(config.noise_seed, row.index, f"{purpose}/drafts/{kind}", length)
        for kind in ("token", "accept", "block")
    )
    # 2. Which blocks are drafted: all that can be, or those with the smallest numbers. The number at seed + 1 picks the
    #    blocks; the number at the seed itself decides in step 3 whether a block is sampled or greedy.
    seeds = draftable_blocks(row, config)
    if drafter.blocks_per_row is not None:
        seeds = seeds[block[seeds + 1].argsort(stable=True)[: drafter.blocks_per_row].sort().values]
    # 3. The numbers of the drafted tokens.
    drafted = seeds[:, None] + torch.arange(1, size)
    draws = DraftDraws(token[drafted], accept[drafted], block[seeds] >= drafter.sampled_share)
    return DraftRow(row, seeds, draws)
