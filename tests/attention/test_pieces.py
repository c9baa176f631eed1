"""The pieces of the doubled row: what is seen, every pair once, and their arithmetic."""

import pytest
import torch

from nld_train.attention.engine import CAUSAL
from nld_train.attention.pieces import shifted, windows
from nld_train.dual_stream.context import WHOLE, Cut
from nld_train.dual_stream.layout import Layout
from nld_train.dual_stream.visibility import visible_pairs, visible_table


@pytest.mark.parametrize("cut", [WHOLE, Cut(2, 0), Cut(2, 1), Cut(3, 1)], ids=str)
@pytest.mark.parametrize("noisy_causal", [False, True])
def test_the_pieces_are_what_is_seen_and_every_pair_once(cut: Cut, noisy_causal: bool) -> None:
    layout = Layout(48, 4, True, noisy_causal)
    table = torch.zeros(layout.size // cut.ranks, cut.key_count(layout, packed=False), dtype=torch.int64)
    own = cut.tokens(layout)
    for triangle in shifted(layout, cut):
        queries = triangle.queries.stop - triangle.queries.start
        table[triangle.queries, own : own + triangle.keys] += CAUSAL.table(queries, triangle.keys)
    for window in windows(layout, cut):
        queries = torch.arange(own)[window.queries].view(window.blocks, -1)
        before = torch.arange(own, own + layout.length)[window.before].view(window.blocks, -1)
        keys = torch.cat([before, queries], 1)  # a rank's noisy keys are its noisy queries
        for problem in range(window.blocks):
            seen = window.band.table(queries.shape[1], keys.shape[1]).long()
            table[queries[problem][:, None], keys[problem][None]] += seen
    everybody = visible_table(layout)
    expected = everybody[cut.queries(layout)][:, cut.keys(layout, packed=False)][:own]
    assert torch.equal(table[:own], expected.long())


def test_the_arithmetic_of_the_module() -> None:
    """Computed pairs, useful pairs and calls at L 4096, block 32: what pieces.py says."""
    layout = Layout(4096, 32, True)
    (triangle,) = shifted(layout, WHOLE)
    calls = windows(layout, WHOLE)
    clean = CAUSAL.pairs(4096, 4096)
    square = triangle.queries.stop - triangle.queries.start
    far = CAUSAL.pairs(square, triangle.keys)
    near = [(w.queries.stop - w.queries.start) // w.blocks for w in calls]
    sizes = [
        n * w.blocks * (n + (w.before.stop - w.before.start) // w.blocks) for n, w in zip(near, calls, strict=True)
    ]
    seen = sum(
        w.blocks * w.band.pairs(n, n + (w.before.stop - w.before.start) // w.blocks)
        for n, w in zip(near, calls, strict=True)
    )
    assert (clean, far, square, triangle.keys) == (8_390_656, 8_260_080, 4064, 4064)
    assert (sum(sizes), seen, len(calls)) == (261_120, 194_064, 2)
    assert clean + far + seen == visible_pairs(layout) == 16_844_800
    assert f"{(clean + far + sum(sizes)) / visible_pairs(layout):.4f}" == "1.0040"


@pytest.mark.parametrize(("length", "calls"), [(32, 1), (4096, 3), (4099, 4)])
def test_calls_of_the_noisy_half_are_few(length: int, calls: int) -> None:
    """The triangle, the blocks with one before them, the first, and a last one cut short."""
    layout = Layout(length, 32, True)
    assert len(shifted(layout, WHOLE)) + len(windows(layout, WHOLE)) == calls
