"""Corruption of a row: the configured noise law says which supervised tokens the mask token replaces."""

import torch
from torch import Tensor

from nld_train.config import DiffusionConfig
from nld_train.noise.blocks import row_block_ids
from nld_train.noise.law import NoiseSample, draw_mask
from nld_train.types import NoisyRow, Row


def maskable_tokens(row: Row, config: DiffusionConfig) -> Tensor:
    """Which of the row's first L tokens may be masked: [L] bool.

    These are the supervised ones. But a token of the text that already is mask_token_id stays as it is and never counts
    as masked: the model must not learn to answer a mask with a mask.
    """
    return row.supervised[:-1] & (row.tokens[:-1] != config.mask_token_id)


def corrupt_row(row: Row, config: DiffusionConfig, purpose: str, global_batch: int) -> NoisyRow:
    """The row with its noise, [L] each: a pure function of the arguments and of `row.index`.

    `purpose` ("train", "validation", ...) keeps the uses of one row independent. `global_batch` is the number of rows
    per step over all ranks; only the stratified law looks at it. A row in which nothing is supervised gets no masks.
    """
    clean = row.tokens[:-1]
    documents = row.documents if config.document_mask else None
    blocks = row_block_ids(clean.numel(), config.block_size, documents, row.clean_only if row.images else None)
    sample = NoiseSample(config.noise_seed, purpose, row.index, global_batch, blocks, config.level_rows)
    # Noise is drawn for every token and kept where the token may be masked, so that the supervision of one token never
    # moves the noise of another.
    p, drawn = draw_mask(config.noise_law, config.noise_eps, sample)
    masked = drawn & maskable_tokens(row, config)
    return NoisyRow(row=row, noisy=torch.where(masked, config.mask_token_id, clean), masked=masked, p=p)


def mask_fully(row: Row, config: DiffusionConfig) -> NoisyRow:
    """The row at noise level 1: every token that may be masked is, [L] each."""
    masked = maskable_tokens(row, config)
    noisy = torch.where(masked, config.mask_token_id, row.tokens[:-1])
    return NoisyRow(row=row, noisy=noisy, masked=masked, p=torch.ones(masked.numel()))
