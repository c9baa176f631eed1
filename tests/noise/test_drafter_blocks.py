import torch

from nld_train.config import DiffusionConfig, DrafterConfig
from nld_train.noise.drafter_blocks import draftable_blocks, draw_draft_blocks
from nld_train.types import Row

LENGTH = 22
CONFIG = DiffusionConfig(block_size=4, document_mask=True)


def row(index: int = 5, supervised: torch.Tensor | None = None, documents: list[int] | None = None) -> Row:
    everything = torch.ones(LENGTH + 1, dtype=torch.bool)
    tokens = torch.arange(200, 200 + LENGTH + 1)
    packed = None if documents is None else torch.tensor(documents)
    return Row(index, tokens, everything if supervised is None else supervised, packed)


def test_blocks_are_whole_and_start_again_at_a_document() -> None:
    assert draftable_blocks(row(), CONFIG).tolist() == [0, 4, 8, 12, 16]  # the last two tokens make no block
    packed = row(documents=[0] * 7 + [1] * 15)
    assert draftable_blocks(packed, CONFIG).tolist() == [0, 7, 11, 15]
    assert draftable_blocks(packed, DiffusionConfig(block_size=4)).tolist() == [0, 4, 8, 12, 16]


def test_blocks_lie_where_the_token_behind_the_seed_is_supervised() -> None:
    answer = torch.arange(LENGTH + 1) >= 9
    assert draftable_blocks(row(supervised=answer), CONFIG).tolist() == [8, 12, 16]
    assert draftable_blocks(row(supervised=answer ^ True), CONFIG).tolist() == [0, 4]


def test_draws_belong_to_the_row_and_its_purpose() -> None:
    first, again = (draw_draft_blocks(row(), DrafterConfig(), CONFIG, "train") for _ in range(2))
    for one, other in zip(vars(first.draws).values(), vars(again.draws).values(), strict=True):
        assert torch.equal(one, other)
    for other in (
        draw_draft_blocks(row(6), DrafterConfig(), CONFIG, "train"),
        draw_draft_blocks(row(), DrafterConfig(), CONFIG, "validation"),
    ):
        assert not torch.equal(first.draws.draft, other.draws.draft)
    assert not torch.equal(first.draws.draft, first.draws.accept)


def test_supervision_does_not_move_the_draws_of_other_blocks() -> None:
    everything = draw_draft_blocks(row(), DrafterConfig(), CONFIG, "train")
    answer = draw_draft_blocks(row(supervised=torch.arange(LENGTH + 1) >= 9), DrafterConfig(), CONFIG, "train")
    assert torch.equal(everything.draws.draft[2:], answer.draws.draft)
    assert torch.equal(everything.draws.greedy[2:], answer.draws.greedy)


def test_the_share_of_sampled_blocks_is_kept() -> None:
    rows = [draw_draft_blocks(row(index), DrafterConfig(sampled_share=0.7), CONFIG, "train") for index in range(400)]
    greedy = torch.cat([each.draws.greedy for each in rows]).double().mean().item()
    assert abs(greedy - 0.3) < 0.04  # 2,000 blocks: a standard deviation of 0.01
    for share, wanted in ((0.0, True), (1.0, False)):
        flags = draw_draft_blocks(row(), DrafterConfig(sampled_share=share), CONFIG, "train").draws.greedy
        assert (flags == wanted).all() and len(flags) == 5


def test_at_most_so_many_blocks_of_a_row_count_each_as_likely_as_the_others() -> None:
    few = DrafterConfig(blocks_per_row=2)
    picked = [draw_draft_blocks(row(index), few, CONFIG, "train").seeds for index in range(500)]
    assert all(len(seeds) == 2 and seeds[0] < seeds[1] for seeds in picked)
    counts = torch.cat(picked).bincount(minlength=17)[[0, 4, 8, 12, 16]]
    assert counts.sum() == 1000 and (counts - 200).abs().max() < 55  # a standard deviation of 11
    assert len(draw_draft_blocks(row(), DrafterConfig(blocks_per_row=9), CONFIG, "train").seeds) == 5
