"""Cuts of the row over context ranks: pure arithmetic, checked against lists written out."""

from dataclasses import fields

import pytest
import torch

from nld_train.config import DiffusionConfig
from nld_train.dual_stream.batch import collate_rows
from nld_train.dual_stream.context_shard import WHOLE, ContextShard, chunk_order, shard_request
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_between, visible_table
from nld_train.noise.corrupt import corrupt_row
from nld_train.types import Batch, HeadRequest, Row

DUAL, ALONE = RowLayout(12, 3, True), RowLayout(12, 3, False)


def test_two_ranks_written_out() -> None:
    first, second = ContextShard(2, 0), ContextShard(2, 1)
    assert first.queries(ALONE).tolist() == [0, 1, 2, 9, 10, 11]
    assert second.queries(ALONE).tolist() == [3, 4, 5, 6, 7, 8]
    assert first.queries(DUAL).tolist() == [0, 1, 2, 9, 10, 11, 12, 13, 14, 21, 22, 23]
    assert second.keys(DUAL, packed=False).tolist() == [3, 4, 5, 6, 7, 8, *range(12, 24)]
    assert second.keys(DUAL, packed=True).tolist() == list(range(24))
    assert second.keys(ALONE, packed=False).tolist() == list(range(12))


def test_one_rank_holds_everything_in_order() -> None:
    for layout in (RowLayout(7, 3, True), RowLayout(7, 3, False)):  # an odd length too
        assert WHOLE.queries(layout).tolist() == WHOLE.keys(layout, packed=False).tolist() == list(range(layout.size))
        assert [segment.length for segment in WHOLE.segments(layout)] == [7]


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("dual", [False, True])
def test_every_position_is_held_once_and_halves_match(ranks: int, dual: bool) -> None:
    layout = RowLayout(24 * ranks, 4, dual)
    held = [ContextShard(ranks, rank).queries(layout) for rank in range(ranks)]
    assert torch.cat(held).sort().values.tolist() == list(range(layout.size))
    if dual:
        assert all(torch.equal(noisy + layout.length, clean) for noisy, clean in (each.chunk(2) for each in held))
    assert sorted(chunk_order(ranks)) == list(range(2 * ranks))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_is_given_every_key_that_its_queries_see(ranks: int, packed: bool) -> None:
    layout = RowLayout(16 * ranks, 8, True)
    documents = torch.arange(layout.length)[None] // 13 if packed else None
    table = visible_table(layout, documents)
    for rank in range(ranks):
        cut = ContextShard(ranks, rank)
        queries, keys = cut.queries(layout), cut.keys(layout, packed)
        assert keys.numel() == cut.key_count(layout, packed)
        seen = visible_between(layout, queries, keys, documents)
        assert torch.equal(seen.sum(-1), table[..., queries, :].sum(-1))


def test_ranks_compute_as_much_attention_as_each_other() -> None:
    layout = RowLayout(256, 8, True)
    table = visible_table(layout)
    pairs = [int(table[ContextShard(4, rank).queries(layout)].sum()) for rank in range(4)]
    assert max(pairs) == min(pairs)


def test_what_cannot_be_cut_is_a_programmer_error() -> None:
    with pytest.raises(AssertionError, match="in 4 chunks"):
        ContextShard(2, 0).queries(RowLayout(10, 1, True))
    with pytest.raises(AssertionError, match="blocks straddle"):
        ContextShard(2, 0).keys(RowLayout(12, 2, True), packed=False)
    with pytest.raises(AssertionError, match="context rank 2 of 2"):
        ContextShard(2, 2)


def batches(ranks: int, config: DiffusionConfig) -> tuple[Batch, list[Batch]]:
    """A batch of three rows of 24 tokens, partly supervised and packed; and every rank's part of it."""
    generator = torch.Generator().manual_seed(ranks)
    rows = []
    for index in range(3):
        tokens = torch.randint(101, 400, (25,), generator=generator)
        supervised = torch.rand(25, generator=generator) < 0.7
        row = Row(index, tokens, supervised, torch.arange(24) // (7 + index))
        rows.append(corrupt_row(row, config, "train", 3) if config.dual else row)
    return collate_rows(rows, config), [collate_rows(rows, config, ContextShard(ranks, rank)) for rank in range(ranks)]


def placed(batch: Batch, inputs: torch.Tensor, size: int) -> list[set[tuple[float, ...]]]:
    """The terms of both losses, each with its place in the whole row, and the id that stands there."""
    found = []
    for kind in ("ar", "diffusion"):
        flat, *rest = (getattr(batch, f"{kind}_{part}") for part in ("positions", "targets", "weights"))
        here = [flat // inputs.numel(), inputs[flat % inputs.numel()], batch.input_ids.flatten()[flat], *rest]
        found.append(set(zip(*(part.tolist() for part in here), strict=True)))
    return found


@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_batches_add_up_to_the_whole(ranks: int, alpha: float, document_mask: bool, average: str) -> None:
    settings = {"alpha": alpha, "block_size": 4, "document_mask": document_mask, "average": average}
    config = DiffusionConfig(**settings)
    whole, parts = batches(ranks, config)
    layout = RowLayout(24, 4, config.dual)
    expected = placed(whole, torch.arange(layout.size), layout.size)
    got = [placed(part, ContextShard(ranks, rank).queries(layout), layout.size) for rank, part in enumerate(parts)]
    for kind in (0, 1):
        assert set().union(*(terms[kind] for terms in got)) == expected[kind]
        assert sum(len(terms[kind]) for terms in got) == len(expected[kind])
    for count in ("denominator", "maskable"):
        assert sum(getattr(part, count) for part in parts) == getattr(whole, count)
    assert all((part.documents is None) == (whole.documents is None) for part in parts)
    assert all(part.documents is None or torch.equal(part.documents, whole.documents) for part in parts)
    assert all(torch.equal(part.sample_indices, whole.sample_indices) for part in parts)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_ranks_requests_add_up_to_the_whole(ranks: int) -> None:
    """Every position that logits are asked for belongs to one rank, where the same token stands."""
    layout, generator = RowLayout(24, 4, True), torch.Generator().manual_seed(ranks)
    ids = torch.randint(0, 400, (2, layout.size), generator=generator)
    positions = torch.randperm(2 * layout.size, generator=generator)[:50]
    whole, count = HeadRequest(ids, None, positions), torch.zeros(50, dtype=torch.int64)
    for rank in range(ranks):
        kept, part = shard_request(whole, layout, ContextShard(ranks, rank))
        count += kept
        assert part.input_ids.shape == (2, layout.size // ranks) and part.head_positions.numel() == kept.sum()
        assert torch.equal(part.input_ids.flatten()[part.head_positions], ids.flatten()[positions[kept]])
    assert (count == 1).all()


def test_one_rank_is_given_the_batch_as_it_is() -> None:
    whole, _ = batches(2, DiffusionConfig(block_size=4))
    _, (only,) = batches(1, DiffusionConfig(block_size=4))
    assert {entry.name for entry in fields(only)} == {entry.name for entry in fields(whole)}
    assert only.input_ids.shape == (3, 48)
