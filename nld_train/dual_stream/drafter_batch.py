"""Collation for the drafter: the noisy half holds draft blocks, the clean half the rows they continue."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nld_train.config import DiffusionConfig
from nld_train.dual_stream.batch import stack_documents
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.noise.drafter_blocks import DraftRow
from nld_train.types import DraftBatch, DraftDraws, HeadRequest


def collate_drafts(rows: Sequence[DraftRow], config: DiffusionConfig) -> DraftBatch:
    """The drafter's micro-batch of rows of one length: input_ids [B, 2L], draft_positions [N, n].

    At inference a draft is [seed, mask, mask, ...] behind the clean text before the seed. A noisy block of the doubled
    row sees exactly that, so every block of a row drafts in one forward. A noisy position predicts its own token, so
    the predictions are made at the masks. The noisy half holds all blocks; those that do not draft keep their tokens.
    """
    tokens = torch.stack([row.row.tokens for row in rows])[:, :-1]
    layout = RowLayout(tokens.shape[1], config.block_size, dual=True)
    drafted = torch.arange(1, config.block_size)
    flat = [number * layout.size + (row.seeds[:, None] + drafted) for number, row in enumerate(rows)]
    positions = torch.cat(flat)
    inputs = torch.cat([tokens, tokens], 1)
    inputs.view(-1)[positions] = config.mask_token_id
    return DraftBatch(
        input_ids=inputs,
        documents=stack_documents([row.row for row in rows], config, layout.length),
        draft_positions=positions,
        draws=DraftDraws(
            draft=torch.cat([row.draws.draft for row in rows]),
            accept=torch.cat([row.draws.accept for row in rows]),
            greedy=torch.cat([row.draws.greedy for row in rows]),
        ),
        sample_indices=torch.tensor([row.row.index for row in rows]),
    )


def input_with_drafts(batch: DraftBatch, drafted: Tensor) -> Tensor:
    """What the verifier reads: the model's input [B, S] with the drafted tokens [N, n] in place of the masks."""
    inputs = batch.input_ids.clone()
    inputs.view(-1)[batch.draft_positions] = drafted
    return inputs


def verifier_positions(batch: DraftBatch) -> Tensor:
    """Flat positions whose causal logits judge the drafts, each one to the left of its draft: [N, n] int64."""
    return batch.draft_positions - 1


def draft_request(batch: DraftBatch) -> HeadRequest:
    """The forward that drafts: every block is [seed, mask, mask, ...]; logits are asked for at the R = N * n masks."""
    return HeadRequest(batch.input_ids, batch.documents, batch.draft_positions.flatten())


def verifier_request(batch: DraftBatch, drafted: Tensor) -> HeadRequest:
    """The forward that judges drafted tokens [N, n], read left to right: logits at the R positions before them."""
    return HeadRequest(input_with_drafts(batch, drafted), batch.documents, verifier_positions(batch).flatten())
