import pytest
import torch

from nld_train.attention import reference, sdpa
from nld_train.dual_stream.context import WHOLE
from nld_train.dual_stream.layout import Layout
from nld_train.dual_stream.visibility import visible_table

LAYOUTS = [
    Layout(8, 4, True),
    Layout(7, 3, True),  # a short last block
    Layout(5, 8, True),  # one block, longer than the row
    Layout(1, 1, True),
    Layout(64, 4, True),  # 16 blocks in 8 chunks
    Layout(45, 2, True),  # 23 blocks: chunks of 3, a short last one
    Layout(9, 4, False),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_equals_the_reference_forward_and_backward(case, layout, heads, packed):
    c = case(layout, heads, packed)
    fast, slow = c.output_and_gradients(sdpa.attend), c.output_and_gradients(reference.attend_layout)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_chunks_cover_the_noisy_half_in_whole_blocks(layout):
    spans = [part.queries for part in noisy_parts(layout)]
    assert [place for span in spans for place in range(*span)] == list(range(layout.length if layout.dual else 0))
    assert all(start % layout.block_size == 0 for start, _ in spans) and len(spans) <= sdpa.CHUNKS


def test_most_of_what_nobody_sees_is_never_computed():
    layout = Layout(256, 16, True)
    computed = sum((stop - start) * (stop - start + stop) for start, stop in (p.queries for p in noisy_parts(layout)))
    assert computed < 1.6 * visible_table(layout)[:256].sum() < 0.6 * 256 * 512


def noisy_parts(layout: Layout) -> list[sdpa.Part]:
    return [part for part in sdpa.parts(layout, WHOLE, False) if part.noisy[1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_training_works_after_an_evaluation_in_inference_mode(case, dtype):
    sdpa._part_mask.cache_clear()
    c = case(Layout(12, 5, True), dtype=dtype)
    with torch.inference_mode():
        sdpa.attend(c.query, c.key, c.value, c.layout, c.scale)
    assert c.output_and_gradients(sdpa.attend)[1].abs().sum() > 0


def test_a_layout_of_another_size_is_refused(case):
    c = case(Layout(8, 4, True))
    with pytest.raises(AssertionError, match="16 positions for a layout of 18"):
        sdpa.attend(c.query, c.key, c.value, Layout(9, 4, True), 1.0)
