"""Context parallelism of attention: every backend on every rank's part equals the uncut reference, both ways."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nld_train.attention import flex, reference, sdpa
from nld_train.attention.context_parallel import gather_keys_and_values
from nld_train.dual_stream.context_shard import ContextShard
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_between
from tests.attention.conftest import IN_PIECES, Case

BACKENDS = {
    "reference": reference.attend_reference,
    "sdpa": sdpa.attend_sdpa,
    "flex": flex.attend_flex,
    "te": IN_PIECES,
}

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def random_cases() -> list[tuple[int, RowLayout, bool, tuple[int, int]]]:
    """(ranks, layout, packed, heads): blocks of any size that divides a chunk, or any at all where documents say."""
    generator = torch.Generator().manual_seed(20)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    found = []
    for ranks, heads in ((2, (4, 2)), (3, (4, 4)), (4, (3, 1))):
        for packed in (False, True):
            size, blocks = number(1, 6), number(1, 5)
            length = 2 * ranks * (number(3, 12) if packed else size * blocks)
            found.append((ranks, RowLayout(length, size, True), packed, heads))
        found.append((ranks, RowLayout(2 * ranks * number(1, 9), 4, False), False, heads))
        found.append((ranks, RowLayout(2 * ranks * number(3, 9), 4, False), True, heads))
    return found


@pytest.mark.parametrize(
    ("backend", "ranks", "layout", "packed", "heads"),
    [(name, *one) for name in BACKENDS for one in random_cases() if not (one[2] and name == "te")],  # refuses packed
    ids=str,
)
def test_the_ranks_parts_make_the_whole(case, cpu_backward, backend, ranks, layout, packed, heads) -> None:
    c = case(layout, heads, packed)
    expected = c.output_and_gradients(reference.attend_reference)

    def by_rank(query, key, value, spec, scale):
        output = torch.empty_like(query)
        for rank in range(ranks):
            shard = ContextShard(ranks, rank)
            queries, keys = shard.queries(layout), shard.keys(layout, packed)
            here = (query[:, :, queries], key[:, :, keys], value[:, :, keys])
            output = output.index_copy(2, queries, BACKENDS[backend](*here, replace(spec, shard=shard), scale))
        return output

    for one, other in zip(c.output_and_gradients(by_rank), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_flex_leaves_out_only_tiles_that_nobody_sees() -> None:
    """Over several of flex_attention's tiles of 128 x 128 pairs; the CPU never reads their lists."""
    layout, shard = RowLayout(512, 32, True), ContextShard(2, 1)
    mask = flex.flex_block_mask(MaskSpec(layout, shard), torch.device("cpu"))
    seen = visible_between(layout, shard.queries(layout), shard.keys(layout, packed=False))
    tiles = seen.unflatten(1, (-1, 128)).unflatten(0, (-1, 128))
    assert mask.shape[-2:] == seen.shape == (512, 768)
    assert torch.equal(mask.to_dense()[0, 0].bool(), tiles.any(3).any(1))
    assert not tiles.any(3).any(1).all()


def test_sdpa_computes_little_that_nobody_sees() -> None:
    layout, shard = RowLayout(512, 16, True), ContextShard(2, 0)
    parts = sdpa.query_chunks(MaskSpec(layout, shard))
    spans = [part.queries for part in parts]
    assert [place for span in spans for place in range(*span)] == list(range(512))
    computed = sum((part.queries[1] - part.queries[0]) * (part.noisy[1] - part.noisy[0] + part.clean) for part in parts)
    seen = visible_between(layout, shard.queries(layout), shard.keys(layout, packed=False)).sum()
    assert computed < 1.6 * seen < 0.9 * 512 * 768


CASES = [(RowLayout(24, 3, True), False), (RowLayout(24, 5, True), True), (RowLayout(24, 4, False), True)]


def on_a_rank(rank: int, ranks: int, folder: str, cases: list[Case]) -> None:
    """One gloo rank: its own queries, keys and values only; saves its outputs and gradients."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    shard, group = ContextShard(ranks, rank), torch.distributed.group.WORLD
    found = []
    for c in cases:
        held = shard.queries(c.layout)
        # As Megatron has them, [S/c, B, H, D].
        query, key, value = (part[:, :, held].permute(2, 0, 1, 3).contiguous().requires_grad_() for part in c.leaves())
        spec = replace(c.spec, shard=shard)
        keys, values = gather_keys_and_values(key, value, spec, group)
        batch_first = (part.permute(1, 2, 0, 3) for part in (query, keys, values))
        output = sdpa.attend_sdpa(*batch_first, spec, c.scale)
        gradients = torch.autograd.grad(output, (query, key, value), c.cotangent()[:, :, held])
        found.append((output.detach(), *(part.permute(1, 2, 0, 3) for part in gradients)))
    torch.save(found, f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_gathered_on_real_ranks_equals_the_uncut_reference(case, tmp_path: Path) -> None:
    cases = [case(layout, (4, 2), packed) for layout, packed in CASES]
    torch.multiprocessing.spawn(on_a_rank, (2, str(tmp_path), cases), nprocs=2)
    for number, c in enumerate(cases):
        for part, expected in enumerate(c.output_and_gradients(reference.attend_reference)):
            got = torch.empty_like(expected)
            for rank in range(2):
                got[:, :, ContextShard(2, rank).queries(c.layout)] = torch.load(tmp_path / str(rank))[number][part]
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
