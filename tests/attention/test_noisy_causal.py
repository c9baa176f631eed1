"""Noisy blocks that see themselves causally: how a drafter's verifier reads drafts."""

import pytest
import torch

from nld_train.attention import flex, reference, sdpa
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_table
from tests.attention.conftest import IN_PIECES

# Two blocks of four tokens, drawn by hand: rows look, columns are seen; the noisy half comes first.
NOISY_BY_HAND = """
#....... ........
##...... ........
###..... ........
####.... ........
....#... ####....
....##.. ####....
....###. ####....
....#### ####....
"""
LAYOUTS = [
    RowLayout(8, 4, True, True),
    RowLayout(7, 3, True, True),
    RowLayout(64, 4, True, True),
    RowLayout(5, 8, True, True),
]


def test_the_noisy_half_as_drawn_by_hand_and_the_clean_half_as_ever() -> None:
    drawn = torch.tensor(
        [[cell == "#" for cell in line.replace(" ", "")] for line in NOISY_BY_HAND.split("\n") if line]
    )
    table = visible_table(RowLayout(8, 4, True, noisy_causal=True))
    assert torch.equal(table[:8], drawn.view(8, 16))
    assert torch.equal(table[8:], visible_table(RowLayout(8, 4, True))[8:])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_pairs_are_counted_without_the_table(layout: RowLayout) -> None:
    assert layout.visible_pairs == visible_table(layout).sum()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_every_backend_equals_the_reference(case, layout: RowLayout, packed: bool) -> None:
    given = case(layout, packed=packed)
    slow = given.output_and_gradients(reference.attend_reference)
    for attend in (sdpa.attend_sdpa, IN_PIECES):
        for one, other in zip(given.output_and_gradients(attend), slow, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        blockwise = flex.attend_flex(given.query, given.key, given.value, given.spec, given.scale)
    torch.testing.assert_close(blockwise, slow[0], rtol=1e-10, atol=1e-12)


def test_a_drafted_token_is_read_as_if_it_stood_in_the_text() -> None:
    """The noisy half of a block that holds the row's own tokens attends as the clean half does at the same places."""
    layout = RowLayout(12, 4, True, noisy_causal=True)
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 12, 8, generator=generator, dtype=torch.float64)
    twice = [torch.cat([part, part], 2) for part in (query, key, value)]
    noisy, clean = sdpa.attend_sdpa(*twice, MaskSpec(layout), 0.5).chunk(2, dim=2)
    torch.testing.assert_close(noisy, clean, rtol=1e-12, atol=1e-12)
