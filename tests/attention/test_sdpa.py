import pytest
import torch

from nld_train.attention import reference, sdpa
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_table

LAYOUTS = [
    RowLayout(8, 4, True),
    RowLayout(7, 3, True),  # a short last block
    RowLayout(5, 8, True),  # one block, longer than the row
    RowLayout(1, 1, True),
    RowLayout(64, 4, True),  # 16 blocks in 8 chunks
    RowLayout(45, 2, True),  # 23 blocks: chunks of 3, a short last one
    RowLayout(9, 4, False),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_equals_the_reference_forward_and_backward(case, layout, heads, packed):
    c = case(layout, heads, packed)
    fast, slow = c.output_and_gradients(sdpa.attend_sdpa), c.output_and_gradients(reference.attend_reference)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_chunks_cover_the_noisy_half_in_whole_blocks(layout):
    spans = [part.queries for part in noisy_parts(layout)]
    assert [place for span in spans for place in range(*span)] == list(range(layout.length if layout.dual else 0))
    assert all(start % layout.block_size == 0 for start, _ in spans) and len(spans) <= sdpa.CHUNKS


def test_most_of_what_nobody_sees_is_never_computed():
    layout = RowLayout(256, 16, True)
    computed = sum((stop - start) * (stop - start + stop) for start, stop in (p.queries for p in noisy_parts(layout)))
    assert computed < 1.6 * visible_table(layout)[:256].sum() < 0.6 * 256 * 512


def noisy_parts(layout: RowLayout) -> list[sdpa.QueryChunk]:
    return [part for part in sdpa.query_chunks(MaskSpec(layout)) if part.noisy[1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_training_works_after_an_evaluation_in_inference_mode(case, dtype):
    sdpa._cached_mask.cache_clear()
    c = case(RowLayout(12, 5, True), dtype=dtype)
    with torch.inference_mode():
        sdpa.attend_sdpa(c.query, c.key, c.value, c.spec, c.scale)
    assert c.output_and_gradients(sdpa.attend_sdpa)[1].abs().sum() > 0


def test_a_layout_of_another_size_is_refused(case):
    c = case(RowLayout(8, 4, True))
    with pytest.raises(AssertionError, match="16 positions for a layout of 18"):
        sdpa.attend_sdpa(c.query, c.key, c.value, MaskSpec(RowLayout(9, 4, True)), 1.0)
