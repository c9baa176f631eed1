import random

import pytest
import torch

from nld_train.config import DiffusionConfig
from nld_train.noise.corrupt import corrupt_row, mask_fully, maskable_tokens
from nld_train.noise.law import LAWS
from nld_train.types import Row

LENGTH = 40


def row(index: int, supervised: torch.Tensor | None = None, documents: torch.Tensor | None = None) -> Row:
    tokens = torch.arange(LENGTH + 1) + 1000
    return Row(index, tokens, torch.ones(LENGTH + 1, dtype=torch.bool) if supervised is None else supervised, documents)


def same(one, other) -> bool:
    return torch.equal(one.noisy, other.noisy) and torch.equal(one.masked, other.masked) and torch.equal(one.p, other.p)


@pytest.mark.parametrize("law", LAWS)
def test_noise_of_a_row_does_not_depend_on_order_or_on_what_else_was_drawn(law):
    config = DiffusionConfig(block_size=4, noise_law=law)
    in_order = {index: corrupt_row(row(index), config, "train", 16) for index in range(48)}
    shuffled = list(range(48))
    random.Random(0).shuffle(shuffled)
    for index in shuffled:
        torch.rand(index)
        corrupt_row(row(index), config, "validation", 16)  # an evaluation in between
        assert same(in_order[index], corrupt_row(row(index), config, "train", 16))


def test_noise_ignores_the_tokens_and_the_supervision_of_other_places():
    config = DiffusionConfig(block_size=4)
    everywhere = corrupt_row(row(5), config, "train", 1)
    half = torch.arange(LENGTH + 1) % 2 == 0
    assert torch.equal(corrupt_row(row(5, half), config, "train", 1).masked, everywhere.masked & half[:-1])


def test_only_supervised_tokens_are_masked_each_by_its_own_flag():
    supervised = torch.zeros(LENGTH + 1, dtype=torch.bool)
    supervised[[3, 17, LENGTH]] = True  # the last is token L: a target, never an input
    config = DiffusionConfig(block_size=4)
    hit = torch.stack([corrupt_row(row(index, supervised), config, "train", 1).masked for index in range(300)]).any(0)
    assert hit.nonzero().flatten().tolist() == [3, 17]


def test_masked_places_hold_the_mask_token_and_the_others_the_text():
    config = DiffusionConfig(block_size=4, mask_token_id=7)
    for index in range(20):
        noisy = corrupt_row(row(index), config, "train", 1)
        assert (noisy.noisy[noisy.masked] == 7).all()
        assert torch.equal(noisy.noisy[~noisy.masked], noisy.row.tokens[:-1][~noisy.masked])
        assert noisy.noisy.dtype == torch.int64 and noisy.noisy.shape == (LENGTH,)


def test_a_mask_token_of_the_text_stays_and_is_never_counted_as_masked():
    config = DiffusionConfig(block_size=4, mask_token_id=1003)
    assert maskable_tokens(row(0), config).tolist() == [place != 3 for place in range(LENGTH)]
    for index in range(50):
        noisy = corrupt_row(row(index), config, "train", 1)
        assert not noisy.masked[3] and noisy.noisy[3] == 1003


def test_a_row_with_nothing_supervised_gets_no_masks():
    noisy = corrupt_row(row(1, torch.zeros(LENGTH + 1, dtype=torch.bool)), DiffusionConfig(), "train", 1)
    assert not noisy.masked.any() and torch.equal(noisy.noisy, noisy.row.tokens[:-1])


@pytest.mark.parametrize(("document_mask", "levels"), [(True, 11), (False, 10)])
def test_documents_start_blocks_only_where_they_are_kept_apart(document_mask, levels):
    documents = (torch.arange(LENGTH) >= 6).long()  # blocks of 4: 4 + 2, then 34 tokens in 9 blocks
    config = DiffusionConfig(block_size=4, noise_law="per_block", document_mask=document_mask)
    assert corrupt_row(row(1, documents=documents), config, "train", 1).p.unique().numel() == levels


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        ("uniform", "xxxxxxxx.x..xxx.xxxx.xx.xx..xxxxxxxxxxxx"),
        ("stratified", "..x.x.......x....xxx..x.x........xx.xx.."),
        ("per_block", "xxxxxxxx....x....xxxxxxxxx..xxx..xxxxx.x"),
        ("complementary", "x....xx.......x.....x..xx......x..x....x"),
    ],
)
def test_the_same_noise_on_every_machine_and_version(law, expected):
    masked = corrupt_row(row(11), DiffusionConfig(block_size=4, noise_law=law), "train", 16).masked
    assert "".join("x" if z else "." for z in masked) == expected


def test_at_level_one_every_token_is_masked_that_may_be() -> None:
    config = DiffusionConfig(block_size=4, mask_token_id=1003)  # which is a token of the row: it stays as it is
    given = row(1)
    full = mask_fully(given, config)
    assert torch.equal(full.masked, maskable_tokens(given, config)) and full.masked.sum() == LENGTH - 1
    assert (full.noisy == 1003).all() and (full.p == 1).all()
