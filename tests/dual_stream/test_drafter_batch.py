import torch

from nld_train.config import DiffusionConfig, DrafterConfig
from nld_train.dual_stream.drafter_batch import (
    collate_drafts,
    draft_request,
    input_with_drafts,
    verifier_positions,
    verifier_request,
)
from nld_train.noise.drafter_blocks import draw_draft_blocks
from nld_train.types import Row

MASK = 9
CONFIG = DiffusionConfig(block_size=3, mask_token_id=MASK, document_mask=True)


def rows(documents: list[int] | None = None):
    supervised = torch.tensor([True] * 9), torch.tensor([False] * 4 + [True] * 5)
    packed = None if documents is None else torch.tensor(documents)
    made = [Row(index, torch.arange(9) + 10 * (index + 1), flags, packed) for index, flags in enumerate(supervised)]
    return [draw_draft_blocks(row, DrafterConfig(), CONFIG, "train") for row in made]


def test_a_batch_written_out() -> None:
    """Rows of 8 tokens: blocks at 0 and 3, the last two tokens make none; of row 1 the block at 3 alone counts."""
    batch = collate_drafts(rows(), CONFIG)
    clean = [[10, 11, 12, 13, 14, 15, 16, 17], [20, 21, 22, 23, 24, 25, 26, 27]]
    noisy = [[10, MASK, MASK, 13, MASK, MASK, 16, 17], [20, 21, 22, 23, MASK, MASK, 26, 27]]
    assert batch.input_ids.tolist() == [first + second for first, second in zip(noisy, clean, strict=True)]
    assert batch.draft_positions.tolist() == [[1, 2], [4, 5], [16 + 4, 16 + 5]]
    assert verifier_positions(batch).tolist() == [[0, 1], [3, 4], [19, 20]]
    assert [tuple(tensor.shape) for tensor in vars(batch.draws).values()] == [(3, 2), (3, 2), (3,)]
    assert batch.documents is None
    assert batch.sample_indices.tolist() == [0, 1]


def test_drafted_tokens_take_the_place_of_the_masks_and_of_nothing_else() -> None:
    batch = collate_drafts(rows(), CONFIG)
    drafted = torch.tensor([[41, 42], [43, 44], [45, 46]])
    inputs = input_with_drafts(batch, drafted)
    assert inputs.view(-1)[batch.draft_positions].tolist() == drafted.tolist()
    assert torch.equal((inputs != batch.input_ids).nonzero(), (batch.input_ids == MASK).nonzero())


def test_drafts_are_asked_for_at_the_masks_and_judged_from_the_places_before_them() -> None:
    batch = collate_drafts(rows([0] * 4 + [1] * 4), CONFIG)
    drafted = torch.arange(batch.draft_positions.numel()).view_as(batch.draft_positions) + 40
    asked, judged = draft_request(batch), verifier_request(batch, drafted)
    assert torch.equal(asked.input_ids, batch.input_ids)
    assert (asked.input_ids.view(-1)[asked.head_positions] == MASK).all()
    assert torch.equal(judged.input_ids.view(-1)[judged.head_positions + 1], drafted.flatten())
    assert asked.documents is judged.documents is batch.documents


def test_packed_documents_travel_and_move_the_blocks() -> None:
    batch = collate_drafts(rows([0] * 4 + [1] * 4), CONFIG)
    assert batch.documents.tolist() == [[0] * 4 + [1] * 4] * 2
    assert batch.draft_positions[:2].tolist() == [[1, 2], [5, 6]]


def test_a_batch_moves_with_the_draws_inside_it() -> None:
    moved = collate_drafts(rows(), CONFIG).to(torch.device("meta"))
    assert moved.input_ids.is_meta and moved.draws.greedy.is_meta
