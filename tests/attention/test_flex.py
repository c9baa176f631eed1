from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from nld_train.attention import flex, reference
from nld_train.attention.fused import lse_merge
from nld_train.attention.fused.kernel import PlainKernel
from nld_train.dual_stream.context_shard import ContextShard
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_table

TILE = 128  # flex_attention's own blocks of pairs
SEVERAL_TILES = RowLayout(150, 32, True)

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("layout", [RowLayout(7, 3, True), SEVERAL_TILES, RowLayout(9, 4, False)], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_equals_the_reference_forward_and_backward(case, cpu_backward, layout, packed):
    c = case(layout, (4, 2), packed)
    fast, slow = c.output_and_gradients(flex.attend_flex), c.output_and_gradients(reference.attend_reference)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


PARTLY = {
    "noisy": lse_merge.FusedAttention(PlainKernel(), flex.attend_noisy_flex),
    "local": lse_merge.FusedAttention(
        PlainKernel(), lse_merge.MergedNoisyAttention(PlainKernel(), flex.FlexLocalAttention())
    ),
}


@pytest.mark.parametrize(
    "layout", [RowLayout(7, 3, True), SEVERAL_TILES, RowLayout(5, 8, True), RowLayout(9, 4, True, True)], ids=str
)
@pytest.mark.parametrize("part", PARTLY)
@pytest.mark.parametrize("packed", [False, True])
def test_for_a_part_of_the_row_equals_the_reference_forward_and_backward(case, cpu_backward, layout, part, packed):
    """As "te+flex" and "te+near_flex" use it, with the plain kernel for the rest."""
    c = case(layout, packed=packed)
    fast, slow = c.output_and_gradients(PARTLY[part]), c.output_and_gradients(reference.attend_reference)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("part", PARTLY)
def test_for_a_part_of_the_row_on_two_ranks(case, cpu_backward, part):
    c = case(RowLayout(24, 3, True))
    expected = reference.attend_reference(c.query, c.key, c.value, c.spec, c.scale)
    for shard in (ContextShard(2, 0), ContextShard(2, 1)):
        queries, keys = shard.queries(c.layout), shard.keys(c.layout, packed=False)
        here = (c.query[:, :, queries], c.key[:, :, keys], c.value[:, :, keys])
        output = PARTLY[part](*here, replace(c.spec, shard=shard), c.scale)
        torch.testing.assert_close(output, expected[:, :, queries], rtol=1e-10, atol=1e-12)


def test_the_local_part_is_a_band_of_few_tiles():
    """At L 4096 a tile of queries meets its own noisy tile, and at most two of clean keys."""
    mask = flex.flex_block_mask(MaskSpec(RowLayout(4096, 32, True)), torch.device("cpu"), "local")
    tiles = mask.to_dense()[0, 0].sum(1)
    assert mask.shape[-2:] == (4096, 8192) and len(tiles) == 32 and tiles.max() <= 3


def test_equals_the_reference_with_a_key_head_per_query_head(case):
    c = case(RowLayout(7, 3, True), (2, 2))
    expected = reference.attend_reference(c.query, c.key, c.value, c.spec, c.scale)
    torch.testing.assert_close(flex.attend_flex(c.query, c.key, c.value, c.spec, c.scale), expected)


@pytest.mark.parametrize("packed", [False, True])
def test_tiles_are_skipped_exactly_where_nobody_sees_anybody(case, packed):
    """A tile left out hides its pairs; a tile wrongly called full shows them. The CPU never reads either list."""
    layout = RowLayout(320, 32, True)
    c = case(layout, packed=packed)
    mask = flex.flex_block_mask(c.spec, torch.device("cpu"))
    table = visible_table(layout, c.documents).expand(2 if packed else 1, 640, 640)
    tiles = table.unflatten(2, (-1, TILE)).unflatten(1, (-1, TILE))  # [B, tile row, TILE, tile column, TILE]
    full = listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert torch.equal(full, tiles.all(4).all(2))
    assert torch.equal(listed(mask.kv_num_blocks, mask.kv_indices) | full, tiles.any(4).any(2))


def listed(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """[B, tile rows, tile columns] bool from a block mask's lists of column numbers."""
    found = torch.zeros(indices[:, 0].shape, dtype=torch.bool)
    for row, line in (counts[:, 0] > 0).nonzero().tolist():
        found[row, line, indices[row, 0, line, : counts[row, 0, line]].long()] = True
    return found


def test_the_layers_of_a_forward_share_one_mask(case):
    layout, cpu = RowLayout(7, 3, True), torch.device("cpu")
    assert flex.flex_block_mask(MaskSpec(layout), cpu) is flex.flex_block_mask(
        MaskSpec(RowLayout(7, 3, True), ContextShard(1, 0)), cpu
    )
    documents = case(layout, packed=True).documents
    mask = flex.flex_block_mask(MaskSpec.from_documents(layout, documents), cpu)
    assert flex.flex_block_mask(MaskSpec.from_documents(layout, documents.clone()), cpu) is mask
    assert flex.flex_block_mask(MaskSpec.from_documents(layout, documents.flip(0)), cpu) is not mask


@pytest.mark.slow
def test_other_documents_are_no_reason_to_compile_again(case, monkeypatch) -> None:
    """On a GPU a step would take a minute. Counted here with a compiler that does nothing but count."""
    counter, compiled = CompileCounter(), dict[Callable, Callable]()

    def counted(function: Callable, _: str, **settings: bool) -> Callable:
        return compiled.setdefault(function, torch.compile(function, backend=counter, **settings))

    monkeypatch.setattr(flex, "compile_on_gpu", counted)
    monkeypatch.setattr(lse_merge, "compile_on_gpu", counted)
    c, seen = case(SEVERAL_TILES, packed=True), []
    for documents in (c.documents, c.documents.flip(0), c.documents // 2, c.documents.clamp(1), c.documents.clamp(2)):
        for attend in (flex.attend_flex, *PARTLY.values()):
            attend(c.query, c.key, c.value, MaskSpec.from_documents(c.layout, documents), c.scale)
        seen.append(counter.frame_count)
    assert seen[0] > 3 and seen[-1] <= seen[0] + 1  # of the merge: once it is known that its sizes differ


def test_training_works_after_an_evaluation_in_inference_mode(case, cpu_backward):
    c = case(RowLayout(11, 4, True))
    with torch.inference_mode():
        flex.attend_flex(c.query, c.key, c.value, c.spec, c.scale)
    assert c.output_and_gradients(flex.attend_flex)[1].abs().sum() > 0


@needs_gpu
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", [SEVERAL_TILES, RowLayout(512, 32, True), RowLayout(300, 32, False)], ids=str)
def test_equals_the_reference_on_a_gpu(case, layout, packed):
    c = case(layout, (4, 2), packed, torch.float32, 64, "cuda")
    fast, slow = c.output_and_gradients(flex.attend_flex), c.output_and_gradients(reference.attend_reference)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)  # TF32 products
